"""How few edges connect the embeddings to the logits, and which path does so best."""

from __future__ import annotations

from bisect import bisect_right

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.effective import edges_from_removed, effective_sites, removed_nodes
from tlprune.flow import Flow
from tlprune.graph import Graph
from tlprune.incidence import Row, rows, writers_of_edges
from tlprune.scores import first
from tlprune.sites import Sites
from tlprune.spans import Spanned

Edges = Graph | Spanned  # where paths go: the edges of a graph, or these at each span (``Sites.edges``)


def fewest_edges(edges: Edges, able: Bool[Tensor, "edge"] | None = None) -> int | None:
    """The smallest number of edges that has a path from an embedding to the logits; ``None`` where there is no path.

    A path enters a head through q, k or v, as in :meth:`~tlprune.Graph.effective`. Of all edges one is enough, from an
    embedding straight to the logits (or from any writer, where embeddings are always kept).

    Args:
        edges: the edges that there are; by span, a path moves between spans in attention alone.
        able: those that may be taken; by default all.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(2, 1, 1))
        >>> able = torch.tensor([not name.endswith("logits") or name.startswith("m1") for name in graph.edges()])
        >>> fewest_edges(graph), fewest_edges(graph, able)
        (1, 2)
    """
    path = best_path(edges, torch.zeros(len(edges)), able=able)
    return None if path is None else len(path)


def connecting_size(
    edges: Edges, values: Float[Tensor, "edge"], able: Bool[Tensor, "edge"] | None = None
) -> int | None:
    """The smallest ``k`` for which the ``k`` edges of the highest value have a path; ``None`` where none has.

    That is one more than the place of the worst edge on the path whose worst edge is best, found in one pass over the
    graph.

    Args:
        edges: the edges that there are, by span or not.
        values: what edges are ranked by; of equal ones those come first that come first.
        able: those that may be taken; by default all.

    Example:
        >>> from tlprune.graph import Architecture
        >>> connecting_size(Graph(Architecture(1, 1, 1)), torch.tensor([9, 8, 7, 0, 6, 0.5, 0.3, 0.6]))
        5
    """
    places = _places(values, able)
    most = longest(graph_of_edges(edges))
    path = _Paths(edges, -places.double(), able, most).best(most)
    return None if path is None else 1 + int(places[path].max())


def best_path(
    edges: Edges, values: Float[Tensor, "edge"], *, most: int | None = None, able: Bool[Tensor, "edge"] | None = None
) -> list[int] | None:
    """The path of at most so many edges whose lowest value is highest; of such paths a shortest one.

    Args:
        edges: the edges that there are, by span or not.
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
    longest_path = longest(graph_of_edges(edges))
    most = longest_path if most is None else min(most, longest_path)
    return None if most < 1 else _Paths(edges, values.double(), able, most).best(most)


def longest(graph: Graph) -> int:
    """Edges of the longest path that needs them all, by span or not.

    Such a path goes through a head and an MLP in each layer, or one of the two where both read alike; it has just one
    where embeddings that are always kept reach every node.
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
    which the others follow by value. By span, a path moves between spans in attention alone, and both it and what is
    removed are as :func:`~tlprune.effective.effective_sites` has them.

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
    own, open_ = values[part], torch.ones_like(kept[part]) if able is None else able[part]
    path = _path(sites, kept, own.masked_fill(~open_, -torch.inf), count - fixed)
    if path is None:
        return kept
    chosen = torch.zeros_like(kept[part])
    chosen[path] = True
    others = first(own.masked_fill(chosen, -torch.inf), count - int(chosen.sum()))
    return kept.slice_scatter(chosen | others, 0, part.start, part.stop)


def filled(
    sites: Sites,
    kept: Bool[Tensor, "site"],
    values: Float[Tensor, "site"],
    *,
    able: Bool[Tensor, "site"] | None = None,
    fixed: int = 0,
) -> Bool[Tensor, "site"]:
    """What is kept, with edges on no path given up for the best ones that lie on one.

    Let ``E_n`` be those of the ``n`` edges of the highest value that lie on a path. They grow with ``n``: the largest
    ``E_n`` of no more edges than are kept is taken, and what room is left goes to the best of the others. An edge on no
    path carries nothing, so nothing is lost. Where even that has no path, :func:`connected` makes one.

    The arguments are those of :func:`connected`.

    Example:
        >>> from tlprune.graph import Architecture
        >>> sites, values = Sites((Graph(Architecture(1, 1, 1)),)), torch.tensor([1, 0.9, 0.8, 9, 0.1, 8, 0.2, 0])
        >>> sites.graph.edges(first(values, 5))[3:]  # m0 is read by none of them, nor is a0.h0
        ['input->m0', 'input->logits']
        >>> sites.graph.edges(filled(sites, first(values, 5), values))[3:]
        ['input->logits', 'a0.h0->logits']
    """
    part = sites.part("edges")
    count, own = int(kept[part].sum()), values[part].clamp(min=torch.finfo(values.dtype).min)
    open_ = torch.ones_like(kept[part]) if able is None else able[part]
    own = own.masked_fill(~open_, -torch.inf)  # below all that may be taken, whatever their values
    always = first(own, fixed)

    def live(size: int) -> Bool[Tensor, "edge"]:
        wider = kept.slice_scatter(first(own, size), 0, part.start, part.stop)
        return effective_sites(sites, wider)[part] | always

    sizes = range(count, int(open_.sum()) + 1)
    within = bisect_right(sizes, count, key=lambda size: int(live(size).sum()))
    best = live(sizes[within - 1])
    rest = first(own.masked_fill(best, -torch.inf), count - int(best.sum()))
    return connected(sites, kept.slice_scatter(best | rest, 0, part.start, part.stop), values, able=able, fixed=fixed)


def _path(sites: Sites, kept: Bool[Tensor, "site"], values: Float[Tensor, "edge"], most: int) -> list[int] | None:
    """The best path through nodes that are not removed, as places among the edges of these sites."""
    rows = values.view(-1, len(sites.graph))
    gone = edges_from_removed(sites.graph, removed_nodes(sites, kept))
    table = rows.expand_as(gone).masked_fill(gone, -torch.inf).flatten()
    path = best_path(sites.edges, table, most=most, able=table.isfinite())
    return None if path is None else [edge % len(values) for edge in path]


def graph_of_edges(edges: Edges) -> Graph:
    """The graph whose edges they are, without spans."""
    graph = edges.group if isinstance(edges, Spanned) else edges
    assert isinstance(graph, Graph)
    return graph


def _places(values: Float[Tensor, "edge"], able: Bool[Tensor, "edge"] | None) -> Int[Tensor, "edge"]:
    """The place of each edge in the order of values, those that may not be taken last."""
    allowed = values if able is None else values.masked_fill(~able, -torch.inf)
    order = torch.argsort(allowed, descending=True, stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


class _Paths:
    """For each number of edges and each node, at each span, the highest value of the worst edge on a path into it.

    Attributes:
        worst: ``(edges, span, node)``, with at most so many edges; minus infinity where there is no such path.
        last: ``(edges, span, node)``, the last edge of such a path, at whichever span.
    """

    def __init__(
        self, edges: Edges, values: Float[Tensor, "edge"], able: Bool[Tensor, "edge"] | None, most: int
    ) -> None:
        self.graph = graph_of_edges(edges)
        self.flow = edges.flows if isinstance(edges, Spanned) else Flow.everywhere(("everywhere",))
        allowed = values if able is None else values.masked_fill(~able, -torch.inf)
        table, nodes = allowed.view(-1, len(self.graph)), len(self.graph.writers) + 1
        self.worst = torch.full((most + 1, len(table), nodes), -torch.inf, dtype=torch.float64)
        self.last = torch.zeros(self.worst.shape, dtype=torch.long)
        self.worst[..., : len(self.graph.embeddings) or nodes - 1] = torch.inf
        for row in (row for row in rows(self.graph) if row.width):
            self._read(row, table[:, row.start : row.start + row.width])

    def _read(self, row: Row, values: Float[Tensor, "span writer"]) -> None:
        """Paths on through one reader, into all nodes that it serves."""
        worst, writer = torch.minimum(self.worst[:-1, :, : row.width], values).max(2)
        last = writer + row.start + len(self.graph) * torch.arange(len(values))
        if row.moves:
            worst, source = worst[..., None].masked_fill(~self.flow.table, -torch.inf).max(1)
            last = last.gather(1, source)
        for node in row.nodes:
            better = worst > self.worst[1:, :, node]
            self.worst[1:, :, node][better] = worst[better]
            self.last[1:, :, node][better] = last[better]

    def best(self, most: int) -> list[int] | None:
        """The edges of a shortest path of the highest value into the logits, where these are read."""
        reached, span = self.worst[..., -1].masked_fill(~self.flow.answers, -torch.inf).max(1)
        if reached[most] == -torch.inf:
            return None
        edges, path = int((reached == reached[most]).nonzero()[0]), list[int]()
        place, node = int(span[edges]), len(self.graph.writers)
        writers = writers_of_edges(self.graph).tolist()
        while self.worst[0, place, node] != torch.inf:  # where a path begins
            path.append(int(self.last[edges, place, node]))
            place, edge = divmod(path[-1], len(self.graph))
            node, edges = writers[edge], edges - 1
        return path[::-1]
