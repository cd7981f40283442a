"""Graphs whose edges stand for several: of heads without q, k and v apart, or of whole attention layers.

A mask of such edges is spread over their members, so that its gradient is the sum of theirs, and whatever adds up over
members (gradients, first-order effects) is the group's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, lru_cache

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tlprune.graph import Convention, Graph


def of_heads(graph: Graph) -> Graph:
    """The graph of single heads that an engine runs in place of one of whole layers; else the graph itself.

    Example:
        >>> from tlprune.graph import Architecture
        >>> layers = Graph(Architecture(2, 2, 2), Convention(qkv="joined", heads="joined"))
        >>> len(layers), of_heads(layers)
        (15, Graph(46 edges; embeddings merged, kv shared))
    """
    # As many readers as the model has, because all of a group see one stream.
    return graph if graph.convention.heads == "split" else Graph(graph.architecture, _finer(graph, kv="shared"))


def of_parts(graph: Graph) -> Graph:
    """The graph in which q, k and v of each head are apart; the graph itself where they are.

    Example:
        >>> from tlprune.graph import Architecture
        >>> of_parts(Graph(Architecture(2, 4, 2), Convention(qkv="joined")))
        Graph(110 edges; embeddings merged, kv per_query_head)
    """
    if graph.convention.heads == "joined" or graph.convention.qkv == "split":
        return of_heads(graph)
    return Graph(graph.architecture, _finer(graph, kv="per_query_head"))


def _finer(graph: Graph, **kv: str) -> Convention:
    return replace(graph.convention, qkv="split", heads="split", **kv)


@lru_cache(maxsize=8)
def groups(graph: Graph, members: Graph) -> Int[Tensor, "member"]:
    """For each edge of a finer graph the number of the edge that stands for it."""
    rows = {name: own.start + row * own.width for own in graph.readers for row, name in enumerate(own.names)}
    columns = torch.tensor([graph.writers.index(whole_of(graph, name)) for name in members.writers])
    starts = [(fine, [rows[whole_of(graph, name)] for name in fine.names]) for fine in members.readers]
    return torch.cat([(torch.tensor(own)[:, None] + columns[: fine.width]).flatten() for fine, own in starts])


@cache
def whole_of(graph: Graph, name: str) -> str:
    """What stands in this graph for a writer or reader of a finer one.

    Example:
        >>> from tlprune.graph import Architecture
        >>> layers = Graph(Architecture(2, 4, 2), Convention(heads="joined"))
        >>> whole_of(layers, "a1.h3"), whole_of(layers, "a0.kv1<k>"), whole_of(layers, "m0")
        ('a1', 'a0<k>', 'm0')
    """
    node, bracket, part = name.partition("<")
    if graph.convention.heads == "joined":
        node = node.partition(".")[0]
    return node if graph.convention.qkv == "joined" else node + bracket + part


def spread(values: Shaped[Tensor, "*lead edge"], graph: Graph, members: Graph) -> Shaped[Tensor, "*lead member"]:
    """Values of a graph's edges as those of a finer graph, each member with that of its group."""
    return values if members == graph else values[..., groups(graph, members).to(values.device)]


def summed(values: Float[Tensor, "member"], graph: Graph, members: Graph) -> Float[Tensor, "edge"]:
    """Values of the edges of a finer graph, added up over each group.

    Example:
        >>> from tlprune.graph import Architecture
        >>> layers = Graph(Architecture(1, 2, 2), Convention(qkv="joined", heads="joined"))
        >>> fine = of_heads(layers)
        >>> summed(torch.ones(len(fine)), layers, fine).tolist()  # input->a0: q, k and v of both heads
        [6.0, 1.0, 2.0, 1.0, 2.0, 1.0]
    """
    if members == graph:
        return values
    return values.new_zeros(len(graph)).index_add(0, groups(graph, members).to(values.device), values)
