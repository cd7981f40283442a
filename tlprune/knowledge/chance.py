"""How many weights of a part a random subnetwork of the same size would have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

LEVEL = 0.95
_MOST_EXACT = 100.0  # standard deviation in sites: a normal law is as good beyond it, and sums of terms are long


@dataclass(frozen=True)
class Sample:
    """Sites of a part that stand for equally many of its weights each.

    Attributes:
        sites: how many there are.
        kept: how many of them are in the subnetwork.
        each: weights of the part that one stands for: more than 1 where a row or column is one site.
    """

    sites: int
    kept: int
    each: int = 1


@dataclass(frozen=True)
class Chance:
    """Weights of a part in a subnetwork that is drawn uniformly from all with as many sites.

    The number of sites is hypergeometric. Where the sites of a part stand for different numbers of weights ``w``, the
    number of weights has mean ``K/N sum w`` and variance ``K (N - K) / (N (N - 1)) (sum w^2 - (sum w)^2 / N)`` with
    ``K`` of ``N`` sites drawn, and is taken to be normal; so is a number of sites with a standard deviation above 100.

    Attributes:
        samples: the sites of the part.
        drawn: sites in the subnetwork, of all parts.
        total: sites that could be in it.

    Example:
        >>> one = Chance((Sample(4, 4),), drawn=4, total=8)
        >>> one.mean, one.interval(), round(one.p_value, 4)
        (2.0, (1.0, 3.0), 0.0286)
    """

    samples: tuple[Sample, ...]
    drawn: int
    total: int

    @property
    def mean(self) -> float:
        """Weights to be expected."""
        return self.drawn / self.total * self._sum(1)

    @property
    def spread(self) -> float:
        """Standard deviation of the number of weights."""
        if self.total < 2:
            return 0.0
        share = self.drawn * (self.total - self.drawn) / (self.total * (self.total - 1))
        return math.sqrt(max(0.0, share * (self._sum(2) - self._sum(1) ** 2 / self.total)))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Where the number of weights lies with at least this probability (about, where normal)."""
        law, unit = self._law()
        most = self._sum(1)
        low, high = (min(max(float(law.ppf(end)) * unit, 0.0), most) for end in ((1 - level) / 2, (1 + level) / 2))
        return (low, high) if self.spread else (self.mean, self.mean)

    @property
    def p_value(self) -> float:
        """Twice the probability of so many weights or more, or of so many or fewer, whichever is smaller."""
        if not self.spread:
            return 1.0
        law, unit = self._law()
        found = sum(sample.kept * sample.each for sample in self.samples) / unit
        return float(min(1.0, 2 * min(law.cdf(found), law.sf(found - self._exact))))

    @property
    def _exact(self) -> bool:
        return len({sample.each for sample in self.samples}) == 1 and self.spread <= _MOST_EXACT * self.samples[0].each

    def _law(self) -> tuple[Any, int]:
        """A distribution of scipy, and how many weights it counts in."""
        from scipy.stats import hypergeom, norm

        if self._exact:
            return hypergeom(self.total, self.drawn, sum(sample.sites for sample in self.samples)), self.samples[0].each
        return norm(self.mean, self.spread), 1

    def _sum(self, power: int) -> float:
        return float(sum(sample.sites * sample.each**power for sample in self.samples))
