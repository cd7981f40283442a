"""Which kept sites can matter at all, given which others are gone."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from tlprune.graph import Graph, Readers
from tlprune.sites import Neurons, Nodes, Sites


def effective_sites(sites: Sites, kept: Bool[Tensor, "site"]) -> Bool[Tensor, "site"]:
    """The kept sites that are not made void by others.

    An edge counts if it lies on a path of kept edges from an embedding to the logits that passes through no removed
    head, MLP or layer; a head if its layer is kept, a neuron if its MLP is. Where sites differ by span, a path may pass
    from one span into another (attention moves information between positions), so a site counts that is on a path of
    edges kept in any.
    """
    removed, result = removed_nodes(sites, kept), kept.clone()
    if "heads" in sites.kinds:
        names = sites.bare("heads")
        gone = [_is_of(names.name(index), removed) for index in range(len(names))]
        result[sites.part("heads")].view(-1, len(names))[:, gone] = False
    if "neurons" in sites.kinds:
        neurons = sites.bare("neurons")
        assert isinstance(neurons, Neurons)
        gone = [f"m{layer}" in removed for layer in neurons.layers]
        result[sites.part("neurons")].view(-1, len(gone), neurons.width)[:, gone] = False
    if "edges" in sites.kinds:
        graph, rows = sites.graph, result[sites.part("edges")].view(-1, sites.graph.n_edges)
        rows &= graph.effective(rows.any(0) & ~edges_of_removed(graph, removed))
    return result


def removed_nodes(sites: Sites, kept: Tensor) -> set[str]:
    """Nodes that are removed in every span."""
    removed: set[str] = set()
    for kind in sites.kinds:
        group = sites.bare(kind)
        if isinstance(group, Nodes):
            gone = ~kept[sites.part(kind)].view(-1, len(group)).any(0)
            removed |= {group.name(index) for index in gone.nonzero().flatten().tolist()}
    return removed


def edges_of_removed(graph: Graph, removed: set[str]) -> Bool[Tensor, "edge"]:
    """Edges from or into removed nodes; into a key/value head where all heads that share it are removed."""
    if graph.convention.heads == "joined":
        removed = removed | _whole_layers(graph, removed)
    gone = torch.tensor([_is_of(name, removed) for name in graph.writers], dtype=torch.bool)
    result = torch.zeros(len(graph), dtype=torch.bool)
    for readers in graph.readers:
        into = torch.tensor([_reads_for(readers, name, gone, graph) for name in readers.names], dtype=torch.bool)
        readers.block(result)[:] = into[:, None] | gone[: readers.width]
    return result


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
