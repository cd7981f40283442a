"""The effective size of a checkpoint: how few heads and MLPs do as well as all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.evaluation.table import aligned, number
from tlprune.learning.bootstrap import Interval, bounds, resampled_means

MARGIN = 0.03
_ROUNDING = 1e-9  # of accuracies: 0.80 is not above 0.83 - 0.03, whatever floating point makes of that


@dataclass(frozen=True)
class EffectiveSize:
    """The smallest size, in percent, whose mean accuracy is within a margin of the full model's; or all of it.

    Attributes:
        percent: ``100 - S``, ``S`` the largest sparsity in percent with ``mean > full - margin``; 100 where none has.
        full: accuracy of the full model.
        margin: how much lower a subnetwork's may be.
        means: mean accuracy over seeds, by sparsity, highest first.
        each: the same rule for each seed by itself, in percent.
        interval: of ``percent``, 95% by the bootstrap over seeds; ``None`` for a single seed.
    """

    percent: float
    full: float
    margin: float
    means: Mapping[float, float]
    each: tuple[float, ...]
    interval: Interval | None

    @property
    def mean_each(self) -> float:
        """Mean over seeds of each one's own effective size: the figure that the released scripts plot."""
        return sum(self.each) / len(self.each)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "percent": self.percent,
            "interval": None if self.interval is None else self.interval.as_dict(),
            "each": list(self.each),
            "mean_each": self.mean_each,
            "full": self.full,
            "margin": self.margin,
            "means": [{"sparsity": sparsity, "accuracy": mean} for sparsity, mean in self.means.items()],
        }

    def __str__(self) -> str:
        least = self.full - self.margin
        rows = [
            [f"{100 * sparsity:g}%", number(mean, 3), "yes" if mean - least > _ROUNDING else "no"]
            for sparsity, mean in self.means.items()
        ]
        interval = "" if self.interval is None else f" [{self.interval.low:g}, {self.interval.high:g}]"
        last = f"effective size {self.percent:g}%{interval}, the mean of each seed's own {number(self.mean_each, 1)}%"
        return "\n".join([*aligned(["removed", "accuracy", f"above {number(least, 3)}"], rows), last])


def effective_size(
    accuracies: Mapping[float, Sequence[float]], full: float, *, margin: float = MARGIN, seed: int = 0
) -> EffectiveSize:
    """The effective size of a model by the accuracies of its subnetworks.

    Sparsities are tried from the highest down, and the first whose mean accuracy over seeds lies above
    ``full - margin`` counts; what is exactly there does not. Accuracy need not fall with sparsity. The released scripts
    do this for each seed by itself and then average, which is ``mean_each``; the two differ where
    seeds do.

    Args:
        accuracies: by sparsity, the fraction removed: one for each seed, the seeds in the same order everywhere.
        full: accuracy of the full model.
        margin: how much lower a subnetwork's may be.
        seed: of the bootstrap, which draws seeds, all sparsities of one together.

    Raises:
        ValueError: there are no accuracies, or of some sparsities more than of others, some are not numbers,
            sparsities are no fractions, or the margin is negative.

    Source: Bhaskar, Friedman, Chen, "The Heuristic Core" (ACL 2024), section 6.

    Example:
        >>> found = effective_size({0.3: [0.82, 0.84], 0.5: [0.83, 0.81], 0.7: [0.70, 0.80]}, 0.84)
        >>> found.percent, found.each
        (50.0, (50.0, 70.0))
        >>> print(found)
        removed  accuracy  above 0.810
        70%         0.750           no
        50%         0.820          yes
        30%         0.830          yes
        effective size 50% [50, 70], the mean of each seed's own 60.0%
    """
    _check(accuracies, full, margin)
    sparsities = sorted(accuracies, reverse=True)
    table = torch.tensor([list(accuracies[sparsity]) for sparsity in sparsities], dtype=torch.float64).T
    least, means = full - margin, table.mean(0)
    percent = float(_sizes(means[None], sparsities, least))
    found = dict(zip(sparsities, means.tolist(), strict=True))
    each = tuple(_sizes(table, sparsities, least).tolist())
    return EffectiveSize(percent, full, margin, found, each, _interval(table, sparsities, least, percent, seed))


def _sizes(means: Float[Tensor, "case sparsity"], sparsities: Sequence[float], least: float) -> Float[Tensor, "case"]:
    """In percent: 100 less the first sparsity that is above; 100 where none is."""
    sizes = torch.tensor([*(round(100 - 100 * sparsity, 10) for sparsity in sparsities), 100.0], dtype=torch.float64)
    above = torch.cat([means - least > _ROUNDING, torch.ones(len(means), 1, dtype=torch.bool)], 1)
    return sizes[above.int().argmax(1)]


def _interval(
    table: Float[Tensor, "seed sparsity"], sparsities: Sequence[float], least: float, percent: float, seed: int
) -> Interval | None:
    if len(table) < 2:
        return None
    drawn = _sizes(resampled_means(table, seed=seed), sparsities, least)
    low, high = bounds(drawn[:, None])
    return Interval(percent, float(low), float(high))


def _check(accuracies: Mapping[float, Sequence[float]], full: float, margin: float) -> None:
    counts = {len(values) for values in accuracies.values()}
    if len(counts) != 1 or 0 in counts:
        given = ", ".join(f"{len(values)} of {sparsity:g}" for sparsity, values in accuracies.items()) or "none"
        raise ValueError(
            f"An effective size needs accuracies of the same seeds at each sparsity but got {given}. Give the seeds "
            "that all have."
        )
    if not all(map(math.isfinite, [full, *(value for values in accuracies.values() for value in values)])):
        raise ValueError("An effective size needs accuracies that are numbers but some are not. Measure these again.")
    if not all(0 <= sparsity < 1 for sparsity in accuracies) or not margin >= 0:
        raise ValueError(
            f"Sparsities must be fractions removed and the margin must not be negative, but they are "
            f"{', '.join(f'{sparsity:g}' for sparsity in accuracies)} and {margin:g}. Give 0.5 for 50%."
        )
