"""Gates of writers beside those of edges: an edge is open as far as both its own gate and its writer's are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.connecting import filled
from tlprune.graph import Graph
from tlprune.masking.masks import Masks
from tlprune.scores import Scores, first
from tlprune.sites import Nodes, Sites


def with_writers(edges: Sites) -> Sites:
    """The edges, and beside them every writer that they come from.

    Example:
        >>> from tlprune.graph import Architecture
        >>> print(with_writers(Sites((Graph(Architecture(1, 1, 1)),))))
        8 edges + 3 nodes (embeddings merged, kv shared)
    """
    return edges + Sites((Nodes("nodes", edges.graph.writers),))


def writer_of_each(graph: Graph, values: Shaped[Tensor, "writer"]) -> Shaped[Tensor, "edge"]:
    """For each edge the value of its writer."""
    return torch.cat([values[: readers.width].repeat(len(readers.names)) for readers in graph.readers])


def joint_scores(masks: Masks, provenance: Mapping[str, Any]) -> Scores:
    """The lower of an edge's ``log_alpha`` and its writer's; of edges alone the edge's own.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(1, 1, 1))
        >>> masks = Masks(with_writers(Sites((graph,))), start=torch.tensor([7.0] * 8 + [9.0, 8.0, 1.0]))
        >>> [edge for edge in graph.edges() if joint_scores(masks, {})[edge] < 7]
        ['m0->logits']
    """
    values, graph = masks.scores().values, masks.sites.graph
    own = values[masks.sites.part("edges")]
    if "nodes" in masks.sites.kinds:
        own = torch.minimum(own, writer_of_each(graph, values[masks.sites.part("nodes")]))
    return Scores(_edges(masks), own, provenance)


def joint_circuit(masks: Masks, count: int, provenance: Mapping[str, Any]) -> Circuit:
    """The edges of the highest joint score, less those on no path; see :meth:`~tlprune.Masks.circuit`."""
    if "nodes" not in masks.sites.kinds:
        return masks.circuit(edges=count, provenance=provenance)
    scores = joint_scores(masks, provenance)
    kept = filled(scores.sites, first(scores.values, count), scores.values)
    return Circuit(scores.sites, kept, provenance)


def reached_circuit(masks: Masks, provenance: Mapping[str, Any]) -> Circuit:
    """As many edges as their noise-free masks add up to, without those whose writer is not among as many writers.

    Source: Bhaskar et al. 2024, whose code bisects a threshold of either kind to one less their mean.
    """
    sites = masks.sites
    hard = {kind: masks.gate.harden(masks.log_alpha.detach()[masks.part(kind)]) for kind in sites.kinds}
    own = {kind: masks.log_alpha.detach()[masks.part(kind)] for kind in sites.kinds}
    kept = torch.cat([first(own[kind], round(float(values.sum()))) for kind, values in hard.items()])
    return Circuit(_edges(masks), _of_kept_writers(sites, kept), provenance)


def _of_kept_writers(sites: Sites, kept: Bool[Tensor, "site"]) -> Bool[Tensor, "edge"]:
    own = kept[sites.part("edges")]
    return own & writer_of_each(sites.graph, kept[sites.part("nodes")]) if "nodes" in sites.kinds else own


def _edges(masks: Masks) -> Sites:
    return Sites((masks.sites.group("edges"),))


def started(own: Float[Tensor, "edge"] | None, sites: Sites, initial: float) -> Float[Tensor, "site"] | None:
    """First ``log_alpha`` of edges, and beside them of writers, which start open alike."""
    return None if own is None else torch.cat([own, own.new_full((len(sites) - len(own),), initial)])
