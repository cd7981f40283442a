"""Figures of many runs on the same examples, under one bootstrap of these examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.learning.bootstrap import Interval, bounds, resampled_means
from tlprune.statistic import Measured


@dataclass(frozen=True)
class Resampled:
    """A figure of several runs.

    Attributes:
        values: on the examples at hand.
        drawn: on resampled examples, the same for all runs.
    """

    values: Float[Tensor, "*run"]
    drawn: Float[Tensor, "resample *run"]

    def at(self, *index: int | slice) -> Resampled:
        """Some of the runs, by their axes."""
        return Resampled(self.values[index], self.drawn[(slice(None), *index)])

    def shaped(self, *shape: int) -> Resampled:
        """The runs along several axes."""
        return Resampled(self.values.view(shape), self.drawn.view(len(self.drawn), *shape))

    @property
    def mean(self) -> Resampled:
        """The mean over all runs."""
        return Resampled(self.values.mean(), self.drawn.flatten(1).mean(1))

    def less(self, other: Resampled) -> Resampled:
        """The paired difference."""
        return Resampled(self.values - other.values, self.drawn - other.drawn)

    @property
    def interval(self) -> Interval:
        """The value of one run with its 95% percentile interval over examples."""
        low, high = bounds(self.drawn[:, None])
        return Interval(float(self.values), float(low), float(high))


def resampled(runs: Sequence[Measured], *, seed: int) -> Resampled:
    """One figure of several runs that were measured on the same examples.

    Args:
        runs: the figure's columns in each run.
        seed: of the draws.

    Example:
        >>> one = Measured(torch.tensor([[1.0], [0.0]]), lambda mean: mean)
        >>> both = resampled([one, one], seed=0)
        >>> both.values.tolist(), both.at(0).less(both.at(1)).interval
        ([0.5, 0.5], Interval(value=0.0, low=0.0, high=0.0))
    """
    table = torch.stack([one.columns.double() for one in runs], 1)
    drawn = resampled_means(table.flatten(1), seed=seed).view(-1, *table.shape[1:])
    of_means = runs[0].of_means
    return Resampled(of_means(*table.mean(0).unbind(-1)), of_means(*drawn.unbind(-1)))
