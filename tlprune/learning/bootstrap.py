"""Intervals over examples by the percentile bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95
_MOST_NUMBERS = 1 << 24  # of a table of counts, so that many examples need no more memory than few
_MOST_COLUMNS = 1000  # torch.quantile takes 16 million numbers at most


@dataclass(frozen=True)
class Interval:
    """A figure of the examples at hand, and where it would lie for others like them.

    Attributes:
        value: of the examples at hand.
        low: lower end of the interval.
        high: upper end.

    Example:
        >>> Interval(0.5, 0.25, 0.75).sign, Interval(0.5, -0.25, 0.75).sign, Interval(-1.0, -2.0, -0.5).sign
        (1, 0, -1)
    """

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 if the whole interval lies above zero, -1 if below, 0 if it includes zero or is not known."""
        return int(self.low > 0) - int(self.high < 0)

    def as_dict(self) -> dict[str, float | None]:
        """Plain data; what is not finite becomes ``None``, which JSON can say."""
        return {name: finite(value) for name, value in vars(self).items()}

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def finite(value: float) -> float | None:
    """The number, or ``None`` if it is infinite or not a number."""
    return value if math.isfinite(value) else None


def interval(
    statistic: Callable[..., Any],
    *columns: Float[Tensor, "_"],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """A function of means over examples, with its percentile bootstrap interval.

    Examples are drawn with replacement, all columns of one example together, so that a ratio or a difference of means
    over the same examples is *paired*. The interval reaches from quantile ``(1 - level) / 2`` of the resampled
    statistic to quantile ``(1 + level) / 2``. It is of the choice of examples alone, not of a method's seed.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.

    Args:
        statistic: takes the mean of each column, or many such means at once, and works element by element.
        columns: one number per example each.
        resamples: how many times the examples are drawn.
        level: nominal coverage.
        seed: of the draws.

    Raises:
        ValueError: there are no examples, or columns of different lengths.

    Example:
        >>> values = torch.arange(100.0)
        >>> print(interval(lambda mean: mean, values))
        49.5 [43.84, 55.26]
        >>> print(interval(lambda first, second: first - second, values, values))
        0 [0, 0]
    """
    lengths = {len(column) for column in columns}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            f"A bootstrap needs columns with one number for each of the same examples but got {sorted(lengths)} "
            "numbers. Measure everything on one batch that is not empty."
        )
    table = torch.stack([column.cpu().double() for column in columns], -1)
    drawn = statistic(*resampled_means(table, resamples=resamples, seed=seed).unbind(-1))
    low, high = bounds(drawn[:, None], level=level)
    return Interval(float(statistic(*table.mean(0))), float(low), float(high))


def resampled_means(
    values: Float[Tensor, "example figure"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Float[Tensor, "resample figure"]:
    """Means over examples drawn with replacement; the draws depend on seed and number of examples alone."""
    generator, count = torch.Generator().manual_seed(seed), len(values)
    size = max(1, _MOST_NUMBERS // count)
    table = values.cpu().double()
    sizes = [min(size, resamples - start) for start in range(0, resamples, size)]
    return torch.cat([_counts(part, count, generator) @ table for part in sizes]) / count


def _counts(resamples: int, count: int, generator: torch.Generator) -> Float[Tensor, "resample example"]:
    """How often each example was drawn."""
    drawn = torch.randint(count, (resamples, count), generator=generator)
    ones = torch.ones(drawn.shape, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, drawn, ones)


def bounds(
    drawn: Float[Tensor, "resample figure"], *, level: float = LEVEL
) -> tuple[Float[Tensor, "figure"], Float[Tensor, "figure"]]:
    """The percentile interval of each resampled figure."""
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=drawn.dtype)
    parts = drawn.split(_MOST_COLUMNS, dim=1)
    low, high = torch.cat([torch.quantile(part, ends, dim=0) for part in parts], 1)
    return low, high
