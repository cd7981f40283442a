"""Which kept sites can matter at all, given which others are gone."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from tlprune.graph import Graph, Readers
from tlprune.incidence import writers_of_edges
from tlprune.sites import Neurons, Nodes, Sites


def effective_sites(sites: Sites, kept: Bool[Tensor, "site"]) -> Bool[Tensor, "site"]:
    """The kept sites that are not made void by others.

    An edge counts if it lies on a path of kept edges from an embedding to the logits that passes through no removed
    head, MLP or layer; a head if its layer is kept, a neuron if its MLP is. Where sites differ by span, all this is at
    a span: a path goes on where it is, but what arrives at k or v of a head goes on at every span that attends there,
    and it ends where the logits are read, as far as the sites know either (:attr:`~tlprune.sites.Sites.flow`). Nodes
    and edges that do not differ by span are everywhere.
    """
    removed, result = removed_nodes(sites, kept), kept.clone()
    if "heads" in sites.kinds:
        names = sites.bare("heads")
        rows = result[sites.part("heads")].view(-1, len(names))
        for row, own in zip(rows, _by_row(removed, len(rows)), strict=True):
            row[[_is_of(names.name(index), own) for index in range(len(names))]] = False
    if "neurons" in sites.kinds:
        neurons = sites.bare("neurons")
        assert isinstance(neurons, Neurons)
        rows = result[sites.part("neurons")].view(-1, len(neurons.layers), neurons.width)
        for row, own in zip(rows, _by_row(removed, len(rows)), strict=True):
            row[[f"m{layer}" in own for layer in neurons.layers]] = False
    if "edges" in sites.kinds:
        graph, rows = sites.graph, result[sites.part("edges")].view(-1, sites.graph.n_edges)
        found = graph.effective(rows & ~edges_from_removed(graph, removed), sites.flow)
        rows &= found if len(rows) == len(found) else found.any(0)
    return result


def removed_nodes(sites: Sites, kept: Bool[Tensor, "site"]) -> list[set[str]]:
    """The nodes that are removed at each span; in one set where nothing differs by span."""
    removed: list[set[str]] = [set() for _ in (sites.flow.spans if sites.flow else [""])]
    for kind in sites.kinds:
        group = sites.bare(kind)
        if isinstance(group, Nodes):
            rows = ~kept[sites.part(kind)].view(-1, len(group)).expand(len(removed), -1)
            for names, gone in zip(removed, rows, strict=True):
                names |= {group.name(index) for index in gone.nonzero().flatten().tolist()}
    return removed


def _by_row(removed: list[set[str]], rows: int) -> list[set[str]]:
    """What is removed for each row of sites; for one row that stands for all spans, what is removed at all."""
    return removed if rows == len(removed) else [set.intersection(*removed)]


def edges_from_removed(graph: Graph, removed: list[set[str]]) -> Bool[Tensor, "span edge"]:
    """Edges from nodes that are removed at a span; those into them end there, so they are on no path either."""
    writers = writers_of_edges(graph)
    return torch.stack([_gone(graph, names)[writers] for names in removed])


def edges_of_removed(graph: Graph, removed: set[str]) -> Bool[Tensor, "edge"]:
    """Edges from or into removed nodes; into a key/value head where all heads that share it are removed."""
    gone = _gone(graph, removed)
    result = torch.zeros(len(graph), dtype=torch.bool)
    for readers in graph.readers:
        into = torch.tensor([_reads_for(readers, name, gone, graph) for name in readers.names], dtype=torch.bool)
        readers.block(result)[:] = into[:, None] | gone[: readers.width]
    return result


def _gone(graph: Graph, removed: set[str]) -> Bool[Tensor, "writer"]:
    """Writers that are removed, themselves or with their layer."""
    if graph.convention.heads == "joined":
        removed = removed | _whole_layers(graph, removed)
    return torch.tensor([_is_of(name, removed) for name in graph.writers], dtype=torch.bool)


def _whole_layers(graph: Graph, removed: set[str]) -> set[str]:
    """Attention layers all of whose heads are removed."""
    shape = graph.architecture
    heads = {f"a{layer}": {f"a{layer}.h{head}" for head in range(shape.n_heads)} for layer in range(shape.n_layers)}
    return {layer for layer, own in heads.items() if own <= removed}


def _is_of(name: str, removed: set[str]) -> bool:
    return name in removed or (".h" in name and name.partition(".")[0] in removed)


def _reads_for(readers: Readers, name: str, gone: Tensor, graph: Graph) -> bool:
    """Whether a reader serves removed nodes only."""
    if readers.kind == "logits":
        return False
    node = name.partition("<")[0]
    if node in graph.writers:
        return bool(gone[graph.writers.index(node)])
    heads = graph.architecture.n_heads // graph.n_kv_readers  # a key/value head, which serves several heads
    first = graph.attention_writers(readers.layer) + int(node.partition(".kv")[2]) * heads
    return bool(gone[first : first + heads].all())
