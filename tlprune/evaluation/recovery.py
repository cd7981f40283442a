"""Scores and circuits against a known circuit: ROC, average precision, precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.incidence import writers_of_edges
from tlprune.scores import Scores
from tlprune.selection.ranked import graph_of
from tlprune.sites import Nodes, Sites


@dataclass(frozen=True)
class Recovery:
    """How well scores tell the sites of a known circuit from all others; printing it gives a line.

    Attributes:
        kind: of the sites.
        true: sites in the known circuit.
        total: sites in all.
        roc_auc: chance that a true site ranks above another one, ties counting a half: the area under the ROC curve
            with straight lines between its points.
        stairs_auc: the area under its lower stairs: between two points the lower rate of true sites (ACDC's).
        average_precision: mean over true sites of the precision at their rank, ``sum_i (R_i - R_{i-1}) P_i``.
        precision: share of true ones among the first ``true`` sites; of ties, what a random order gives on average.
    """

    kind: str
    true: int
    total: int
    roc_auc: float
    stairs_auc: float
    average_precision: float
    precision: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"ROC AUC {self.roc_auc:.3f} (lower stairs {self.stairs_auc:.3f}), average precision "
            f"{self.average_precision:.3f}, precision at {self.true:,} {self.precision:.3f}; {self.true:,} of "
            f"{self.total:,} {self.kind} are true"
        )


def recovery(scores: Scores, truth: Circuit) -> Recovery:
    """Hold scores against a known circuit.

    ROC curves saturate where few sites are true, so read them beside average precision, whose value by chance is
    ``true / total``. For nodes give ``tp.node_scores(scores)`` and ``tp.Circuit.from_nodes(graph, truth.nodes)``; for
    sites that matter either way, ``scores.absolute``.

    Source: Conmy et al., "Towards Automated Circuit Discovery" (2023), section 4, for ROC curves and their stairs.

    Args:
        scores: a number for every site.
        truth: the known circuit.

    Raises:
        ValueError: the sites differ, or all of them are true, or none.

    Example:
        >>> import tlprune as tp
        >>> truth = tp.planted("copy").circuit
        >>> print(recovery(Scores(truth.sites, truth.kept.float()), truth))
        ROC AUC 1.000 (lower stairs 1.000), average precision 1.000, precision at 2 1.000; 2 of 110 edges are true
    """
    _check(scores.sites, truth)
    true, found = _counts(scores.values.detach().cpu().double(), truth.kept.cpu())
    hits, false = true / len(truth), found / (len(truth.sites) - len(truth))
    precisions = true / (true + found)
    return Recovery(
        " + ".join(scores.sites.kinds),
        len(truth),
        len(truth.sites),
        _area(false, hits),
        _area(false, hits, stairs=True),
        float((hits.diff(prepend=hits.new_zeros(1)) * precisions).sum()),
        _at(true, found, len(truth)) / len(truth),
    )


def circuits_auc(circuits: Sequence[Circuit], truth: Circuit) -> tuple[float, float]:
    """Areas under the ROC curve of several circuits, straight and by its lower stairs.

    For methods that give circuits and no scores, such as ACDC at several thresholds. Each circuit is a point; points
    that another one beats in both rates are left out; the empty circuit and the full model are added.

    Source: Conmy et al., "Towards Automated Circuit Discovery" (2023), section 4.

    Args:
        circuits: of any sizes.
        truth: the known circuit.

    Raises:
        ValueError: the sites differ, or all of them are true, or none.

    Example:
        >>> import tlprune as tp
        >>> truth = tp.planted("copy").circuit
        >>> half = tp.Circuit(truth.sites, truth.kept & (truth.kept.cumsum(0) == 1))
        >>> circuits_auc([half], truth)  # one of two true edges and no other
        (0.75, 0.5)
    """
    for circuit in circuits:
        _check(circuit.sites, truth)
    points = {(0.0, 0.0), (1.0, 1.0)}
    for circuit in circuits:
        hits = int((circuit.kept & truth.kept).sum())
        points.add(((len(circuit) - hits) / (len(truth.sites) - len(truth)), hits / len(truth)))
    best = [one for one in points if not any(_beats(other, one) for other in points)]
    false, hits = torch.tensor([*sorted(best), (1.0, 1.0)], dtype=torch.float64).unbind(1)
    return _area(false, hits), _area(false, hits, stairs=True)


def _beats(other: tuple[float, float], one: tuple[float, float]) -> bool:
    return other != one and other[0] <= one[0] and other[1] >= one[1]


def node_scores(scores: Scores) -> Scores:
    """Scores of writers: that of a node is the highest of the edges that come from it.

    So the nodes above a threshold are the nodes of the circuit of all edges above it, ``scores.top(...).nodes``.

    Args:
        scores: of edges, without spans.

    Example:
        >>> import tlprune as tp
        >>> truth = tp.planted("copy").circuit
        >>> ranked = node_scores(Scores(truth.sites, truth.kept.float()))
        >>> ranked.top(threshold=0.5).names == truth.nodes
        True
    """
    graph, values = graph_of(scores, "node_scores"), scores.values.detach().cpu()
    best = values.new_full((len(graph.writers),), -torch.inf)
    best = best.scatter_reduce(0, writers_of_edges(graph), values, "amax")
    return Scores(Sites((Nodes("nodes", graph.writers),)), best, scores.provenance)


def _check(sites: Sites, truth: Circuit) -> None:
    if sites != truth.sites:
        raise ValueError(
            f"What is held against a known circuit needs its sites, {truth.sites}, but has {sites}. Score the same "
            "model with the same convention."
        )
    if not 0 < len(truth) < len(truth.sites):
        raise ValueError(
            f"A known circuit needs some sites and must lack some, but this one has {len(truth):,} of "
            f"{len(truth.sites):,}. Give another one."
        )


def _counts(
    values: Float[Tensor, "site"], true: Bool[Tensor, "site"]
) -> tuple[Float[Tensor, "rank"], Float[Tensor, "rank"]]:
    """True and other sites above each value that occurs, itself included, highest first."""
    _, ranks = (-values).unique(return_inverse=True)
    return tuple(_sums(ranks, one).cumsum(0) for one in (true, ~true))  # pyright: ignore[reportReturnType]


def _sums(ranks: Int[Tensor, "site"], ones: Bool[Tensor, "site"]) -> Float[Tensor, "rank"]:
    return torch.zeros(int(ranks.max()) + 1, dtype=torch.float64).index_add(0, ranks, ones.double())


def _area(false: Float[Tensor, "point"], hits: Float[Tensor, "point"], *, stairs: bool = False) -> float:
    """Under a curve from (0, 0) through the points: straight between them, or at the height of the lower."""
    false, hits = (torch.cat([one.new_zeros(1), one]) for one in (false, hits))
    heights = hits[:-1] if stairs else (hits[:-1] + hits[1:]) / 2
    return float((false.diff() * heights).sum())


def _at(true: Float[Tensor, "rank"], other: Float[Tensor, "rank"], count: int) -> float:
    """True sites expected among the first so many."""
    all_of = true + other
    rank = int(torch.searchsorted(all_of, torch.tensor(float(count), dtype=torch.float64)))
    before, hits = (float(one[rank - 1]) if rank else 0.0 for one in (all_of, true))
    return hits + (count - before) * (float(true[rank]) - hits) / (float(all_of[rank]) - before)
