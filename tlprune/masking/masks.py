"""Masks: one gate for each site, and the circuit that they decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tlprune.circuit import Circuit, Scores
from tlprune.gates import HardConcrete
from tlprune.graph import Graph
from tlprune.masking.sites import EdgeSites


class Masks(nn.Module):
    """A trainable mask over sites. An optimiser and a state_dict of it hold masks and nothing of the model.

    Args:
        sites: where the masks go, such as ``tp.edges(model)``.
        gate: the distribution of each mask value.

    Attributes:
        log_alpha: the gate's location for every site, ``(edge,)``; higher is more likely kept.

    Example:
        >>> from tlprune.graph import Architecture
        >>> masks = Masks(EdgeSites(Graph(Architecture(2, 2, 2))))
        >>> len(masks.log_alpha), len(masks.circuit(sparsity=0.75)), round(masks.density, 2)
        (46, 12, 0.97)
    """

    def __init__(self, sites: EdgeSites, gate: HardConcrete | None = None) -> None:
        super().__init__()
        self.graph = sites.graph
        self.gate = gate or HardConcrete()
        self.log_alpha = nn.Parameter(torch.full((len(sites),), float(self.gate.initial)))

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "edge"]:
        """One draw of every mask value."""
        return self.gate.sample(self.log_alpha, generator)

    @property
    def expected_kept(self) -> Float[Tensor, ""]:
        """Expected number of edges whose mask value is not 0."""
        return self.gate.expected_kept(self.log_alpha).sum()

    @property
    def density(self) -> float:
        """Expected fraction of edges that are kept."""
        return float(self.expected_kept.detach()) / len(self.log_alpha)

    def scores(self) -> Scores:
        """The edges ranked by how likely they are kept."""
        return Scores(self.graph, self.log_alpha.detach().cpu().clone())

    def circuit(
        self,
        *,
        edges: int | None = None,
        sparsity: float | None = None,
        threshold: float | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Circuit:
        """The hard circuit: exactly ``edges`` edges, the fraction ``1 - sparsity``, or all soft values above a number.

        With none of the three, as many edges as the gates expect to keep.

        Raises:
            ValueError: more than one of the three is given, or it is out of range.
        """
        if sum(choice is not None for choice in (edges, sparsity, threshold)) > 1:
            raise ValueError("circuit() takes one of edges, sparsity and threshold but got several. Give one.")
        if threshold is not None:
            kept = self.gate.soft(self.log_alpha.detach()).cpu() > threshold
            return Circuit(self.graph, kept, provenance or {})
        count = round(float(self.expected_kept.detach())) if edges is None else edges
        if sparsity is not None:
            count = edges_at(sparsity, self.graph)
        return Circuit(self.graph, self.scores().top(count).kept, provenance or {})


def edges_at(sparsity: float, graph: Graph) -> int:
    """How many edges of a graph remain at a sparsity in (0, 1).

    Example:
        >>> from tlprune.graph import Architecture
        >>> edges_at(0.9, Graph(Architecture(5, 8, 4)))
        170
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"Sparsity must lie between 0 and 1 but is {sparsity}. For 95% removed give 0.95.")
    return round((1 - sparsity) * graph.n_edges)
