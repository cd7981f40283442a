"""Ensembles: the scores of several methods as one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.masking.ablation import Ablation
from tlprune.methods.eap_ig import EAPIG
from tlprune.methods.edge_pruning import EdgePruning
from tlprune.methods.scales import By, Scale, check_by, scaled, scores_of
from tlprune.methods.scoring import Scoring, check_sparsity, size
from tlprune.selection import Selection, Top
from tlprune.sites import Sites
from tlprune.task import Discovery

Combine = Literal["mean", "min", "max"]


@dataclass(frozen=True, kw_only=True)
class Ensemble(Scoring):
    """Score every site by several methods, put the scores on one scale, and take their mean, least or largest.

    The least asks that all methods agree on a site, as the intersection of their circuits does; the largest that one of
    them wants it, as the union does. The source averages raw scores of variants of EAP, whose unit is the same; ranks
    serve any methods.

    Attributes:
        methods: methods with ``score``, of the same sites.
        combine: ``"mean"``, ``"min"`` or ``"max"``.
        scale: ``"rank"``: 0 to 1 by rank; ``"standardised"``: mean 0 and standard deviation 1; ``"largest"``: divided
            by the largest size; ``"raw"``: as they are.
        by: ``"signed"``, or ``"absolute"``: each method's scores by size, taken before they are scaled.
        sparsity: fraction of the sites to remove, in (0, 1).
        edges: how many edges to keep; instead of ``sparsity``.
        nodes: the same, for methods of nodes.
        selection: which circuit of this size is taken.

    Raises:
        ValueError: the methods score different sites; found before any of them runs.

    Source: Mondorf et al., "BlackboxNLP-2025 MIB Shared Task: Exploring Ensemble Strategies for Circuit Localization
    Methods" (2025).

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> method = Ensemble(methods=(tp.EAP(), tp.EAP(objective=tp.CrossEntropy())), edges=len(planted.circuit))
        >>> method.find(planted.model, planted.task) == planted.circuit
        True
    """

    methods: tuple[Any, ...] = field(default=(EAPIG(), EdgePruning(warm_start=EAPIG())))
    combine: Combine = "mean"
    scale: Scale = "rank"
    by: By = "signed"
    sparsity: float = 0.95
    edges: int | None = None
    nodes: int | None = None
    selection: Selection = field(default=Top())

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity, self.nodes if self.edges is None else self.edges)
        check_by(self.by, "by")
        for name, choices in (("combine", Combine), ("scale", Scale)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(choices))} but is {getattr(self, name)!r}. Choose one "
                    "of these."
                )
        if not self.methods or not all(hasattr(method, "score") for method in self.methods):
            raise ValueError(
                f"An ensemble needs methods that score, but got {self.methods}. Give some: (tp.EAP(), "
                "tp.EdgePruning())."
            )

    def sites(self, model: Any) -> Sites:
        found = [method.sites(model) for method in self.methods]
        if len(set(found)) > 1:
            raise ValueError(
                f"An ensemble needs methods of the same sites but these score {', '.join(map(str, found))}. Give all "
                "the same embeddings=, kv= and level."
            )
        return found[0]

    def count(self, sites: Sites) -> int:
        kind, other = ("edges", "nodes") if "edges" in sites.kinds else ("nodes", "edges")
        if getattr(self, other) is not None:
            raise ValueError(
                f"This ensemble scores {sites} but was given {other}={getattr(self, other)}. Give {kind}= instead."
            )
        return size(getattr(self, kind), self.sparsity, sites)

    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        every = [
            scaled(scores_of(method, model, discovery, sites, ablation, by=self.by, progress=progress), self.scale)
            for method in self.methods
        ]
        stacked = torch.stack(every)
        combined = {"mean": stacked.mean, "min": stacked.amin, "max": stacked.amax}[self.combine](0)
        return combined.float()
