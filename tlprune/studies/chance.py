"""How many sites random subnetworks share: exact laws for sets of given sizes that are drawn independently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Shared:
    """How many subnetworks keep each site of one kind, beside what random ones of the same sizes would.

    Each random subnetwork keeps as many sites of this kind as the true one does, any of them alike, independently of
    the others. The number that all of them keep follows a chain of hypergeometric laws, the number of them that keep a
    given site a Poisson-binomial law; both are exact.

    Attributes:
        counts: by name of the site: how many subnetworks keep it.
        sizes: of each subnetwork: how many sites of this kind it keeps.
    """

    counts: Mapping[str, int]
    sizes: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Those that all subnetworks keep."""
        return tuple(name for name, count in self.counts.items() if count == len(self.sizes))

    @property
    def expected(self) -> float:
        """How many all would keep by chance: ``total * prod(size / total)``."""
        total = len(self.counts)
        return float(total * np.prod([size / total for size in self.sizes])) if total else 0.0

    @property
    def tail(self) -> float:
        """Probability that all keep at least as many by chance."""
        return float(_shared_by_all(self.sizes, len(self.counts))[len(self.names) :].sum())

    @property
    def histogram(self) -> tuple[int, ...]:
        """How many sites are kept by 0, 1, ..., all of the subnetworks."""
        return tuple(np.bincount([*self.counts.values()], minlength=len(self.sizes) + 1).tolist())

    @property
    def expected_histogram(self) -> tuple[float, ...]:
        """The same by chance: the mean numbers."""
        total = len(self.counts)
        return tuple((total * _kept_by([size / max(total, 1) for size in self.sizes])).tolist())

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "counts": dict(self.counts),
            "sizes": list(self.sizes),
            "kept_by_all": list(self.names),
            "expected": self.expected,
            "tail": self.tail,
            "histogram": list(self.histogram),
            "expected_histogram": list(self.expected_histogram),
        }


def _shared_by_all(sizes: Sequence[int], total: int) -> Float[np.ndarray, "number"]:
    """Probability that random sets of these sizes share exactly 0, 1, ... sites.

    What a set shares with the sets before it is hypergeometric, given how many these share.
    """
    from scipy.stats import hypergeom

    law = np.zeros(total + 1)
    law[sizes[0]] = 1
    numbers = np.arange(total + 1)
    for size in sizes[1:]:
        able = law.nonzero()[0]
        law = law[able] @ hypergeom.pmf(numbers, total, able[:, None], size)
    return law


def _kept_by(chances: Sequence[float]) -> Float[np.ndarray, "number"]:
    """Probability that exactly 0, 1, ... of independent events happen: the Poisson-binomial law."""
    law = np.ones(1)
    for chance in chances:
        law = np.convolve(law, [1 - chance, chance])
    return law
