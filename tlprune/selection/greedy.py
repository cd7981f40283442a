"""Greedy selection: a circuit that grows from the logits back, edge by edge."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.incidence import Row, rows_of_nodes, writers_of_edges
from tlprune.scores import Scores, check_count
from tlprune.selection.ranked import By, check_by, graph_of, ranking, taken


@dataclass(frozen=True)
class Greedy:
    """From the logits back: ``count`` times the best edge into what has been reached.

    Reached at first are the logits. Each step takes, of all edges into reached nodes that were not taken yet, the one
    of the highest score (of equal ones the first in the model), and reaches the node that it comes from. A reached
    head is read by its q, k and v; of a key/value head that several heads share, when the first of these is reached.

    So every kept edge has a path of kept edges to the logits. It need not have one from an embedding:
    ``Pruned(Greedy())`` leaves out those that have none. Circuits of growing size are nested.

    Source: Hanna et al., "Have Faith in Faithfulness" (2024), section 3.2.

    Attributes:
        by: as of :class:`~tlprune.Top`: the score, or its size.

    Example:
        >>> from tlprune.graph import Architecture
        >>> from tlprune.sites import Sites
        >>> scores = Scores(Sites((Graph(Architecture(1, 1, 1)),)), torch.tensor([9, 8, 7, 0, 6, 0.5, 0.3, 0.6]))
        >>> Greedy().select(scores, 2).edges  # input->a0.h0<q> is the best, but its head is reached by no edge yet
        ['a0.h0->m0', 'm0->logits']
    """

    by: By = "signed"

    def __post_init__(self) -> None:
        check_by(self.by)

    def select(self, scores: Scores, count: int) -> Circuit:
        """The first ``count`` edges that growing from the logits takes."""
        graph = graph_of(scores, type(self).__name__)
        check_count(count, scores.sites)
        kept = torch.zeros(len(graph), dtype=torch.bool)
        order = _grown(graph, ranking(scores, self.by).tolist())
        kept[[next(order) for _ in range(count)]] = True
        return taken(self, scores, kept, count=count)


def _grown(graph: Graph, values: list[float]) -> Iterator[int]:
    """Edges in the order in which they are taken; in the end all of them, for every writer reaches the logits."""
    rows, writers = rows_of_nodes(graph), writers_of_edges(graph).tolist()
    reached, opened, candidates = set[int](), set[Row](), list[tuple[float, int]]()

    def reach(node: int) -> None:
        reached.add(node)
        for row in rows.get(node, []):
            if row not in opened:
                opened.add(row)
                for edge in row.edges:
                    heapq.heappush(candidates, (-values[edge], edge))

    reach(len(graph.writers))
    while candidates:
        _, edge = heapq.heappop(candidates)
        if writers[edge] not in reached:
            reach(writers[edge])
        yield edge
