"""Which nodes edges join: by what rows a node reads, and which nodes a row serves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tlprune.graph import Graph, Readers


@dataclass(frozen=True)
class Row:
    """One reader: its edges are ``start .. start + width - 1``, from writers ``0 .. width - 1``.

    Attributes:
        start: its first edge.
        width: how many edges it has.
        nodes: the nodes that it reads for, as numbers of writers; a key/value head reads for several heads, and
            the logits are one more than the last writer.
        moves: whether attention carries what it reads to other positions (:meth:`~tlprune.Graph.moving`).
    """

    start: int
    width: int
    nodes: tuple[int, ...]
    moves: bool = False

    @property
    def edges(self) -> range:
        """Its edges."""
        return range(self.start, self.start + self.width)


def rows(graph: Graph) -> list[Row]:
    """All readers in graph order.

    Example:
        >>> from tlprune.graph import Architecture
        >>> [row.nodes for row in rows(Graph(Architecture(1, 2, 1)))]  # input, two heads, an MLP
        [(1,), (2,), (1, 2), (1, 2), (3,), (4,)]
    """
    found = []
    for readers in graph.readers:
        moving = graph.moving(readers).tolist()
        for row, nodes in enumerate(_served(graph, readers)):
            found.append(Row(readers.start + row * readers.width, readers.width, nodes, moving[row]))
    return found


def _served(graph: Graph, readers: Readers) -> list[tuple[int, ...]]:
    first, heads = graph.attention_writers(readers.layer), graph.n_attention_nodes
    if readers.kind == "logits":
        return [(len(graph.writers),)]
    if readers.kind == "mlp":
        return [(first + heads,)]
    own = [(first + head,) for head in range(heads)]
    if graph.convention.qkv == "joined":
        return own
    size = heads // graph.n_kv_readers
    shared = [tuple(range(first + kv * size, first + (kv + 1) * size)) for kv in range(graph.n_kv_readers)]
    return [*own, *shared, *shared]


def rows_of_nodes(graph: Graph) -> dict[int, list[Row]]:
    """For each node that reads, its rows: three of a head, or one where q, k and v are joined; one of an MLP."""
    found: dict[int, list[Row]] = {}
    for row in rows(graph):
        for node in row.nodes:
            found.setdefault(node, []).append(row)
    return found


def writers_of_edges(graph: Graph) -> Int[Tensor, "edge"]:
    """The number of each edge's writer.

    Example:
        >>> from tlprune.graph import Architecture
        >>> writers_of_edges(Graph(Architecture(1, 1, 1))).tolist()
        [0, 0, 0, 0, 1, 0, 1, 2]
    """
    return torch.cat([torch.arange(readers.width).repeat(len(readers.names)) for readers in graph.readers])
