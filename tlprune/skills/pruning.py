"""Models pruned to their skill neurons: the other neurons are fixed at their mean and really gone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.masking.masked import masked_circuit
from tlprune.masking.means import Mean, MeasuredMean
from tlprune.models.huggingface import from_huggingface
from tlprune.models.shrinking import shrink
from tlprune.prompts.attaching import attached, trials_of
from tlprune.prompts.prompt import Prompt
from tlprune.scores import Scores
from tlprune.sites import Sites
from tlprune.skills.accuracy import correct
from tlprune.skills.choosing import neurons_of, top_neurons
from tlprune.skills.pruned import SkillPruning
from tlprune.studies.shrinkage import shrinkage
from tlprune.task import Discovery, Task


@runtime_checkable
class Tuning(Protocol):
    """What tunes a prompt to a model, such as :class:`~tlprune.PromptTuning`."""

    def tune(self, model: Any, task: Any, *, prompt: Any) -> Prompt:
        """A prompt that is better for this model, from ``prompt`` on."""
        ...


def skill_pruned(
    model: Any,
    task: Task,
    scores: Scores,
    *,
    prompts: Sequence[Prompt] = (),
    keep: float = 0.02,
    layers: Sequence[int] | None = None,
    tuning: Tuning | None = None,
    rounds: int = 0,
    batch_size: int = 64,
) -> SkillPruning:
    """Leave of some layers' MLPs the neurons of the highest score, and fold the means of the others into biases.

    With the neurons ``P`` that go, their means ``z`` over all tokens of the training prompts, soft prompt included, and
    the output weights ``W`` of a layer, ``b' = b + sum_{n in P} z_n W_n``; then they are cut out of its matrices. The
    means are over the prompts too, so that one small model serves them all. What tuning and pruning see is
    ``task.discovery``; accuracy is of the test.

    Args:
        model: a TransformerLens model that came from Hugging Face; it is not changed.
        task: of the skill.
        scores: of its neurons, as :class:`~tlprune.SkillNeurons` finds them.
        prompts: soft prompts of the task, each attached in turn; without any the model runs as it is.
        keep: which part of a layer's neurons stays, rounded down: 61 of 3072.
        layers: those that are pruned; by default all but the first quarter: 3 to 11 of 12.
        tuning: what tunes the prompts to the pruned model; ``None`` leaves them.
        rounds: timed runs of the whole and the shrunk model; 0 for none.
        batch_size: examples per forward pass.

    Raises:
        ValueError: the scores are not of this model's neurons, a layer has none, ``keep`` is not in [0, 1], a prompt is
            to be tuned and there is none, or the model cannot be shrunk.

    Source: Wang et al., "Finding Skill Neurons in Pre-trained Transformer-based Language Models" (EMNLP 2022), section
    5. Their code adds the means of the neurons that stay as well; here these are the neurons' own.

    Example:
        >>> import tlprune as tp
        >>> model = tp.load("testbed", device="cpu")
        >>> task = tp.tasks.ioi(model, train=20, validation=20, test=20)
        >>> scores = tp.Scores(tp.neurons(model), torch.rand(len(tp.neurons(model))))
        >>> found = skill_pruned(model, task, scores, keep=0.05)
        >>> [len(layer.neurons) for layer in found.small.sizes], found.saved.difference < 1e-4
        ([512, 25, 25, 25], True)
    """
    if tuning is not None and not prompts:
        raise ValueError("Tuning needs prompts to start from but there are none. Give some: prompts=[prompt].")
    circuit = skill_circuit(scores, keep=keep, layers=layers)
    means = skill_means(model, task.discovery, circuit, prompts=prompts, batch_size=batch_size)
    masked = masked_circuit(model, circuit, means)
    small = shrink(masked)
    pruned = _loaded(model, small)
    retuned = tuple(tuning.tune(pruned, task, prompt=prompt) for prompt in prompts) if tuning else ()
    stages = {"whole": (model, prompts), "pruned": (pruned, prompts)} | (
        {"retuned": (pruned, retuned)} if retuned else {}
    )
    right = {
        name: correct(lens, task.test, task.metrics, prompts=own, batch_size=batch_size)
        for name, (lens, own) in stages.items()
    }
    with attached(model, prompts[0] if prompts else None):
        vectors = prompts[0].vectors if prompts else None
        saved = shrinkage(masked, small, task.test, rounds=rounds, vectors=vectors)
    return SkillPruning(circuit, means, small, pruned, tuple(prompts), retuned, right, saved)


def _loaded(model: Any, small: Any) -> Any:
    """A shrunk model as one of TransformerLens, beside the whole one and with its tokenizer."""
    backend = backend_of(model)
    return from_huggingface(small, device=str(backend.device), dtype=backend.dtype, tokenizer=model.tokenizer)


def skill_circuit(scores: Scores, *, keep: float = 0.02, layers: Sequence[int] | None = None) -> Circuit:
    """The :func:`~tlprune.top_neurons` of some layers, and all of the others.

    Args:
        scores: of neurons.
        keep: which part of a layer's neurons.
        layers: by default all but the first quarter of those that have scores.

    Raises:
        ValueError: as :func:`skill_pruned`.

    Example:
        >>> from tlprune.sites import Neurons, Sites
        >>> scores = Scores(Sites((Neurons((0, 1), 4),)), torch.tensor([0.0, 1, 2, 3, 5, 9, 8, 7]))
        >>> skill_circuit(scores, keep=0.5, layers=[1]).names
        ['m0.n0', 'm0.n1', 'm0.n2', 'm0.n3', 'm1.n1', 'm1.n2']
    """
    group = neurons_of(scores.sites)
    top = top_neurons(scores, keep, layers=group.layers[len(group.layers) // 4 :] if layers is None else layers)
    chosen = neurons_of(top.sites).layers
    kept = torch.ones(len(group.layers), group.width, dtype=torch.bool)
    kept[[group.layers.index(layer) for layer in chosen]] = top.kept.view(len(chosen), group.width)
    told = {"operation": "skill_pruned", "keep": keep, "layers": list(chosen)}
    return Circuit(Sites((group,)), kept.flatten(), {**scores.provenance, **told})


def skill_means(
    model: Any, discovery: Discovery, circuit: Circuit, *, prompts: Sequence[Prompt] = (), batch_size: int = 64
) -> MeasuredMean:
    """Means of neurons over all tokens of the training prompts, and over the soft prompts that are attached in turn.

    Args:
        model: the model.
        discovery: training examples of the task.
        circuit: of the neurons.
        prompts: soft prompts; those of a task are equally long, so each counts as much.
        batch_size: examples per forward pass.
    """
    mean, found = Mean(discovery.train().clean, batch_size=batch_size), []
    for prompt in trials_of(prompts):
        with attached(model, prompt):
            found.append(mean.measure(model, neurons=neurons_of(circuit.sites).layers))
    sums = [torch.stack(values).mean(0) for values in zip(*(one.activations.tensors for one in found), strict=True)]
    origin = found[0].origin | {"attached": [name for one in found for name in one.origin.get("attached", [])]}
    return dataclasses.replace(found[0], activations=found[0].activations.with_tensors(sums), origin=origin)
