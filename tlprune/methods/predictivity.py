"""How well single neurons tell the classes of a task: thresholds and accuracies, kept whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.files import read_saved, write_tensors
from tlprune.learning.correlations import ranks
from tlprune.methods.neuron_probe import Probe
from tlprune.scores import Scores
from tlprune.sites import Neurons, Sites

FORMAT, VERSION = "predictivity", 1
Aggregate = Literal["mean", "min"]
Positions = Literal["max"] | int


@dataclass(frozen=True, eq=False)
class Predictivity:
    """What each neuron's activation says about the class, for each prompt, each of its positions, and each two classes.

    A neuron *fires* in an example where its activation ``a`` is above its baseline ``b``, strictly:

        ``b = mean of a over train``,  ``accuracy = mean over validation of 1[1[a > b] = y]``,
        ``predictivity = max(accuracy, 1 - accuracy)``

    with ``y`` 1 for the second of two classes. An accuracy below one half belongs to a neuron that fires for the first.

    Attributes:
        sites: the neurons.
        classes: the answers that stand for the classes, from the lowest.
        baselines: thresholds, ``(pair, trial, layer, prompt, neuron)``, in float64. A pair is two classes; a trial is
            one prompt; ``prompt`` numbers the positions that were read, a single one for pooled probes.
        accuracies: on validation, of the same shape; not yet the better of the two directions.
        probe: where neurons were read, as of :class:`~tlprune.SkillNeurons`.
        provenance: how it was measured; plain data.

    Raises:
        ValueError: the shapes do not belong together.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("sentiment")
        >>> found = tp.SkillNeurons(probe="answer").predictivity(planted.model, planted.task)
        >>> found
        Predictivity(48 neurons, classes 10 and 11, 1 trial, 1 position)
        >>> found.accuracy.shape  # (trial, layer, prompt, neuron)
        torch.Size([1, 2, 1, 24])
        >>> found.scores().top(threshold=0.99).names == list(planted.neurons)
        True
    """

    sites: Sites
    classes: tuple[int, ...]
    baselines: Float[Tensor, "pair trial layer prompt neuron"]
    accuracies: Float[Tensor, "pair trial layer prompt neuron"]
    probe: Probe
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        group = self.neurons
        pairs = len(self.classes) * (len(self.classes) - 1) // 2
        shape = self.accuracies.shape
        if self.baselines.shape != shape or (shape[0], shape[2], shape[4]) != (pairs, len(group.layers), group.width):
            raise ValueError(
                f"Predictivity of {group.width} neurons in {len(group.layers)} layers and {pairs} pairs of classes "
                f"needs tensors (pair, trial, layer, prompt, neuron) but got {tuple(self.baselines.shape)} and "
                f"{tuple(shape)}. Measure them with tp.SkillNeurons().predictivity(model, task)."
            )

    def __repr__(self) -> str:
        _, trials, _, prompt, _ = self.accuracies.shape
        classes = " and ".join(map(str, self.classes)) if len(self.classes) == 2 else f"{len(self.classes)}"
        counts = [f"{n} {word}{'s' * (n != 1)}" for n, word in ((trials, "trial"), (prompt, "position"))]
        return f"Predictivity({len(self.sites):,} neurons, classes {classes}, {', '.join(counts)})"

    @property
    def neurons(self) -> Neurons:
        """The group of its sites."""
        group = self.sites.group("neurons")
        assert isinstance(group, Neurons)
        return group

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The answers of each pair of classes, in order."""
        return tuple(combinations(self.classes, 2))

    def of(self, first: int, second: int) -> Predictivity:
        """What is known of two classes alone.

        Args:
            first: the answer of one.
            second: that of the other, which is the higher.

        Raises:
            ValueError: there is no such pair.
        """
        if (first, second) not in self.pairs:
            raise ValueError(
                f"Pairs of classes go by their answers, the lower one first: {', '.join(map(str, self.pairs))}; but "
                f"got {(first, second)}. Choose one of these."
            )
        place = [self.pairs.index((first, second))]
        return replace(
            self, classes=(first, second), baselines=self.baselines[place], accuracies=self.accuracies[place]
        )

    @property
    def baseline(self) -> Float[Tensor, "trial layer prompt neuron"]:
        """Thresholds of a task of two classes."""
        return self._only(self.baselines)

    @property
    def accuracy(self) -> Float[Tensor, "trial layer prompt neuron"]:
        """Accuracies of a task of two classes; below one half where a neuron fires for the first."""
        return self._only(self.accuracies)

    def _only(self, values: Tensor) -> Tensor:
        if len(values) != 1:
            raise ValueError(
                f"A neuron has one threshold for each two classes, and of {len(self.classes)} classes there are "
                f"{len(values)} pairs. Choose two: found.of{self.pairs[0]}.baseline."
            )
        return values[0]

    @property
    def predictivities(self) -> Float[Tensor, "pair trial layer prompt neuron"]:
        """``max(accuracy, 1 - accuracy)``, from 0.5 to 1."""
        return torch.maximum(self.accuracies, 1 - self.accuracies)

    @property
    def for_second(self) -> Bool[Tensor, "pair trial layer prompt neuron"]:
        """Whether a neuron fires for the second class of the pair; both ways are as good at one half."""
        return self.accuracies >= 0.5

    def of_pairs(
        self, *, aggregate: Aggregate = "mean", positions: Positions = "max"
    ) -> Float[Tensor, "pair layer neuron"]:
        """The best position of each trial, then the mean, or the worst, of trials.

        Args:
            aggregate: ``"mean"`` or ``"min"`` over trials.
            positions: ``"max"``: the best one of each trial; or the number of one.

        Raises:
            ValueError: there is no such position.
        """
        best = _at(self.predictivities, positions)
        return best.mean(1) if aggregate == "mean" else best.amin(1)

    def values(self, *, aggregate: Aggregate = "mean", positions: Positions = "max") -> Float[Tensor, "layer neuron"]:
        """One number for each neuron; of several pairs of classes, its best place among those of any pair.

        See ``best_of_pairs`` of this module; arguments as of :meth:`of_pairs`.
        """
        return best_of_pairs(self.of_pairs(aggregate=aggregate, positions=positions))

    def scores(self, *, aggregate: Aggregate = "mean", positions: Positions = "max") -> Scores:
        """The values as scores of the neurons; the trials are samples where the values are their mean.

        Arguments as of :meth:`of_pairs`.
        """
        values = self.values(aggregate=aggregate, positions=positions).flatten().float()
        samples = None
        if len(self.pairs) == 1 and aggregate == "mean" and self.accuracies.shape[1] > 1:
            samples = _at(self.predictivities, positions)[0].flatten(1).float()
        return Scores(self.sites, values, self.provenance, samples)

    def correlation(
        self, activations: Float[Tensor, "trial layer prompt neuron"]
    ) -> Float[Tensor, "trial layer prompt"]:
        """Spearman correlation, over the neurons of a layer, of predictivity with what they do otherwise.

        Not a number where either is the same for all neurons.

        Args:
            activations: such as :func:`~tlprune.prompt_activations`.

        Raises:
            ValueError: there are more than two classes, or the shape is another.
        """
        own = self._only(self.predictivities)
        if activations.shape != own.shape:
            raise ValueError(
                f"A correlation with predictivity of shape {tuple(own.shape)} needs a number for each of these but got "
                f"{tuple(activations.shape)}. Read the same neurons with the same prompts."
            )
        rows = zip(own.flatten(0, 2), activations.to(own).flatten(0, 2), strict=True)
        found = [torch.corrcoef(torch.stack([ranks(one), ranks(other)]))[0, 1] for one, other in rows]
        return torch.stack(found).view(own.shape[:3])

    def save(self, path: str | Path) -> None:
        """Write everything as a safetensors file."""
        data = {"format": f"tlprune-{FORMAT}", "version": VERSION, "sites": self.sites.as_dict()}
        data |= {"classes": list(self.classes), "probe": self.probe, "provenance": dict(self.provenance)}
        write_tensors(Path(path), {"baselines": self.baselines, "accuracies": self.accuracies}, data)

    @staticmethod
    def load(path: str | Path) -> Predictivity:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is missing, of something else, of another version, or not whole.
        """
        tensors, data = read_saved(Path(path), FORMAT, VERSION)
        try:
            sites, classes = Sites.from_dict(data["sites"]), tuple(data["classes"])
            parts = tensors["baselines"], tensors["accuracies"]
            return Predictivity(sites, classes, *parts, data["probe"], data["provenance"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} does not hold whole predictivity ({error}). Save it again.") from error


def best_of_pairs(predictivity: Float[Tensor, "pair layer neuron"]) -> Float[Tensor, "layer neuron"]:
    """One number for each neuron, so that the highest of a layer are the top neurons of each binary sub-task in turn.

    ``P_s(r)`` is the ``r``-th highest predictivity of a layer in sub-task ``s``, and ``r(n)`` the best rank of neuron
    ``n`` in any sub-task. Its value is the mean over sub-tasks of ``P_s(r(n))``: quantile normalisation makes
    sub-tasks of different difficulty comparable, and a neuron then has the best of its normalised predictivities. Of a
    single sub-task this is its predictivity.

    Source: Wang et al., "Finding Skill Neurons in Pre-trained Transformer-based Language Models" (EMNLP 2022): the
    same number of top neurons from each sub-task. The scale between the ranks is ours.

    Args:
        predictivity: of each sub-task.

    Example:
        In the first sub-task neuron 0 is the best, in the second, which is harder, neuron 2.

        >>> best_of_pairs(torch.tensor([[[1.0, 0.9, 0.8]], [[0.5, 0.6, 0.7]]]))
        tensor([[0.8500, 0.7500, 0.8500]])
    """
    rising = predictivity.sort(-1).values
    higher = predictivity.shape[-1] - torch.searchsorted(rising, predictivity.contiguous(), right=True)
    return rising.flip(-1).mean(0).gather(-1, higher.amin(0))


def _at(values: Float[Tensor, "pair trial layer prompt neuron"], positions: Positions) -> Tensor:
    if positions == "max":
        return values.amax(3)
    if not 0 <= positions < values.shape[3]:
        raise ValueError(
            f"A position must lie between 0 and {values.shape[3] - 1}, for so many were read, but is {positions}. "
            "Choose one of these, or positions='max'."
        )
    return values.select(3, positions)
