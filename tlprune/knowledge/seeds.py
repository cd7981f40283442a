"""What the subnetworks of several seeds share, beside chance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.evaluation.table import aligned
from tlprune.knowledge.baselines import weights_of

NEGLIGIBLE = 1e-15  # probability that is left out of a law, at each end of each matrix's


@dataclass(frozen=True)
class KnowledgeSeeds(Mapping[int, Circuit]):
    """Subnetworks of the same weights of one model, by seed; printing it says how alike they are.

    Chance draws each of them anew: in each matrix any sites alike, as many as it has.

    Attributes:
        circuits: by seed; two at least.

    Raises:
        ValueError: there are fewer, they are not of weights, or they have different sites or models.

    Source: Bayazit et al., "Discovering Knowledge-Critical Subnetworks in Pretrained Language Models" (EMNLP 2024),
    section 6; what at least two of three have is called floral there.

    Example:
        >>> import tlprune as tp
        >>> sites = tp.weights(tp.planted("induction").model, "blocks.1.mlp.W_in")
        >>> first, second, third = (torch.arange(len(sites)) % step == 0 for step in (2, 3, 4))
        >>> kept = {84: first, 1318: second, 735: third}
        >>> found = KnowledgeSeeds({seed: tp.Circuit(sites, one) for seed, one in kept.items()})
        >>> torch.equal(found.intersection.kept, torch.arange(len(sites)) % 12 == 0)
        True
        >>> torch.equal(found.floral.kept, first & second | first & third | second & third)
        True
    """

    circuits: Mapping[int, Circuit]

    def __post_init__(self) -> None:
        if len(self.circuits) < 2:
            raise ValueError(
                f"What seeds share needs two subnetworks at least but there are {len(self.circuits)}. Find more, with "
                "other seeds."
            )
        first, *others = self.circuits.values()
        weights_of(first)
        for other in others:
            first.iou(other)  # which refuses those of other sites and models

    def __getitem__(self, seed: int) -> Circuit:
        return self.circuits[seed]

    def __iter__(self) -> Any:
        return iter(self.circuits)

    def __len__(self) -> int:
        return len(self.circuits)

    @cached_property
    def counts(self) -> Int[Tensor, "site"]:
        """How many of them have each site."""
        return torch.stack([circuit.kept for circuit in self.values()]).sum(0)

    @property
    def intersection(self) -> Circuit:
        """What all have."""
        return self.in_at_least(len(self))

    @property
    def floral(self) -> Circuit:
        """What at least two have."""
        return self.in_at_least(2)

    @property
    def union(self) -> Circuit:
        """What any has."""
        return self.in_at_least(1)

    def in_at_least(self, number: int) -> Circuit:
        """What at least so many have."""
        first = next(iter(self.values()))
        told = {name: first.provenance[name] for name in ("model", "task", "ablation") if name in first.provenance}
        of = [str(seed) for seed in self]
        return first.like(self.counts >= number, {**told, "operation": "in at least", "number": number, "of": of})

    @property
    def combined(self) -> dict[str, Circuit]:
        """Intersection, floral and union by name; of two subnetworks the first two are the same."""
        return {"intersection": self.intersection, "floral": self.floral, "union": self.union}

    @property
    def iou(self) -> float:
        """Mean intersection over union of the pairs."""
        return _mean([one.iou(other) for one, other in itertools.combinations(self.values(), 2)])

    @cached_property
    def chance(self) -> float:
        """What it would be by chance, in closed form."""
        pairs = itertools.combinations(self._sizes, 2)
        return _mean([expected_iou(one, other, self._totals) for one, other in pairs])

    @property
    def excess(self) -> float:
        """Mean intersection over union less that of chance."""
        return self.iou - self.chance

    def expected(self, number: int) -> float:
        """How many sites at least so many would have by chance: the sum over matrices of Poisson-binomial tails."""
        shares = np.array(self._sizes) / np.array(self._totals)
        return float(sum(total * _tail(own, number) for total, own in zip(self._totals, shares.T, strict=True)))

    @property
    def _totals(self) -> tuple[int, ...]:
        return weights_of(next(iter(self.values()))).sizes

    @property
    def _sizes(self) -> list[list[int]]:
        """Of each subnetwork: how many sites it has in each matrix."""
        return [[int(part.sum()) for part in one.kept.split(self._totals)] for one in self.values()]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        shared = {
            name: {"sites": len(self.in_at_least(number)), "expected": self.expected(number)}
            for name, number in self._numbers.items()
        }
        alike = {"iou": self.iou, "chance": self.chance, "excess": self.excess}
        return {"sizes": {str(seed): len(one) for seed, one in self.items()}, **alike, "shared": shared}

    @property
    def _numbers(self) -> dict[str, int]:
        return {"intersection": len(self), "floral": 2, "union": 1}

    def __str__(self) -> str:
        rows = [
            [f"{name} (at least {number} of {len(self)})", f"{int((self.counts >= number).sum()):,}",
             f"{self.expected(number):,.1f}"]
            for name, number in self._numbers.items()
        ]  # fmt: skip
        alike = f"mean IoU {self.iou:.3f}, less that of chance {self.excess:.3f}"
        return "\n".join([*aligned(["", "sites", "by chance"], rows), alike])


def expected_iou(first: Sequence[int], second: Sequence[int], totals: Sequence[int]) -> float:
    """Expected intersection over union of two random sets with given numbers of each matrix's sites.

    ``sum_k P(k) k / (a + b - k)``, where the shared sites ``k`` are the sum over matrices of hypergeometric numbers.

    Args:
        first: sites of the first set in each matrix.
        second: of the second.
        totals: sites there are.

    Example:
        >>> round(expected_iou([1], [1], [2]), 6), expected_iou([0, 3], [2, 3], [4, 3])
        (0.5, 0.6)
    """
    if not (size := sum(first) + sum(second)):
        return 1.0
    least, law = 0, np.ones(1)
    for one, other, total in zip(first, second, totals, strict=True):
        start, own = _shared(one, other, total)
        least, law = least + start, np.convolve(law, own)
    shared = least + np.arange(len(law))
    return float(law @ (shared / (size - shared)))


def _shared(first: int, second: int, total: int) -> tuple[int, Float[np.ndarray, "number"]]:
    """The hypergeometric law of what two random sets of one matrix share: from which number on, and probabilities."""
    from scipy.stats import hypergeom

    least, most = (int(hypergeom.ppf(end, total, first, second)) for end in (NEGLIGIBLE, 1 - NEGLIGIBLE))
    least, most = max(least, first + second - total, 0), min(most, first, second)
    return least, hypergeom.pmf(np.arange(least, most + 1), total, first, second)


def _tail(chances: Float[np.ndarray, "circuit"], number: int) -> float:
    """Probability that at least so many of independent events happen."""
    law = np.ones(1)
    for chance in chances:
        law = np.convolve(law, [1 - chance, chance])
    return float(law[number:].sum())


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
