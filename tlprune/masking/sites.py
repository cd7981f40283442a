"""Sites: the places in a model that a mask has a value for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tlprune.graph import Convention, Graph


@dataclass(frozen=True)
class EdgeSites:
    """All edges of a model's graph.

    Attributes:
        graph: the edges and their order.
    """

    graph: Graph

    def __len__(self) -> int:
        return self.graph.n_edges


def edges(
    model: Any,
    *,
    embeddings: Literal["merged", "separate", "kept"] = "merged",
    kv: Literal["shared", "per_query_head"] = "shared",
) -> EdgeSites:
    """The edges of a model as sites for a mask.

    Args:
        model: a TransformerLens model.
        embeddings: whether token and position embedding are one node, two, or always kept and not counted.
        kv: whether grouped-query attention has one k and v reader per key/value head or per query head.
    """
    return EdgeSites(Graph.of(model, Convention(embeddings, kv)))
