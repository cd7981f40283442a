"""ACDC as its paper states it, one run of the model for every edge: the definition that the fast search is held to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from tlprune.graph import Graph


def acdc_plain(metric: Callable[[Tensor], float], graph: Graph, threshold: float) -> Bool[Tensor, "edge"]:
    """Remove every edge whose removal raises the metric by less than the threshold.

    Edges are tried in the reverse order of the graph: readers from the logits back, within a block all v, then all k,
    then all q, each from the last head to the first, and for each reader its writers from the last to the first. The
    metric without an edge is compared with that of the current circuit, which has lost all edges removed so far.

    Args:
        metric: of a hard circuit, lower for a better one.
        graph: the edges.
        threshold: smallest rise of the metric for which an edge stays.

    Source: Conmy et al., "Towards Automated Circuit Discovery for Mechanistic Interpretability" (NeurIPS 2023),
    algorithm 1. The order is that of its code with ``indices_mode="normal"``; by default that takes the heads of one
    block that write to a reader from the first to the last.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(1, 1, 1))
        >>> kept = acdc_plain(lambda kept: -2.0 * float(kept[7]) - float(kept[3]), graph, threshold=1.5)
        >>> graph.edges(kept)
        ['m0->logits']
    """
    kept = torch.ones(graph.n_edges, dtype=torch.bool)
    current = metric(kept)
    for edge in reversed(range(graph.n_edges)):
        without = kept.clone()
        without[edge] = False
        value = metric(without)
        if value - current < threshold:
            kept, current = without, value
    return kept
