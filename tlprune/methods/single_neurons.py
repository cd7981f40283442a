"""Neurons read out: what each does, how well it alone tells two classes, and what a prompt does alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.activations import Backend
from tlprune.backends.prompting import embedded_tokens
from tlprune.masking.installing import refuse_installed
from tlprune.masking.sites import neurons as neuron_sites
from tlprune.methods.class_pairs import Classes
from tlprune.methods.neuron_probe import Probe, count_of_positions, read_neurons
from tlprune.methods.predictivity import Positions, Predictivity
from tlprune.prompts.attaching import attached, trials_of
from tlprune.prompts.prompt import Prompt
from tlprune.sites import Neurons, Sites
from tlprune.task import Batch, Discovery, Task


def neuron_activations(
    model: Any,
    examples: Batch,
    neurons: Sequence[str],
    *,
    probe: Probe = "prompt",
    prompts: Sequence[Prompt] = (),
    batch_size: int = 64,
) -> Float[Tensor, "neuron trial example prompt"]:
    """What some neurons do on each example, from one run of it for each trial.

    Args:
        model: a TransformerLens model; left as it was.
        examples: whose clean prompts are run.
        neurons: their names, such as ``"m3.n120"``.
        probe: where it is read, as of :class:`~tlprune.SkillNeurons`.
        prompts: attached in turn, each a trial; without any the model runs as it is.
        batch_size: prompts per forward pass.

    Raises:
        ValueError: there is no such neuron, or nothing to read where the probe looks.
        RuntimeError: the model has masks installed.

    Example:
        A neuron that fires for one of two classes.

        >>> import tlprune as tp
        >>> planted = tp.planted("sentiment")
        >>> found = neuron_activations(planted.model, planted.task.test, planted.neurons[:1], probe="answer")
        >>> found.shape, found.round().unique().tolist()
        (torch.Size([1, 1, 64, 1]), [0.0, 1.0])
    """
    refuse_installed(model)
    backend = backend_of(model)
    places = _placed(neuron_sites(model), neurons)
    positions = count_of_positions(examples, probe, embedded_tokens(backend.embedding))
    found = torch.empty(len(places), max(1, len(prompts)), len(examples), positions, dtype=backend.dtype)
    for trial, prompt in enumerate(trials_of(prompts)):

        def take(layer: int, rows: Tensor, read: Tensor, trial: int = trial) -> None:
            for number, (own, place) in enumerate(places):
                if own == layer:
                    found[number, trial, rows] = read[..., place].to(found)

        with attached(model, prompt):
            layers = sorted({layer for layer, _ in places})
            read_neurons(backend, examples, take, probe=probe, layers=layers, batch_size=batch_size)
    return found


def neuron_accuracy(
    model: Any,
    examples: Batch,
    found: Predictivity,
    *,
    neurons: Sequence[str],
    prompts: Sequence[Prompt] = (),
    positions: Positions = "max",
    batch_size: int = 64,
) -> Float[Tensor, "neuron trial"]:
    """How often each of some neurons alone, with the threshold and direction that it was measured with, is right.

    It says the class that it was found to fire for where it is above its threshold, else the other one. On the
    validation examples this is its predictivity, unless classes are balanced; on others it is what to expect of it.

    Args:
        model: the model that ``found`` is of; left as it was.
        examples: of any split; those of other classes than the two are left out.
        found: of two classes; of more, ``found.of(first, second)``.
        neurons: their names, such as ``"m3.n120"``.
        prompts: those that ``found`` was measured with, in their order.
        positions: ``"max"``: the one at which the neuron was best, in each trial; or the number of one.
        batch_size: prompts per forward pass.

    Raises:
        ValueError: the prompts are of another number, there is no such neuron, or no example of the two classes.
        RuntimeError: the model has masks installed.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("sentiment")
        >>> found = tp.SkillNeurons(probe="answer").predictivity(planted.model, planted.task)
        >>> neuron_accuracy(planted.model, planted.task.test, found, neurons=planted.neurons[:2])
        tensor([[1.],
                [1.]], dtype=torch.float64)
    """
    thresholds, accuracies = (_of_neurons(values, found, neurons) for values in (found.baseline, found.accuracy))
    _check_trials(thresholds.shape[1], prompts)
    examples = examples.rows((Classes(found.classes).of(examples) >= 0).nonzero()[:, 0])
    if not len(examples):
        raise ValueError(
            f"A neuron that tells answers {found.classes} apart needs examples of these but got none. Give a split of "
            "the same task."
        )
    read = neuron_activations(model, examples, neurons, probe=found.probe, prompts=prompts, batch_size=batch_size)
    second = (read > thresholds[:, :, None]) == (accuracies >= 0.5)[:, :, None]
    right = second == (Classes(found.classes).of(examples) == 1)[:, None]
    return _chosen(right.double().mean(2), torch.maximum(accuracies, 1 - accuracies), positions)


def prompt_activations(
    model: Any,
    task: Task | Discovery,
    *,
    prompts: Sequence[Prompt] = (),
    pattern: str = "*",
) -> Float[Tensor, "trial layer prompt neuron"]:
    """What neurons do at the prompt's tokens when there is no input.

    The input is a training example of which only the prompt and the tokenizer's special tokens are left. With
    :meth:`Predictivity.correlation` it says how much of a skill the prompt calls up by itself.

    Args:
        model: a TransformerLens model; left as it was.
        task: whose examples have prompt tokens.
        prompts: attached in turn, each a trial; without any the model runs as it is.
        pattern: whose neurons, as of :func:`~tlprune.neurons`.

    Raises:
        ValueError: the examples have no prompt tokens.
        RuntimeError: the model has masks installed.
    """
    refuse_installed(model)
    discovery = task.discovery if isinstance(task, Task) else task
    backend, layers = backend_of(model), _group(neuron_sites(model, pattern)).layers
    empty = _without_input(model, backend, discovery.train())
    trials = []
    for prompt in trials_of(prompts):
        seen: dict[int, Tensor] = {}

        def take(layer: int, _: Tensor, read: Tensor, seen: dict[int, Tensor] = seen) -> None:
            seen[layer] = read[0].cpu()

        with attached(model, prompt):
            read_neurons(backend, empty, take, probe="prompt", layers=layers, batch_size=1)
        trials.append(torch.stack([seen[layer] for layer in layers]))
    return torch.stack(trials)


def _without_input(model: Any, backend: Backend, examples: Batch) -> Batch:
    """The first example without its words."""
    first = embedded_tokens(backend.embedding)
    count_of_positions(examples, "prompt", first)
    one = examples.rows(torch.arange(1))
    kept = _kept(one.clean.ids[0], getattr(model, "tokenizer", None), first)
    if one.clean.attention_mask is not None:
        kept &= one.clean.attention_mask[0].bool()
    tokens = one.clean.columns(kept)
    positions = torch.zeros_like(one.positions)
    return replace(one, clean=tokens, corrupt=tokens, positions=positions, spans=None, span_names=())


def _kept(ids: Tensor, tokenizer: Any, first: int) -> Bool[Tensor, "pos"]:
    special = torch.tensor(sorted(getattr(tokenizer, "all_special_ids", ())), dtype=ids.dtype, device=ids.device)
    return (ids >= first) | torch.isin(ids, special)


def _of_neurons(
    values: Float[Tensor, "trial layer prompt neuron"], found: Predictivity, neurons: Sequence[str]
) -> Float[Tensor, "some trial prompt"]:
    """What was measured of some neurons."""
    rows = found.neurons.layers
    return torch.stack([values[:, rows.index(layer), :, place] for layer, place in _placed(found.sites, neurons)])


def _chosen(
    right: Float[Tensor, "neuron trial prompt"], known: Float[Tensor, "neuron trial prompt"], positions: Positions
) -> Float[Tensor, "neuron trial"]:
    if positions == "max":
        return right.gather(-1, known.argmax(-1, keepdim=True))[..., 0]
    if not 0 <= positions < right.shape[-1]:
        raise ValueError(
            f"A position must lie between 0 and {right.shape[-1] - 1}, for so many were read, but is {positions}. "
            "Choose one of these, or positions='max'."
        )
    return right[..., positions]


def _check_trials(count: int, prompts: Sequence[Prompt]) -> None:
    if count != max(1, len(prompts)):
        raise ValueError(
            f"A neuron has thresholds for {count} prompts but got {len(prompts)}. Give those that it was measured with."
        )


def _placed(sites: Sites, neurons: Sequence[str]) -> list[tuple[int, int]]:
    """Layer and number of each of some neurons."""
    if isinstance(neurons, str) or not neurons:
        raise ValueError(f"A list of neurons is needed but got {neurons!r}. Name some: ['m3.n120'].")
    group = _group(sites)
    found = [divmod(group.index(neuron), group.width) for neuron in neurons]
    return [(group.layers[row], place) for row, place in found]


def _group(sites: Sites) -> Neurons:
    group = sites.group("neurons")
    assert isinstance(group, Neurons)
    return group
