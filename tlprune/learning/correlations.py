"""Figures of all predictions together: Matthews correlation, F1, Pearson and Spearman correlation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.learning.figures import targets_of
from tlprune.learning.objectives import Logits, exact
from tlprune.statistic import Columns, Prepared, Statistic
from tlprune.task import Batch


def matthews(classes: int) -> Statistic:
    """Matthews correlation of the likeliest class with the right one, from -1 to 1; 0 where either never varies.

    With ``C`` the confusion matrix as fractions, ``t`` and ``p`` its sums over predicted and right classes:
    ``(tr C - t p) / sqrt((1 - p p) (1 - t t))``. For two classes this is
    ``(tp tn - fp fn) / sqrt((tp + fp) (tp + fn) (tn + fp) (tn + fn))``.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient" (2004).

    Args:
        classes: how many there are.

    Example:
        >>> from tlprune.learning.correlations import confusion
        >>> right, best = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
        >>> round(float(matthews(2).of_means(*confusion(right, best, 2).mean(0))), 4)
        0.5774
    """
    return Statistic(_Confusion(classes), _matthews)


def f1(positive: int = 1, *, classes: int = 2) -> Statistic:
    """``2 tp / (2 tp + fp + fn)`` of one class, from 0 to 1; 0 where it neither is right nor predicted.

    Args:
        positive: its number.
        classes: how many there are.
    """
    return Statistic(_Confusion(classes), _F1(positive))


def pearson() -> Statistic:
    """Pearson correlation of a regression's output with the target, from -1 to 1.

    Not a number if either is constant.
    """
    return Statistic(_outputs_and_targets, _pearson, _products)


def spearman() -> Statistic:
    """Pearson correlation of ranks; equal values share the mean of their ranks.

    Ranks are those among all examples, in resamples of a bootstrap too: an interval takes them as given.
    """
    return Statistic(_outputs_and_targets, _pearson, _products_of_ranks)


# ---- classes


@dataclass(frozen=True)
class _Confusion:
    classes: int

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Columns:
        return confusion(batch.answers[:, 0].to(logits.device), logits[:, 0].argmax(-1), self.classes)


def confusion(
    right: Int[Tensor, "example"], best: Int[Tensor, "example"], classes: int
) -> Float[Tensor, "example cell"]:
    """For each example a 1 in the cell ``right * classes + best`` of the flattened confusion matrix, else 0."""
    return F.one_hot(right * classes + best, classes * classes).double()


def _square(cells: tuple[Tensor, ...]) -> Float[Tensor, "right best *lead"]:
    classes = round(len(cells) ** 0.5)
    return torch.stack(cells).reshape(classes, classes, *cells[0].shape)


def _matthews(*cells: Tensor) -> Tensor:
    table = _square(cells)
    right, best = table.sum(1), table.sum(0)
    hits = table.diagonal().sum(-1)
    spread = (1 - best.square().sum(0)) * (1 - right.square().sum(0))
    known = spread > 1e-12
    return torch.where(known, (hits - (right * best).sum(0)) / spread.clamp(min=1e-12).sqrt(), 0)


@dataclass(frozen=True)
class _F1:
    positive: int

    def __call__(self, *cells: Tensor) -> Tensor:
        table = _square(cells)
        both = table[self.positive].sum(0) + table[:, self.positive].sum(0)
        return torch.where(both > 0, 2 * table[self.positive, self.positive] / both.clamp(min=1e-300), 0)


# ---- numbers


def _outputs_and_targets(logits: Logits, batch: Batch, reference: Logits) -> Columns:
    return torch.stack([exact(logits)[:, 0, 0], targets_of(batch).to(logits)], -1)


def _products(columns: Columns) -> Prepared:
    """Both, centred and scaled so that rounding does not matter, their squares and their product."""
    x, y = (_scaled(one) for one in columns.double().unbind(-1))
    return torch.stack([x, y, x * x, y * y, x * y], -1)


def _scaled(values: Tensor) -> Tensor:
    """With mean 0 and variance 1; not numbers where they differ by no more than rounding."""
    spread = values.std(correction=0)
    return (values - values.mean()) / spread.where(spread > 1e-9 * values.abs().max(), torch.nan)


def _products_of_ranks(columns: Columns) -> Prepared:
    return _products(torch.stack([ranks(one) for one in columns.unbind(-1)], -1))


def _pearson(x: Tensor, y: Tensor, xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    return (xy - x * y) / ((xx - x * x) * (yy - y * y)).sqrt()


def ranks(values: Float[Tensor, "example"]) -> Float[Tensor, "example"]:
    """From 1 for the lowest; equal values share the mean of theirs.

    Example:
        >>> ranks(torch.tensor([0.3, 0.1, 0.3, 0.9])).tolist()
        [2.5, 1.0, 2.5, 4.0]
    """
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[places]
