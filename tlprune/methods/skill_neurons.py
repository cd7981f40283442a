"""Skill neurons: MLP neurons that single-handedly tell the classes of a task, found in plain forward runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.activations import Backend
from tlprune.backends.prompting import embedded_tokens
from tlprune.circuit import Circuit
from tlprune.masking.ablation import Ablation
from tlprune.masking.installing import refuse_installed
from tlprune.masking.sites import neurons as neuron_sites
from tlprune.methods.ablations import ablation_for
from tlprune.methods.class_pairs import Classes, ClassMeans, PairCounts, classes_of
from tlprune.methods.effects import check_batch_size
from tlprune.methods.neuron_probe import PROBES, Probe, count_of_positions, read_neurons
from tlprune.methods.predictivity import Aggregate, Positions, Predictivity
from tlprune.methods.provenance import provenance_of
from tlprune.methods.scoring import Scoring, check_sparsity, size
from tlprune.prompts.attaching import attached, trials_of
from tlprune.prompts.prompt import Prompt
from tlprune.scores import Scores
from tlprune.selection import Selection, Top
from tlprune.sites import Neurons, Sites
from tlprune.task import Batch, Discovery, Task


@dataclass(frozen=True, kw_only=True)
class SkillNeurons(Scoring):
    """Score a neuron by how well its activation alone tells the class of an example.

    The threshold of a neuron is its mean activation over training examples, and its predictivity the accuracy on
    validation examples of "above it" or "not above it", whichever is right more often:

        ``b(n, i) = mean over train of a(n, i)``,  ``acc(n, i) = mean over validation of 1[1[a(n, i) > b(n, i)] = y]``,
        ``score(n) = mean over prompts of max_i max(acc(n, i), 1 - acc(n, i))``

    with ``i`` a position of the prompt. Neurons are numbers behind the activation function, of gated MLPs behind the
    gate: the sites of :func:`~tlprune.neurons`. Each prompt costs two plain runs of the model without gradients, and
    activations are reduced as they come, so memory does not depend on the number of examples.

    **More than two classes.** Each two classes are a binary sub-task with a threshold of its own, the mean of the two
    classes' means, and an accuracy that is the mean over the two classes, as if each had as many examples. A neuron's
    score is its best place among the neurons of its layer in any sub-task, see
    :class:`~tlprune.Predictivity`.

    Nothing is ablated: the ablation is only written down, for the circuit that :meth:`find` gives.

    Attributes:
        probe: where neurons are read. ``"prompt"``: at the tokens of a prompt, one by one; ``"answer"``: where the
            answer is read, for models without a prompt; ``"mean"`` and ``"max"``: over the tokens of the input,
            padding and prompt left out.
        aggregate: ``"mean"`` or ``"min"`` over prompts, if there are several.
        positions: ``"max"``: the best position of each prompt; or the number of one.
        sparsity: fraction of the neurons that the circuit removes, in (0, 1).
        neurons: how many it keeps; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        pattern: whose neurons, as of :func:`~tlprune.neurons`: ``"m[6-9]"``.
        batch_size: prompts per forward pass.

    Raises:
        ValueError: a setting is out of range; or in :meth:`score`, the task has one class, few examples, or nothing to
            read where the probe looks.
        RuntimeError: the model has masks installed.

    Source: Wang, Wen, Zhang, Hou, Liu, Li, "Finding Skill Neurons in Pre-trained Transformer-based Language Models"
    (EMNLP 2022), section 3.

    Example:
        Six neurons carry the answer of this model.

        >>> import tlprune as tp
        >>> planted = tp.planted("sentiment")
        >>> scores = tp.SkillNeurons(probe="answer").score(planted.model, planted.task)
        >>> scores.top(6).names == list(planted.neurons)
        True
    """

    probe: Probe = "prompt"
    aggregate: Aggregate = "mean"
    positions: Positions = "max"
    sparsity: float = 0.98
    neurons: int | None = None
    selection: Selection = field(default=Top())
    pattern: str = "*"
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity, self.neurons)
        check_batch_size(self.batch_size)
        for name, choices in (("probe", PROBES), ("aggregate", ("mean", "min"))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, choices))} but is {getattr(self, name)!r}. Choose one "
                    "of these."
                )
        if self.positions != "max" and not (isinstance(self.positions, int) and self.positions >= 0):
            raise ValueError(
                f"positions must be 'max' or the number of one, from 0, but is {self.positions!r}. Choose one of these."
            )

    def sites(self, model: Any) -> Sites:
        return neuron_sites(model, self.pattern)

    def count(self, sites: Sites) -> int:
        return size(self.neurons, self.sparsity, sites)

    def score(
        self,
        model: Any,
        task: Task | Discovery,
        *,
        prompts: Sequence[Prompt] = (),
        ablation: Ablation | None = None,
        progress: bool = False,
    ) -> Scores:
        """A score for every neuron: its predictivity, from 0.5 to 1.

        Args:
            model: a TransformerLens model; left as it was.
            task: labelled examples; only train and validation are used, and corrupted prompts are not.
            prompts: attached to the model in turn, each a trial; without any the model runs as it is.
            ablation: what is written down as replacing the neurons that a circuit removes.
            progress: whether to show a progress bar.
        """
        sites = self.sites(model)
        self.count(sites)
        found = self.predictivity(model, task, prompts=prompts, ablation=ablation, progress=progress)
        return found.scores(aggregate=self.aggregate, positions=self.positions)

    def find(
        self,
        model: Any,
        task: Task | Discovery,
        *,
        prompts: Sequence[Prompt] = (),
        ablation: Ablation | None = None,
        progress: bool = False,
    ) -> Circuit:
        """The circuit that the selection takes of the scores; the arguments are those of :meth:`score`."""
        scores = self.score(model, task, prompts=prompts, ablation=ablation, progress=progress)
        return self.selection.select(scores, self.count(scores.sites))

    def predictivity(
        self,
        model: Any,
        task: Task | Discovery,
        *,
        prompts: Sequence[Prompt] = (),
        ablation: Ablation | None = None,
        progress: bool = False,
    ) -> Predictivity:
        """Thresholds and accuracies of every neuron at every position, prompt and pair of classes.

        The arguments are those of :meth:`score`.
        """
        discovery, sites = task.discovery if isinstance(task, Task) else task, self.sites(model)
        provenance = provenance_of(
            self, model, discovery=discovery, sites=sites, ablation=ablation_for(discovery, ablation)
        )
        refuse_installed(model)
        backend, classes = backend_of(model), classes_of(discovery)
        self._check_positions(backend, discovery, prompts)
        trials = []
        for prompt in trials_of(prompts):
            with attached(model, prompt):
                trials.append(self._trial(backend, discovery, sites, classes, progress=progress))
        baselines, accuracies = (torch.stack(parts, 1) for parts in zip(*trials, strict=True))
        known = provenance | ({"prompts": [prompt.hash for prompt in prompts]} if prompts else {})
        return Predictivity(sites, classes.answers, baselines, accuracies, self.probe, known)

    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        return self.score(model, discovery, ablation=ablation, progress=progress).values

    def _trial(
        self, backend: Backend, discovery: Discovery, sites: Sites, classes: Classes, *, progress: bool
    ) -> tuple[Tensor, Tensor]:
        """Thresholds from a pass over train, accuracies from one over validation, ``(pair, layer, prompt, neuron)``."""
        train, validation = discovery.train(), discovery.validation()
        means = ClassMeans(classes, classes.of(train))
        self._read(backend, train, sites, means.take, progress=progress)
        counts = PairCounts(classes, classes.of(validation), _numbers(means.baselines()))
        self._read(backend, validation, sites, counts.take, progress=progress)
        return _stacked(counts.baselines, sites), _stacked(counts.accuracies(), sites)

    def _read(self, backend: Backend, examples: Batch, sites: Sites, take: Any, *, progress: bool) -> None:
        layers = _neurons(sites).layers
        read_neurons(
            backend, examples, take, probe=self.probe, layers=layers, batch_size=self.batch_size, progress=progress
        )

    def _check_positions(self, backend: Backend, discovery: Discovery, prompts: Sequence[Prompt]) -> None:
        """Before the model runs."""
        first = embedded_tokens(backend.embedding)
        train, validation = (
            count_of_positions(examples, self.probe, first) for examples in (discovery.train(), discovery.validation())
        )
        if train != validation or (self.positions != "max" and self.positions >= train):
            raise ValueError(
                f"Neurons are read at the same positions in train and validation, of which one may be chosen by its "
                f"number, but there are {train} and {validation} and positions is {self.positions!r}. Use examples "
                "with one prompt, and a number below that of its positions."
            )
        if prompts and not bool((discovery.train().clean.ids >= first).any()):
            raise ValueError(
                f"Prompts are met through their tokens (ids from {first:,} up) but no example has one. Build the task "
                "with tp.tasks.prompted(model, ...), or give no prompts."
            )


def _neurons(sites: Sites) -> Neurons:
    group = sites.group("neurons")
    assert isinstance(group, Neurons)
    return group


def _stacked(values: dict[int, Tensor], sites: Sites) -> Float[Tensor, "pair layer prompt neuron"]:
    return torch.stack([values[layer].cpu() for layer in _neurons(sites).layers], 1)


def _numbers(baselines: dict[int, Tensor]) -> dict[int, Tensor]:
    """Checked: nothing is above a threshold that is no number, and its accuracy would look like any other."""
    for layer, values in baselines.items():
        if not bool(values.isfinite().all()):
            raise FloatingPointError(
                f"The mean activation of a neuron in layer {layer} is no finite number, so the model overflows on "
                "these examples. Load it in float32, or look for infinities in its weights."
            )
    return baselines
