"""Masks: one gate for each site, and the circuit that they decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tlprune.circuit import Circuit
from tlprune.gates import Gate, HardConcrete
from tlprune.graph import Graph
from tlprune.pieces import expected_count
from tlprune.scores import Scores
from tlprune.sites import Sites


class Masks(nn.Module):
    """A trainable mask over sites. An optimiser and a state_dict of it hold masks and nothing of the model.

    Args:
        sites: where the masks go, such as ``tp.edges(model)`` or ``tp.heads(model) + tp.mlps(model)``.
        gate: the distribution of each mask value.

    Attributes:
        log_alpha: the gate's location for every site, ``(site,)``; higher is more likely kept.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> masks = Masks(Sites((Graph(Architecture(2, 2, 2)),)))
        >>> len(masks.log_alpha), len(masks.circuit(sparsity=0.75)), round(masks.density, 2)
        (46, 12, 0.97)
    """

    def __init__(self, sites: Sites, gate: Gate | None = None) -> None:
        super().__init__()
        self.sites = sites
        self.gate: Gate = gate or HardConcrete()
        self.log_alpha = nn.Parameter(torch.full((len(sites),), float(self.gate.initial)))

    @property
    def graph(self) -> Graph:
        """The graph of its edges; a ValueError if the sites are not edges."""
        return self.sites.graph

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "site"]:
        """One draw of every mask value."""
        return self.gate.sample(self.log_alpha, generator)

    @property
    def expected_kept(self) -> Float[Tensor, ""]:
        """Expected number of sites whose mask value is not 0."""
        return expected_count(self.gate.expected_kept, self.log_alpha)

    @property
    def density(self) -> float:
        """Expected fraction of sites that are kept."""
        return float(self.expected_kept.detach()) / len(self.log_alpha)

    def scores(self, provenance: Mapping[str, Any] | None = None) -> Scores:
        """The sites ranked by how likely they are kept; their score is ``log_alpha``."""
        return Scores(self.sites, self.log_alpha.detach().cpu().clone(), provenance or {})

    def circuit(
        self,
        *,
        sparsity: float | None = None,
        threshold: float | None = None,
        provenance: Mapping[str, Any] | None = None,
        **counts: int | None,
    ) -> Circuit:
        """The hard circuit: exact counts, the part ``1 - sparsity`` of each kind, or all soft values above a number.

        Without any of these, as many of each kind as its gates expect to keep.

        Args:
            sparsity: fraction of each kind to remove, in (0, 1).
            threshold: keep what has a soft mask value above it.
            provenance: where the circuit comes from; plain data.
            counts: how many to keep by kind, such as ``edges=170``; other kinds keep what their gates expect.

        Raises:
            ValueError: more than one of the three ways is used, or a number is out of range.
        """
        counts = {kind: count for kind, count in counts.items() if count is not None}
        if sum((sparsity is not None, threshold is not None, bool(counts))) > 1:
            raise ValueError("circuit() takes one of a count, sparsity and threshold but got several. Give one.")
        if threshold is not None:
            return Circuit(self.sites, self.gate.soft(self.log_alpha.detach()).cpu() > threshold, provenance or {})
        for kind in counts:
            self.sites.part(kind)
        kept = [self._top(kind, sparsity, counts.get(kind)).kept for kind in self.sites.kinds]
        return Circuit(self.sites, torch.cat(kept), provenance or {})

    def _top(self, kind: str, sparsity: float | None, count: int | None) -> Circuit:
        scores = self.scores().of(kind)
        if sparsity is not None:
            return scores.top(kept_at(sparsity, len(scores.sites)))
        if count is not None:
            return scores.top(count)
        return scores.top(
            round(float(expected_count(self.gate.expected_kept, self.log_alpha[self.sites.part(kind)].detach())))
        )


def kept_at(sparsity: float, total: int) -> int:
    """How many of ``total`` sites remain at a sparsity in (0, 1).

    Example:
        >>> kept_at(0.9, 1701)
        170
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"Sparsity must lie between 0 and 1 but is {sparsity}. For 95% removed give 0.95.")
    return round((1 - sparsity) * total)
