"""Circuits of edges from circuits of nodes."""

from __future__ import annotations

from typing import Any

from tlprune.circuit import Circuit
from tlprune.effective import edges_of_removed
from tlprune.graph import Graph
from tlprune.sites import NODE_KINDS, Sites


def induced(circuit: Circuit, model: Any) -> Circuit:
    """All edges between the kept nodes of a circuit, so that it can share an axis with circuits of edges.

    Kept are an edge's writer and, unless it is the logits, the node that reads; of a key/value head one of the heads
    that share it. Nodes that the circuit does not speak of (the embeddings, of a circuit of heads) are kept. The edges
    compute what the nodes do, under every ablation of both. Their number is that of the result; it goes beside every
    figure of a circuit of nodes among circuits of edges.

    Args:
        circuit: of nodes, heads, MLPs or layers.
        model: the model, or a :class:`~tlprune.Graph` for another convention.

    Raises:
        ValueError: there are other sites, or spans; or single heads, in a graph of whole attention layers.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> nodes = Circuit.from_nodes(planted.model, planted.circuit.nodes)
        >>> nodes, induced(nodes, planted.model)
        (Circuit(2 of 11 nodes), Circuit(5 of 110 edges, 5 effective; embeddings merged, kv shared))
    """
    graph = model if isinstance(model, Graph) else Graph.of(model)
    if not {*circuit.sites.kinds} <= {*NODE_KINDS} or circuit.sites.spans:
        raise ValueError(
            f"Edges between nodes need a circuit of nodes, heads, MLPs or layers without spans but got "
            f"{circuit.sites}. Take one of these: tp.Circuit.from_nodes(model, circuit.nodes)."
        )
    if graph.convention.heads == "joined" and {*circuit.sites.kinds} - {"layers", "mlps"}:
        raise ValueError(
            f"Edges of whole attention layers keep all heads of a layer or none, but these sites are {circuit.sites}. "
            "Give a circuit of layers, or a graph whose nodes are heads."
        )
    removed = {circuit.sites.name(index) for index in (~circuit.kept).nonzero().flatten().tolist()}
    kept = ~edges_of_removed(graph, removed)
    shared = {key: circuit.provenance[key] for key in ("model", "ablation") if key in circuit.provenance}
    provenance = {**shared, "operation": "induced", "of": [dict(circuit.provenance)]}
    return Circuit(Sites((graph,)), kept, provenance)
