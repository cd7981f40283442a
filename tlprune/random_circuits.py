"""Random circuits that a found one is held against."""

from __future__ import annotations

import random

import torch
from jaxtyping import Int
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.connecting import Edges, graph_of_edges
from tlprune.flow import Flow
from tlprune.incidence import rows_of_nodes, writers_of_edges
from tlprune.scores import check_count
from tlprune.sites import Sites
from tlprune.spans import Spanned


def connected_random(edges: Edges, count: int, *, seed: int = 0) -> Circuit:
    """A random circuit of exactly ``count`` edges, each on a path from an embedding to the logits.

    It grows from the embeddings and the logits: half of the time by a new node, with one edge in and one edge out,
    else by an edge between nodes that are there already. By span a node is one at each span, and some edges may be on
    no path at all (:meth:`~tlprune.Graph.effective`): these come last, by chance, where more are asked for.

    Args:
        edges: where the edges come from, a graph or its edges by span.
        count: number of edges.
        seed: of the choices.

    Raises:
        ValueError: ``count`` lies outside 0 to the number of edges.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> graph = Graph(Architecture(5, 8, 4))
        >>> connected_random(graph, 170)
        Circuit(170 of 1,701 edges, 170 effective; embeddings merged, kv shared)
        >>> connected_random(Spanned(graph, ("name",)), 170).n_effective
        170
    """
    sites = Sites((edges,))
    check_count(count, sites)
    growth = _Growth(edges, random.Random(seed))
    while len(growth.kept) < min(count, growth.most):
        moves = [growth.add_edge, growth.add_node]
        if count - len(growth.kept) == 1:
            moves = [growth.add_edge, growth.add_node_for_one_edge]
        elif growth.random.random() < 0.5:
            moves.reverse()
        any(move() for move in moves)
    kept = torch.zeros(len(edges), dtype=torch.bool)
    kept[(growth.kept + growth.others())[:count]] = True
    return Circuit(sites, kept, {"method": {"name": "connected_random", "seed": seed}})


def connected_order(edges: Edges, *, seed: int = 0) -> Int[Tensor, "edge"]:
    """All edges in an order in which a random connected circuit grows, as :func:`connected_random` does.

    The first ``n`` of them are a random circuit in which every edge lies on a path, but for the last one where it leads
    into a node whose edge out comes next. By span, those that can be on no path come last.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> graph = Graph(Architecture(5, 8, 4))
        >>> kept = torch.zeros(len(graph), dtype=torch.bool)
        >>> kept[connected_order(graph)[:170]] = True
        >>> int(graph.effective(kept).sum()) >= 169
        True
    """
    growth = _Growth(edges, random.Random(seed))
    while len(growth.kept) < growth.most:
        moves = [growth.add_edge, growth.add_node]
        if growth.random.random() < 0.5:
            moves.reverse()
        any(move() for move in moves)
    return torch.tensor(growth.kept + growth.others())


def random_like(circuit: Circuit, *, seed: int = 0) -> Circuit:
    """A random circuit of the same size: connected if it is of edges alone, else as many sites of each kind.

    Args:
        circuit: whose size and sites to take.
        seed: of the choices.
    """
    if circuit.sites.kinds == ("edges",):
        return connected_random(circuit.sites.edges, len(circuit), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    kept = torch.zeros_like(circuit.kept)
    for kind, part in circuit.sites.parts.items():
        chosen = torch.randperm(part.stop - part.start, generator=generator)[: circuit.count(kind)]
        kept[part.start + chosen] = True
    return circuit.like(kept, {"method": {"name": "random_like", "seed": seed}})


class _Growth:
    """Nodes and edges so far. A node is ``(span, writer)``; the logits, one more than the last writer, only read."""

    def __init__(self, edges: Edges, source: random.Random) -> None:
        self.graph, self.random = graph_of_edges(edges), source
        self.flow = edges.flows if isinstance(edges, Spanned) else Flow.everywhere(("everywhere",))
        self.kept: list[int] = []
        self._taken: set[int] = set()
        # Edges between nodes that have their own way in and out, so that no path needs them.
        self._spare: list[int] = []
        spans, inner, last = len(self.flow.spans), len(self.graph.embeddings), len(self.graph.writers)
        self._able = self.graph.effective(torch.ones(spans, len(self.graph), dtype=torch.bool), self.flow)
        self.most = int(self._able.sum())
        self.writers = [set(range(inner)) for _ in range(spans)]
        senders = self._able.nonzero()[:, 0] * last + writers_of_edges(self.graph)[self._able.nonzero()[:, 1]]
        able = set(senders.tolist())
        self.left = [(s, node) for s in range(spans) for node in range(inner, last) if s * last + node in able]
        self.random.shuffle(self.left)
        self._reads = self._all_reads(last)
        self.logits = [(span, last) for span, read in enumerate(self.flow.answers.tolist()) if read]
        self.open = [edge for node in self.logits for edge in self._edges_into(node)]

    def others(self) -> list[int]:
        """The edges that can be on no path, in random order."""
        found = (~self._able).flatten().nonzero().flatten().tolist()
        self.random.shuffle(found)
        return found

    def _all_reads(self, last: int) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
        """Of each node's readers the span, the first edge into it and how many writers it reads.

        The span is the node's own, and for k and v also each that it attends to.
        """
        table, size, rows = self.flow.table.tolist(), len(self.graph), rows_of_nodes(self.graph)
        seen = [[source for source, row in enumerate(table) if row[span]] for span in range(len(table))]
        return {
            (span, node): [
                (source, source * size + row.start, row.width)
                for row in rows.get(node, ())
                for source in (seen[span] if row.moves else [span])
            ]
            for span in range(len(table))
            for node in range(last + 1)
        }

    def _edges_into(self, node: tuple[int, int]) -> list[int]:
        """Edges from the nodes so far into a node."""
        return [
            start + writer
            for source, start, width in self._reads[node]
            for writer in self.writers[source]
            if writer < width
        ]

    def add_edge(self) -> bool:
        """Keep a random edge between nodes that are there; False when none is left."""
        while self.open:
            place = self.random.randrange(len(self.open))
            self.open[place], self.open[-1] = self.open[-1], self.open[place]
            edge = self.open.pop()
            if self._keep(edge):
                self._spare.append(edge)
                return True
        return False

    def add_node_for_one_edge(self) -> bool:
        """Add a node where only one more edge is wanted: a spare one makes room, or none is needed into the node."""
        if self._spare:
            edge = self._spare.pop()
            self._taken.remove(edge)
            self.kept.remove(edge)
            self.open.append(edge)
        return self.add_node(edge_in=bool(self.graph.embeddings))

    def add_node(self, *, edge_in: bool = True) -> bool:
        """Add a random node with an edge in and an edge out; False when all are there."""
        ways = ((place, self._edges_out_of(self.left[place])) for place in reversed(range(len(self.left))))
        place, out = next((way for way in ways if way[1]), (0, []))
        if not out:
            return False
        node = self.left.pop(place)
        into = self._edges_into(node)
        if into and edge_in:
            self._keep_for_good(self.random.choice(into))
        self._keep_for_good(self.random.choice(out))
        self.writers[node[0]].add(node[1])
        self.open += [edge for edge in (*into, *out) if edge not in self._taken]
        return True

    def _edges_out_of(self, node: tuple[int, int]) -> list[int]:
        """Edges from a node into the nodes so far."""
        span, writer = node
        inner = len(self.graph.embeddings)
        readers = [(place, other) for place, own in enumerate(self.writers) for other in own if other >= inner]
        return [
            start + writer
            for other in (*readers, *self.logits)
            for source, start, width in self._reads[other]
            if source == span and writer < width
        ]

    def _keep_for_good(self, edge: int) -> None:
        # A key or value that two heads share, or two spans, may be there already, as a spare edge.
        if not self._keep(edge) and edge in self._spare:
            self._spare.remove(edge)

    def _keep(self, edge: int) -> bool:
        if edge in self._taken:
            return False
        self._taken.add(edge)
        self.kept.append(edge)
        return True
