"""Selections less what lies on no path, of a given size before or after."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.incidence import rows, writers_of_edges
from tlprune.scores import Scores, check_count, first
from tlprune.selection.ranked import Selection, Top, graph_of, ranking, taken, told


@dataclass(frozen=True)
class Pruned:
    """What another selection takes, less the edges that lie on no path from an embedding to the logits.

    With ``size="nominal"`` the other selection takes ``count`` sites, of which fewer may be left. With
    ``size="effective"`` just ``count`` edges are left, so that methods can be held against each other at equal
    effective size:

    1. The other selection's smallest circuit with at least ``count`` effective edges is pruned. Its size is found by
       bisection: circuits that are nested as they grow (of ``Top`` and ``Greedy``) have ever more effective edges. Of
       others (``Ratio``) it is one that is large enough where one site less is not, not always the smallest.
    2. One further site can bring several edges to life, so there may be too many. The worst are dropped, one by one,
       passing over those without which another edge, or a head or MLP, would lie on no path.
    3. Where too many are left even so, the circuit before is pruned instead, and filled up with the best edges between
       nodes on its paths, each of which adds one. Only where these are not enough fewer than ``count`` are left.

    Attributes:
        inner: the other selection.
        size: whether ``count`` is of sites before they are pruned, or of edges after.

    Example:
        >>> from tlprune.graph import Architecture
        >>> from tlprune.sites import Sites
        >>> scores = Scores(Sites((Graph(Architecture(1, 1, 1)),)), torch.tensor([9, 8, 7, 0, 6, 0.5, 0.3, 0.6]))
        >>> len(Top().select(scores, 4)), len(Pruned().select(scores, 4))  # none of the four leads to the logits
        (4, 0)
        >>> Pruned(size="effective").select(scores, 5).edges
        ['input->a0.h0<q>', 'input->a0.h0<k>', 'input->a0.h0<v>', 'a0.h0->m0', 'm0->logits']
    """

    inner: Selection = field(default=Top())
    size: Literal["nominal", "effective"] = "nominal"

    def __post_init__(self) -> None:
        if self.size not in ("nominal", "effective"):
            raise ValueError(f"size must be 'nominal' or 'effective' but is {self.size!r}. Choose one of these.")

    def select(self, scores: Scores, count: int) -> Circuit:
        """The effective sites of a circuit, which has ``count`` sites or ``count`` effective edges."""
        check_count(count, scores.sites)
        if self.size == "nominal":
            found = self.inner.select(scores, count)
            return self._of(found, found.effective.kept, scores, count)
        return self._of_effective_size(scores, graph_of(scores, type(self).__name__), count)

    def _of_effective_size(self, scores: Scores, graph: Graph, count: int) -> Circuit:
        below, above = self._around(scores, count)
        values = ranking(scores, getattr(self.inner, "by", "signed"))
        kept = _trimmed(graph, above.effective.kept, values, count)
        if int(kept.sum()) > count:
            return self._of(below, _filled(graph, below.effective.kept, values, count), scores, count)
        return self._of(above, kept, scores, count)

    def _of(self, found: Circuit, kept: Tensor, scores: Scores, count: int) -> Circuit:
        inner = found.provenance.get("selection", told(self.inner))
        return taken(self, scores, kept, inner=inner, count=count, nominal=len(found))

    def _around(self, scores: Scores, count: int) -> tuple[Circuit, Circuit]:
        """The largest circuit with fewer effective edges than ``count``, and the smallest with as many or more."""
        below, above = (self.inner.select(scores, size) for size in (count, len(scores.sites)))
        if below.n_effective > count:
            raise ValueError(
                f"Pruned(size='effective') needs a selection that takes no more sites than it is asked for, but "
                f"{self.inner} took {below.n_effective:,} effective ones instead of {count:,}. Use size='nominal'."
            )
        if below.n_effective == count:
            return below, below
        low, high = count, len(scores.sites)
        while high - low > 1:
            middle = (low + high) // 2
            found = self.inner.select(scores, middle)
            if found.n_effective < count:
                low, below = middle, found
            else:
                high, above = middle, found
        return below, above


def _trimmed(
    graph: Graph, kept: Bool[Tensor, "edge"], values: Float[Tensor, "edge"], count: int
) -> Bool[Tensor, "edge"]:
    """A circuit of effective edges without the worst of those that no other needs, until there are ``count``.

    An edge is needed where it is the only one out of a node, or the only one into a node. What is needed stays so when
    others go, so one pass is enough.
    """
    kept, writers = kept.clone(), writers_of_edges(graph).tolist()
    ends = [nodes for row in rows(graph) for nodes in [row.nodes] * row.width]
    sent, received = Counter[int](), Counter[int]()
    for edge in kept.nonzero().flatten().tolist():
        sent[writers[edge]] += 1
        received.update(ends[edge])
    inner = len(graph.embeddings)
    for edge in torch.argsort(values, descending=True, stable=True).flip(0).tolist():
        writer, into = writers[edge], [node for node in ends[edge] if sent[node] and inner]
        if int(kept.sum()) <= count:
            break
        if kept[edge] and (writer < inner or sent[writer] > 1) and all(received[node] > 1 for node in into):
            kept[edge] = False
            sent[writer] -= 1
            received.subtract(ends[edge])
    return kept


def _filled(
    graph: Graph, kept: Bool[Tensor, "edge"], values: Float[Tensor, "edge"], count: int
) -> Bool[Tensor, "edge"]:
    """A circuit of effective edges and the best others between nodes on its paths, until there are ``count``."""
    able = _between(graph, kept) & ~kept
    missing = min(count - int(kept.sum()), int(able.sum()))
    return kept | first(values.masked_fill(~able, -torch.inf), missing)


def _between(graph: Graph, kept: Bool[Tensor, "edge"]) -> Bool[Tensor, "edge"]:
    """Edges from an embedding or a node on a path to the logits or a node on a path."""
    writers, able = writers_of_edges(graph), torch.zeros(len(graph), dtype=torch.bool)
    sends = torch.zeros(len(graph.writers) + 1, dtype=torch.bool)
    sends[writers[kept]] = True
    sends[-1] = True
    for row in rows(graph):
        able[row.start : row.start + row.width] = bool(sends[list(row.nodes)].any())
    sends[: len(graph.embeddings) or None] = True  # embeddings that are always kept reach every node
    return able & sends[writers]
