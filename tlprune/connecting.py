"""How few edges connect the embeddings to the logits, and which path does so best."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.effective import edges_of_removed, effective_sites, removed_nodes
from tlprune.graph import Graph
from tlprune.incidence import Row, rows, writers_of_edges
from tlprune.scores import first
from tlprune.sites import Sites


def fewest_edges(graph: Graph, able: Bool[Tensor, "edge"] | None = None) -> int | None:
    """The smallest number of edges that has a path from an embedding to the logits; ``None`` where there is no path.

    A path enters a head through q, k or v, as in :meth:`~tlprune.Graph.effective`. Of all edges one is enough, from an
    embedding straight to the logits (or from any writer, where embeddings are always kept).

    Args:
        graph: the edges that there are.
        able: those that may be taken; by default all.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(2, 1, 1))
        >>> able = torch.tensor([not name.endswith("logits") or name.startswith("m1") for name in graph.edges()])
        >>> fewest_edges(graph), fewest_edges(graph, able)
        (1, 2)
    """
    path = best_path(graph, torch.zeros(len(graph)), able=able)
    return None if path is None else len(path)


def connecting_size(
    graph: Graph, values: Float[Tensor, "edge"], able: Bool[Tensor, "edge"] | None = None
) -> int | None:
    """The smallest ``k`` for which the ``k`` edges of the highest value have a path; ``None`` where none has.

    That is one more than the place of the worst edge on the path whose worst edge is best, found in one pass over the
    graph.

    Args:
        graph: the edges that there are.
        values: what edges are ranked by; of equal ones those come first that come first in the graph.
        able: those that may be taken; by default all.

    Example:
        >>> from tlprune.graph import Architecture
        >>> connecting_size(Graph(Architecture(1, 1, 1)), torch.tensor([9, 8, 7, 0, 6, 0.5, 0.3, 0.6]))
        5
    """
    places = _places(values, able)
    path = _Paths(graph, -places.double(), able, longest(graph)).best(longest(graph))
    return None if path is None else 1 + int(places[path].max())


def best_path(
    graph: Graph, values: Float[Tensor, "edge"], *, most: int | None = None, able: Bool[Tensor, "edge"] | None = None
) -> list[int] | None:
    """The path of at most so many edges whose lowest value is highest; of such paths a shortest one.

    Args:
        graph: the edges that there are.
        values: one for each edge.
        most: how many edges it may have; by default any number.
        able: those that may be taken; by default all.

    Returns:
        Its edges from the embedding to the logits; ``None`` where there is no such path.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph, values = Graph(Architecture(1, 1, 1)), torch.tensor([9, 8, 7, 0, 6, 0.5, 0.3, 0.6])
        >>> [[graph.name(edge) for edge in best_path(graph, values, most=most)] for most in (2, 3)]
        [['input->logits'], ['input->a0.h0<q>', 'a0.h0->m0', 'm0->logits']]
    """
    most = longest(graph) if most is None else min(most, longest(graph))
    return None if most < 1 else _Paths(graph, values.double(), able, most).best(most)


def longest(graph: Graph) -> int:
    """Edges of the longest path that needs them all: through a head and an MLP in each layer, or one of the two where
    both read alike; just one where embeddings that are always kept reach every node.
    """
    shape = graph.architecture
    blocks = 2 if shape.has_mlp and not shape.parallel else 1
    return 1 + shape.n_layers * blocks * bool(graph.embeddings)


def connected(
    sites: Sites,
    kept: Bool[Tensor, "site"],
    values: Float[Tensor, "site"],
    *,
    able: Bool[Tensor, "site"] | None = None,
    fixed: int = 0,
) -> Bool[Tensor, "site"]:
    """What is kept, with as many edges made to have a path.

    Where some edge lies on a path everything stays, and so it does where no edge is kept at all. Else the edges make
    room for the best path that their number allows (:func:`best_path`), through nodes that are not removed, behind
    which the others follow by value. Of an edge that differs by span the best one is taken.

    Args:
        sites: edges, alone or beside others, which stay.
        kept: the edges of the highest value, and any others.
        values: what edges are ranked by.
        able: those that a path may take; by default all.
        fixed: how many edges of the highest value stay in any case.

    Returns:
        What is kept then; the same where no path is short enough.

    Example:
        >>> from tlprune.graph import Architecture
        >>> sites, values = Sites((Graph(Architecture(1, 1, 1)),)), torch.tensor([9, 8, 7, 0, 6, 0.5, 0.3, 0.6])
        >>> sites.graph.edges(connected(sites, first(values, 3), values))
        ['input->a0.h0<q>', 'a0.h0->m0', 'm0->logits']
    """
    part = sites.part("edges")
    count = int(kept[part].sum())
    if not count or bool(effective_sites(sites, kept)[part].any()):
        return kept
    graph, edges = sites.graph, values[part].view(-1, len(sites.graph))
    open_ = torch.ones_like(kept[part]) if able is None else able[part]
    best, span = edges.masked_fill(~open_.view_as(edges), -torch.inf).max(0)
    through = best.isfinite() & ~edges_of_removed(graph, removed_nodes(sites, kept))
    path = best_path(graph, best, most=count - fixed, able=through)
    if path is None:
        return kept
    chosen = torch.zeros_like(edges, dtype=torch.bool)
    chosen[span[path], path] = True
    others = first(edges.masked_fill(chosen, -torch.inf).flatten(), count - len(path))
    return kept.slice_scatter(chosen.flatten() | others, 0, part.start, part.stop)


def _places(values: Float[Tensor, "edge"], able: Bool[Tensor, "edge"] | None) -> Int[Tensor, "edge"]:
    """The place of each edge in the order of values, those that may not be taken last."""
    allowed = values if able is None else values.masked_fill(~able, -torch.inf)
    order = torch.argsort(allowed, descending=True, stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


class _Paths:
    """For each node and number of edges the highest value of the worst edge on a path into it, and its last edge.

    Attributes:
        worst: ``(edges, node)``, with at most so many edges; minus infinity where there is no such path.
        last: ``(edges, node)``, the last edge of such a path.
    """

    def __init__(
        self, graph: Graph, values: Float[Tensor, "edge"], able: Bool[Tensor, "edge"] | None, most: int
    ) -> None:
        self.graph = graph
        allowed = values if able is None else values.masked_fill(~able, -torch.inf)
        nodes = len(graph.writers) + 1
        self.worst = torch.full((most + 1, nodes), -torch.inf, dtype=torch.float64)
        self.last = torch.zeros(most + 1, nodes, dtype=torch.long)
        self.worst[:, : len(graph.embeddings) or nodes - 1] = torch.inf
        for row in (row for row in rows(graph) if row.width):
            self._read(row, allowed[row.start : row.start + row.width])

    def _read(self, row: Row, values: Float[Tensor, "writer"]) -> None:
        """Paths on through one reader, into all nodes that it serves."""
        through = torch.minimum(self.worst[:-1, : row.width], values)
        worst, writer = through.max(1)
        for node in row.nodes:
            better = worst > self.worst[1:, node]
            self.worst[1:, node][better] = worst[better]
            self.last[1:, node][better] = row.start + writer[better]

    def best(self, most: int) -> list[int] | None:
        """The edges of a shortest path of the highest value into the logits."""
        reached = self.worst[:, -1]
        if reached[most] == -torch.inf:
            return None
        edges, path, node = int((reached == reached[most]).nonzero()[0]), list[int](), len(self.graph.writers)
        writers = writers_of_edges(self.graph).tolist()
        while self.worst[0, node] != torch.inf:  # where a path begins
            path.append(int(self.last[edges, node]))
            node, edges = writers[path[-1]], edges - 1
        return path[::-1]
