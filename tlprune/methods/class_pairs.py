"""Classes of a labelled task, the pairs of them, and statistics of neurons that are kept for each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.task import Batch, Discovery

FEWEST = 2  # examples of each class, in train and in validation


@dataclass(frozen=True)
class Classes:
    """The classes of a task, by the answers that stand for them.

    Attributes:
        answers: the distinct answers, from the lowest.
    """

    answers: tuple[int, ...]

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Numbers of the two classes of each binary sub-task, in order."""
        return tuple(combinations(range(len(self.answers)), 2))

    @property
    def balanced(self) -> bool:
        """Whether both classes of a sub-task weigh the same, however many examples they have."""
        return len(self.answers) > 2

    def of(self, examples: Batch) -> Int[Tensor, "example"]:
        """The class of each example by number, -1 if it has none of these; on the CPU."""
        same = examples.answers[:, :1].cpu() == torch.tensor(self.answers)
        return torch.where(same.any(1), same.int().argmax(1), -1)

    def counts(self, examples: Batch) -> Int[Tensor, "class"]:
        """How many examples each class has."""
        own = self.of(examples)
        return torch.bincount(own[own >= 0], minlength=len(self.answers))


def classes_of(discovery: Discovery) -> Classes:
    """The classes of a task's training and validation examples.

    Raises:
        ValueError: an example has no answer or several, a split has one class, or too few examples of a class.
    """
    splits = {"train": discovery.train(), "validation": discovery.validation()}
    for name, examples in splits.items():
        _check_answers(examples, name)
    classes = Classes(tuple(torch.cat([one.answers for one in splits.values()]).unique().tolist()))
    for name, examples in splits.items():
        _check_counts(classes, examples, name)
    return classes


def _check_answers(examples: Batch, split: str) -> None:
    answers = examples.answers
    if answers.shape[1] != 1 or bool((answers < 0).any()):
        raise ValueError(
            f"Neurons are compared with the class of an example, so each needs one answer, but those of {split} have "
            f"{answers.shape[1]}, {int((answers < 0).sum()):,} of them missing. Use a task of classes, such as "
            "tp.tasks.prompted(model, ...)."
        )


def _check_counts(classes: Classes, examples: Batch, split: str) -> None:
    counts = classes.counts(examples)
    told = ", ".join(f"{n:,} of answer {answer}" for answer, n in zip(classes.answers, counts.tolist(), strict=True))
    if int((counts > 0).sum()) < 2:
        raise ValueError(
            f"Telling classes apart needs examples of two at least but {split} has {told}. Take examples of every "
            "class into each split; shuffle data that are sorted by label."
        )
    if int(counts.min()) < FEWEST:
        raise ValueError(
            f"Each class needs at least {FEWEST} examples in train and in validation but {split} has {told}. Give the "
            "task more examples, or leave that class out."
        )


class ClassMeans:
    """Means of what neurons did in the examples of each class, from sums in float64.

    Args:
        classes: of the task.
        own: the class of each example that will be told of.
    """

    def __init__(self, classes: Classes, own: Int[Tensor, "example"]) -> None:
        self.classes, self.own = classes, own
        self.sums: dict[int, Tensor] = {}

    def take(self, layer: int, rows: Tensor, read: Float[Tensor, "example prompt neuron"]) -> None:
        """Add some examples of a layer."""
        chosen = F.one_hot(self.own[rows], len(self.classes.answers)).to(read.device, torch.float64)
        added = torch.einsum("ec,epn->cpn", chosen, read.double())
        self.sums[layer] = self.sums[layer] + added if layer in self.sums else added

    def baselines(self) -> dict[int, Float[Tensor, "pair prompt neuron"]]:
        """For each layer and pair, the mean over the examples of both classes."""
        return {
            layer: torch.stack([self._of(one, sums) for one in self.classes.pairs]) for layer, sums in self.sums.items()
        }

    def _of(self, pair: tuple[int, int], sums: Tensor) -> Float[Tensor, "prompt neuron"]:
        """Sums first: the mean of equal numbers is then that number, and no neuron is above it by rounding."""
        both = sums[list(pair)]
        counts = torch.bincount(self.own, minlength=len(sums))[list(pair)].tolist()
        if self.classes.balanced:
            return (both[0] / counts[0] + both[1] / counts[1]) / 2
        return both.sum(0) / sum(counts)


class PairCounts:
    """How often neurons are above their baseline, in the examples of each class of each pair.

    Args:
        classes: of the task.
        own: the class of each example that will be told of.
        baselines: of each layer.
    """

    def __init__(
        self,
        classes: Classes,
        own: Int[Tensor, "example"],
        baselines: dict[int, Float[Tensor, "pair prompt neuron"]],
    ) -> None:
        self.classes, self.own, self.baselines = classes, own, baselines
        self.above = {
            layer: torch.zeros(len(one), 2, *one.shape[1:], dtype=torch.int32, device=one.device)
            for layer, one in baselines.items()
        }

    def take(self, layer: int, rows: Tensor, read: Float[Tensor, "example prompt neuron"]) -> None:
        """Count some examples of a layer; a neuron at its baseline is not above it."""
        own = self.own[rows].to(read.device)
        parts = [read[own == number] for number in range(len(self.classes.answers))]
        for place, pair in enumerate(self.classes.pairs):
            for side, number in enumerate(pair):
                self.above[layer][place, side] += (parts[number] > self.baselines[layer][place]).sum(0)

    def accuracies(self) -> dict[int, Float[Tensor, "pair prompt neuron"]]:
        """For each layer and pair, how often "above" says which of the two classes it is, the second one for above."""
        return {
            layer: torch.stack(list(map(self._of, self.classes.pairs, above))) for layer, above in self.above.items()
        }

    def _of(self, pair: tuple[int, int], above: Tensor) -> Float[Tensor, "prompt neuron"]:
        low, high = torch.bincount(self.own, minlength=len(self.classes.answers))[list(pair)].tolist()
        if self.classes.balanced:
            return ((low - above[0]).double() / low + above[1].double() / high) / 2
        return (low - above[0] + above[1]).double() / (low + high)
