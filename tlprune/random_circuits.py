"""Random circuits that a found one is held against."""

from __future__ import annotations

import random

import torch
from jaxtyping import Int
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.incidence import rows_of_nodes
from tlprune.scores import check_count
from tlprune.sites import Sites


def connected_random(graph: Graph, count: int, *, seed: int = 0) -> Circuit:
    """A random circuit of exactly ``count`` edges, each on a path from an embedding to the logits.

    It grows from the embeddings and the logits: half of the time by a new node, with one edge in and one edge out,
    else by an edge between nodes that are there already.

    Args:
        graph: where the edges come from.
        count: number of edges.
        seed: of the choices.

    Raises:
        ValueError: ``count`` lies outside 0 to the number of edges.

    Example:
        >>> from tlprune.graph import Architecture
        >>> connected_random(Graph(Architecture(5, 8, 4)), 170)
        Circuit(170 of 1,701 edges, 170 effective; embeddings merged, kv shared)
    """
    sites = Sites((graph,))
    check_count(count, sites)
    growth = _Growth(graph, random.Random(seed))
    while len(growth.kept) < count:
        moves = [growth.add_edge, growth.add_node]
        if count - len(growth.kept) == 1:
            moves = [growth.add_edge, growth.add_node_for_one_edge]
        elif growth.random.random() < 0.5:
            moves.reverse()
        any(move() for move in moves)
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    kept[growth.kept] = True
    return Circuit(sites, kept, {"method": {"name": "connected_random", "seed": seed}})


def connected_order(graph: Graph, *, seed: int = 0) -> Int[Tensor, "edge"]:
    """All edges in an order in which a random connected circuit grows, as :func:`connected_random` does.

    The first ``n`` of them are a random circuit in which every edge lies on a path, but for the last one where it leads
    into a node whose edge out comes next.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(5, 8, 4))
        >>> kept = torch.zeros(len(graph), dtype=torch.bool)
        >>> kept[connected_order(graph)[:170]] = True
        >>> int(graph.effective(kept).sum()) >= 169
        True
    """
    growth = _Growth(graph, random.Random(seed))
    while len(growth.kept) < len(graph):
        moves = [growth.add_edge, growth.add_node]
        if growth.random.random() < 0.5:
            moves.reverse()
        any(move() for move in moves)
    return torch.tensor(growth.kept)


def random_like(circuit: Circuit, *, seed: int = 0) -> Circuit:
    """A random circuit of the same size: connected if it is of edges alone, else as many sites of each kind.

    Args:
        circuit: whose size and sites to take.
        seed: of the choices.
    """
    if circuit.sites.kinds == ("edges",) and not circuit.sites.spans:
        return connected_random(circuit.graph, len(circuit), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    kept = torch.zeros_like(circuit.kept)
    for kind, part in circuit.sites.parts.items():
        chosen = torch.randperm(part.stop - part.start, generator=generator)[: circuit.count(kind)]
        kept[part.start + chosen] = True
    return circuit.like(kept, {"method": {"name": "random_like", "seed": seed}})


class _Growth:
    """Nodes and edges so far. A node's name is its writer's; the logits have only a reader."""

    def __init__(self, graph: Graph, source: random.Random) -> None:
        self.graph, self.random = graph, source
        self.kept: list[int] = []
        self._taken: set[int] = set()
        # Edges between nodes that have their own way in and out, so that no path needs them.
        self._spare: list[int] = []
        inner = len(graph.embeddings)
        self.writers = set(range(inner))
        self.left = list(range(inner, len(graph.writers)))
        self.random.shuffle(self.left)
        self.rows = rows_of_nodes(graph)
        self.open = self._edges_into(len(graph.writers))

    def _edges_into(self, node: int) -> list[int]:
        """Edges from the nodes so far into a node."""
        return [row.start + writer for row in self.rows[node] for writer in self.writers if writer < row.width]

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
        if not self.left:
            return False
        node = self.left.pop()
        into = self._edges_into(node)
        out = self._edges_out_of(node)
        if into and edge_in:
            self._keep_for_good(self.random.choice(into))
        self._keep_for_good(self.random.choice(out))
        self.writers.add(node)
        self.open += [edge for edge in (*into, *out) if edge not in self._taken]
        return True

    def _edges_out_of(self, node: int) -> list[int]:
        readers = (*(other for other in self.writers if other >= len(self.graph.embeddings)), len(self.graph.writers))
        return [row.start + node for other in readers for row in self.rows[other] if node < row.width]

    def _keep_for_good(self, edge: int) -> None:
        # A key or value that two heads share may be there already, as a spare edge.
        if not self._keep(edge) and edge in self._spare:
            self._spare.remove(edge)

    def _keep(self, edge: int) -> bool:
        if edge in self._taken:
            return False
        self._taken.add(edge)
        self.kept.append(edge)
        return True
