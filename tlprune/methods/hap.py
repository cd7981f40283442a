"""Hybrid attribution and pruning: Edge Pruning among the edges that an attribution lets through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tlprune.masking.ablation import Ablation
from tlprune.masking.masks import Masks
from tlprune.methods.eap import EAP
from tlprune.methods.edge_pruning import EdgePruning
from tlprune.selection import Top
from tlprune.sites import Sites
from tlprune.task import Discovery


@dataclass(frozen=True)
class HAP(EdgePruning):
    """Find a circuit by another method, and prune its edges further.

    First ``attribution`` finds a circuit, of a size and by a selection of its own. Then :class:`EdgePruning` trains
    gates on the edges of this circuit alone; all others are ablated throughout, never come back, and are not counted,
    so the target rises from the size of the first circuit to that of the second.

    Scores are those of the pruning; edges that the attribution left out come last, all with the same score.

    Attributes:
        attribution: a method with ``find``, such as ``tp.EAP(sparsity=0.75)``; what its circuit keeps is pruned.
        sparsity: fraction of all edges to remove in the end, in (0, 1).
        edges: how many to keep in the end; instead of ``sparsity``.
        recipe: as of :class:`EdgePruning`.
        steps: training steps; by default the recipe's.
        batch_size: examples per step.
        keep_embeddings: embedding edges are never removed and not counted.
        kv: under grouped-query attention, k and v readers per key/value head or per query head.
        qkv: ``"split"``, or ``"joined"``: an edge into a head carries q, k and v together.
        heads: ``"split"``, or ``"joined"``: all heads of a layer are one node.
        validate_every: steps between hard measurements on validation examples.
        seed: of mask samples and example order.
        objective: as of :class:`EdgePruning`.
        warm_start: a method whose scores decide where gates start, as of :class:`EdgePruning`.
        warm_by: whether these count by size.
        spread: how far apart the gates start.
        rate: learning rate of the masks; by default the recipe's, like the next three.
        multiplier_rate: learning rate of the multipliers.
        warmup: steps over which rates rise.
        rise: steps over which the target rises.
        node_sparsity: nothing but ``None``: edges that are left out have no writers to share.
        size: nothing but ``"exact"``.
        spans: as of :class:`EdgePruning`; the same as of ``attribution``.
        attention_edges: nothing but ``None``: ``attribution`` scores edges alone.

    Raises:
        ValueError: ``attribution`` finds other sites, or keeps fewer edges than are to be kept in the end;
            ``node_sparsity``, ``size`` or ``attention_edges`` is another.

    Source: Gu et al., "Discovering Transformer Circuits via a Hybrid Attribution and Pruning Framework" (2025).

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> method = HAP(edges=len(planted.circuit), steps=20, attribution=tp.EAP(edges=30))
        >>> method.find(planted.model, planted.task) == planted.circuit
        True
    """

    attribution: Any = field(default=EAP(sparsity=0.75, selection=Top("absolute")))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.node_sparsity is not None or self.size != "exact" or self.attention_edges is not None:
            raise ValueError(
                f"HAP prunes edges alone, to an exact number, but node_sparsity is {self.node_sparsity}, size "
                f"{self.size!r} and attention_edges {self.attention_edges}. Leave these out, or take EdgePruning."
            )

    def masks(self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool) -> Masks:
        cold = super().masks(model, discovery, sites, ablation, progress=progress)
        among = self.attribution.find(model, discovery, ablation=ablation, progress=progress)
        count = self.keep(sites)["edges"]
        if among.sites != sites or len(among) < count:
            raise ValueError(
                f"HAP prunes {sites} to {count:,} edges but {type(self.attribution).__name__} found {among!r}. Give "
                "both the same convention, and the attribution a lower sparsity."
            )
        return Masks(sites, cold.gate, start=cold.start, among=among)
