"""Figures of one run of a mask in one case, with intervals over facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.knowledge.answering import TOPS, Answered
from tlprune.learning.bootstrap import LEVEL, Interval, bounds, finite, resampled_means

Columns = Float[Tensor, "resample figure"]


@dataclass(frozen=True)
class Spread:
    """A mean over answers with its interval, and the ends of what it is a mean of.

    Attributes:
        mean: with its 95% interval.
        least: over single answers.
        most: over single answers.
    """

    mean: Interval
    least: float
    most: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**self.mean.as_dict(), "least": finite(self.least), "most": finite(self.most)}


@dataclass(frozen=True)
class CaseFigures:
    """How one run of a mask does in one case.

    Attributes:
        units: facts, or of text blocks, which the intervals are over.
        answers: answers that were read.
        perplexity: ``exp`` of the mean of ``-log p`` over all answers, each weighing the same.
        ratio: this perplexity over the full model's.
        change: ``log p`` of the answer less the full model's, in nats.
        rank: of the answer among all tokens, 1 for the likeliest.
        top: by ``k``: share of the answers that are among the ``k`` likeliest tokens.
    """

    units: int
    answers: int
    perplexity: Interval
    ratio: Interval
    change: Spread
    rank: Spread
    top: dict[int, Interval]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        top = {f"top_{count}": share.as_dict() for count, share in self.top.items()}
        intervals = {"perplexity": self.perplexity.as_dict(), "ratio": self.ratio.as_dict()}
        spreads = {"change": self.change.as_dict(), "rank": self.rank.as_dict()}
        return {"units": self.units, "answers": self.answers, **intervals, **spreads, **top}


def case_figures(
    found: Answered, full: Answered, groups: Int[Tensor, "example"] | None, *, resamples: int, seed: int
) -> CaseFigures:
    """Figures of a run beside the full model's on the same answers; facts are drawn whole, with all their sentences.

    Args:
        found: the run.
        full: the full model.
        groups: number of the fact that each example of the split says; ``None`` where each stands for itself.
        resamples: draws of the bootstrap.
        seed: of these.
    """
    units = found.example if groups is None else groups[found.example]
    change = full.nats - found.nats
    columns = [torch.ones_like(change), found.nats, change, found.rank, *(found.within(top) for top in TOPS)]
    sums = _sums(torch.stack([column.double() for column in columns], -1), units)
    drawn = resampled_means(sums, resamples=resamples, seed=seed)

    def of(statistic: Callable[[Columns], Tensor]) -> Interval:
        low, high = bounds(statistic(drawn)[:, None], level=LEVEL)
        return Interval(float(statistic(sums.mean(0, keepdim=True))), float(low), float(high))

    return CaseFigures(
        units=len(sums),
        answers=len(change),
        perplexity=of(lambda means: (means[:, 1] / means[:, 0]).exp()),
        ratio=of(lambda means: (-means[:, 2] / means[:, 0]).exp()),
        change=Spread(of(_mean_of(2)), float(change.min()), float(change.max())),
        rank=Spread(of(_mean_of(3)), float(found.rank.min()), float(found.rank.max())),
        top={top: of(_mean_of(4 + place)) for place, top in enumerate(TOPS)},
    )


def _mean_of(column: int) -> Callable[[Columns], Tensor]:
    return lambda means: means[:, column] / means[:, 0]


def _sums(values: Float[Tensor, "place figure"], units: Int[Tensor, "place"]) -> Float[Tensor, "unit figure"]:
    """Values added up over the places of each unit; the first column of ones counts them."""
    _, places = units.unique(return_inverse=True)
    return values.new_zeros(int(places.max()) + 1, values.shape[1]).index_add_(0, places, values)
