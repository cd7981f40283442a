"""How alike circuits are, less how alike they would be by chance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.connecting import Edges
from tlprune.evaluation.table import aligned
from tlprune.flow import Flow
from tlprune.learning.bootstrap import RESAMPLES, Interval, bounds
from tlprune.random_circuits import connected_random

Chance = Literal["uniform", "connected"]
STABILITY = ["circuits", "mean IoU [95%]", "chance", "excess", "in all", "in any"]


@dataclass(frozen=True)
class Overlap:
    """Two circuits of the same sites; printing it gives a line.

    Attributes:
        iou: intersection over union.
        chance: expected intersection over union with a random circuit of the second one's size.
        shared: sites in both.
        sizes: sites in the first, in the second, and in all.
    """

    iou: float
    chance: float
    shared: int
    sizes: tuple[int, int, int]

    @property
    def excess(self) -> float:
        """Intersection over union less that of chance; 0 for what a random circuit does."""
        return self.iou - self.chance

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "sizes": list(self.sizes), "excess": self.excess}

    def __str__(self) -> str:
        first, second, total = self.sizes
        return (
            f"IoU {self.iou:.3f}, less chance {self.excess:.3f}; {self.shared:,} shared by {first:,} and {second:,} of "
            f"{total:,}"
        )


def overlap(
    first: Circuit, second: Circuit, *, chance: Chance = "connected", samples: int = 100, seed: int = 0
) -> Overlap:
    """Intersection over union of two circuits, beside that of chance.

    Chance is the mean over random circuits of the second one's size, held against the first: ``"uniform"``, any sites,
    in closed form, ``sum_k P(k) k / (a + b - k)`` with ``k`` hypergeometric; ``"connected"``, edges on paths
    (:func:`~tlprune.connected_random`), of ``samples`` draws. Random connected circuits share the few edges next to
    the embeddings and the logits more often than others, so that chance is higher for them.

    Args:
        first: one circuit.
        second: another of the same sites.
        chance: which circuits are drawn; ``"connected"`` for edges alone.
        samples: how many connected circuits.
        seed: of the draws.

    Raises:
        ValueError: the circuits have different sites or models, or are not of edges.

    Example:
        >>> import tlprune as tp
        >>> truth = tp.planted("copy").circuit
        >>> print(overlap(truth, truth, chance="uniform"))
        IoU 1.000, less chance 0.988; 2 shared by 2 and 2 of 110
    """
    iou = first.iou(second)
    expected = uniform_chance(len(first), len(second), len(first.kept)) if chance == "uniform" else None
    if expected is None:
        expected = _connected(first, len(second), samples, seed)
    shared = int((first.kept & second.kept).sum())
    return Overlap(iou, expected, shared, (len(first), len(second), len(first.kept)))


@lru_cache(maxsize=4096)  # subnetworks of a study have few sizes
def uniform_chance(first: int, second: int, total: int) -> float:
    """Expected intersection over union of a set of a size with a random one of another, ``sum_k P(k) k / (a + b - k)``.

    Overlaps that are more than 40 standard deviations from the mean are left out, so sets of 10^8 are no burden.

    Example:
        >>> uniform_chance(1, 1, 4), uniform_chance(0, 0, 4)
        (0.25, 1.0)
    """
    from scipy.stats import hypergeom

    if first + second == 0:
        return 1.0
    share = first / total
    mean = share * second
    reach = 40 * (1 + math.sqrt(mean * (1 - share) * (total - second) / max(1, total - 1)))
    low, high = max(0, first + second - total, int(mean - reach)), min(first, second, int(mean + reach) + 1)
    able = np.arange(low, high + 1)
    chances = hypergeom.pmf(able, total, first, second)
    return float((chances * able / (first + second - able)).sum() / chances.sum())


def _connected(first: Circuit, count: int, samples: int, seed: int) -> float:
    if first.sites.kinds != ("edges",) or samples < 1:
        raise ValueError(
            f"Connected random circuits need edges, and at least 1 sample, but got {first.sites} and "
            f"{samples} samples. Use chance='uniform'."
        )
    own, drawn = first.kept.cpu(), _drawn(first.sites.edges, first.sites.flow, count, samples, seed)
    either = (drawn | own).sum(1).clamp(min=1)
    both = (drawn & own).sum(1) if count or len(first) else either
    return float((both / either).double().mean())


@lru_cache(maxsize=8)  # many circuits are held against the same one
def _drawn(edges: Edges, flow: Flow | None, count: int, samples: int, seed: int) -> Bool[Tensor, "sample edge"]:
    # The flow is in the edges; it is told apart here because edges that differ in it alone are equal.
    return torch.stack([connected_random(edges, count, seed=seed + sample).kept for sample in range(samples)])


@dataclass(frozen=True)
class Stability:
    """How alike the circuits of several seeds or resamples are; printing it gives a table.

    Attributes:
        pairs: every pair of circuits.
        in_all: sites that all circuits have.
        in_any: sites that at least one has.
        sizes: of the circuits.
    """

    pairs: tuple[Overlap, ...]
    in_all: int
    in_any: int
    sizes: tuple[int, ...]

    @property
    def iou(self) -> float:
        """Mean intersection over union of the pairs."""
        return sum(pair.iou for pair in self.pairs) / len(self.pairs)

    @property
    def chance(self) -> float:
        """What it would be by chance."""
        return sum(pair.chance for pair in self.pairs) / len(self.pairs)

    @property
    def excess(self) -> float:
        """Mean intersection over union less that of chance."""
        return self.iou - self.chance

    @property
    def matrix(self) -> Float[Tensor, "circuit circuit"]:
        """Intersection over union of each pair, 1 of a circuit with itself."""
        found = torch.eye(len(self.sizes), dtype=torch.float64)
        first, second = torch.combinations(torch.arange(len(self.sizes)), 2).T
        found[first, second] = found[second, first] = torch.tensor(
            [pair.iou for pair in self.pairs], dtype=torch.float64
        )
        return found

    @property
    def interval(self) -> Interval | None:
        """95% for the mean intersection over union, by the bootstrap over circuits; ``None`` for fewer than three.

        Pairs that share a circuit are no independent draws, so circuits are drawn, not pairs; a circuit drawn twice is
        no pair with itself.
        """
        count = len(self.sizes)
        if count < 3:
            return None
        drawn = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(0))
        times = torch.zeros(RESAMPLES, count, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(drawn.shape).double()
        )
        apart = self.matrix.fill_diagonal_(0)
        pairs = times.sum(1).square() - times.square().sum(1)
        means = torch.einsum("ri,ij,rj->r", times, apart, times)[pairs > 0] / pairs[pairs > 0]
        low, high = bounds(means[:, None])
        return Interval(self.iou, float(low), float(high))

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        counts = {"in_all": self.in_all, "in_any": self.in_any, "sizes": list(self.sizes)}
        known = {"interval": None if self.interval is None else self.interval.as_dict()}
        return {"iou": self.iou, "chance": self.chance, "excess": self.excess, **known, **counts}

    def row(self) -> list[str]:
        """Its figures as cells of a table: circuits, IoU with interval, chance, excess, in all, in any."""
        bounded = "" if self.interval is None else f" [{self.interval.low:.3f}, {self.interval.high:.3f}]"
        figures = [f"{self.iou:.3f}{bounded}", f"{self.chance:.3f}", f"{self.excess:.3f}"]
        return [str(len(self.sizes)), *figures, f"{self.in_all:,}", f"{self.in_any:,}"]

    def __str__(self) -> str:
        return "\n".join(aligned(STABILITY, [self.row()]))


def stability(
    circuits: Sequence[Circuit], *, chance: Chance = "connected", samples: int = 20, seed: int = 0
) -> Stability:
    """Mean intersection over union of all pairs of circuits, less that of chance.

    Args:
        circuits: found under several seeds, or on several resamples of the data; two at least.
        chance: as of :func:`overlap`.
        samples: random circuits for each pair.
        seed: of the draws.

    Raises:
        ValueError: there are fewer than two circuits, or they have different sites or models.

    Example:
        >>> import tlprune as tp
        >>> graph = tp.planted("copy").circuit.graph
        >>> chance = [tp.connected_random(graph, 20, seed=seed) for seed in range(8)]
        >>> abs(stability(chance).excess) < 0.05
        True
    """
    if len(circuits) < 2:
        raise ValueError(f"Stability compares circuits but got {len(circuits)}. Find several, under several seeds.")
    pairs = [
        overlap(*pair, chance=chance, samples=samples, seed=seed + place * samples)
        for place, pair in enumerate(itertools.combinations(circuits, 2))
    ]
    kept = torch.stack([circuit.kept for circuit in circuits])
    return Stability(tuple(pairs), int(kept.all(0).sum()), int(kept.any(0).sum()), tuple(map(len, circuits)))
