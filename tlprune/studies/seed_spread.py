"""How far the figures of several seeds lie apart, and how far they would for want of examples alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from jaxtyping import Float
from torch import Tensor

from tlprune.learning.bootstrap import resampled_means


@dataclass(frozen=True)
class SeedSpread:
    """A figure of several seeds that were measured on the same examples.

    Of seeds that do not differ at all in the long run, each measured figure is off by another amount, because the
    examples are few: ``sampling`` and ``sampling_range`` say how far apart that puts them.

    Attributes:
        seeds: how many there are.
        mean: over seeds.
        low: of the worst seed.
        high: of the best seed.
        deviation: standard deviation over seeds (divided by one less than their number); ``None`` for one seed.
        sampling: the part of ``deviation`` that the choice of examples alone gives; ``None`` for one seed or example.
        sampling_range: what ``high - low`` would be on average by the choice of examples alone; ``None`` as above.
    """

    seeds: int
    mean: float
    low: float
    high: float
    deviation: float | None
    sampling: float | None
    sampling_range: float | None

    @property
    def range(self) -> float:
        """The best seed less the worst."""
        return self.high - self.low

    @property
    def beyond(self) -> float | None:
        """Standard deviation over seeds if there were examples without end: the root of the two variances' difference.

        0 where the examples explain more than there is; ``None`` for one seed or example.
        """
        if self.deviation is None or self.sampling is None:
            return None
        return math.sqrt(max(0.0, self.deviation**2 - self.sampling**2))

    def as_dict(self) -> dict[str, float | None]:
        """Plain data."""
        return {**asdict(self), "range": self.range, "beyond": self.beyond}


def seed_spread(
    values: Float[Tensor, "example seed"], drawn: Float[Tensor, "resample seed"] | None = None
) -> SeedSpread:
    """The spread over seeds of a mean over examples.

    With ``x_is`` the value of example ``i`` and seed ``s``, ``n`` examples, ``k`` seeds and ``d_is = x_is - x_i.``
    (less the example's mean over seeds), the variance over seeds is on average that of examples without end plus

        sampling^2 = 1 / (n (k - 1)) sum_s Var_i(d_is)

    where ``Var`` divides by ``n - 1``. It is *paired*: where all seeds get the same examples right it is 0, and of
    seeds that err apart it is the binomial ``p (1 - p) / n``. The range is averaged over bootstrap samples of the
    examples, of each seed's mean less its own mean on all examples.

    Args:
        values: such as 1 for each right answer.
        drawn: means over resampled examples, if already known; see
            :func:`~tlprune.learning.bootstrap.resampled_means`.

    Example:
        >>> import torch
        >>> print(seed_spread(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])).deviation)
        0.1767766952966369
        >>> seed_spread(torch.tensor([[1.0, 1.0], [0.0, 0.0]])).sampling
        0.0
    """
    table = values.double()
    examples, seeds = table.shape
    means = table.mean(0)
    known = SeedSpread(seeds, float(means.mean()), float(means.min()), float(means.max()), None, None, None)
    if seeds == 1:
        return known
    deviation = float(means.std())
    if examples == 1:
        return SeedSpread(seeds, known.mean, known.low, known.high, deviation, None, None)
    apart = (resampled_means(table) if drawn is None else drawn) - means
    sampling_range = float((apart.amax(1) - apart.amin(1)).mean())
    return SeedSpread(seeds, known.mean, known.low, known.high, deviation, _sampling(table), sampling_range)


def _sampling(table: Float[Tensor, "example seed"]) -> float:
    examples, seeds = table.shape
    own = table - table.mean(1, keepdim=True)
    return math.sqrt(float(own.var(0).sum()) / (examples * (seeds - 1)))
