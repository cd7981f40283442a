"""Edge Pruning: learn which edges a behaviour needs, by gradient descent on gates over all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from tlprune.gates import HardConcrete
from tlprune.learning.objectives import KL
from tlprune.masking.ablation import Ablation
from tlprune.masking.masks import Masks
from tlprune.masking.sites import edges as edge_sites
from tlprune.methods.mask_training import MaskTraining
from tlprune.methods.recipe import Recipe
from tlprune.methods.scales import By, check_by, scaled, scores_of
from tlprune.methods.scoring import check_sparsity, size
from tlprune.sites import Sites
from tlprune.task import Discovery


@dataclass(frozen=True)
class EdgePruning(MaskTraining):
    """Find the edges that a behaviour needs.

    Every edge has a hard concrete gate. Training lowers ``KL(full || masked)`` at the answer positions under a
    Lagrangian that raises sparsity to the target; the circuit is the edges whose gates are most likely open, exactly
    as many as asked for.

    Attributes:
        sparsity: fraction of the edges to remove, in (0, 1).
        edges: how many to keep; instead of ``sparsity``.
        recipe: ``"short"``: gates start where gradients flow, and the logarithm of the closed-form expected density
            falls in a straight line to its target (300 steps);
            ``"paper"``: the released code's (start at 10, sampled sparsity, decay 0.01, 3,000 steps).
        steps: training steps; by default the recipe's.
        batch_size: examples per step.
        keep_embeddings: embedding edges are never removed and not counted.
        kv: under grouped-query attention, k and v readers per key/value head or per query head.
        qkv: ``"split"``, or ``"joined"``: an edge into a head carries q, k and v together.
        heads: ``"split"``, or ``"joined"``: all heads of a layer are one node.
        validate_every: steps between hard measurements on validation examples.
        seed: of mask samples and example order.
        warm_start: a method whose scores decide where gates start, such as ``tp.EAPIG()``. With the rank of an edge
            scaled to ``r`` in [0, 1], 1 for the highest, its first ``log_alpha`` is the recipe's plus
            ``spread * (2 r - 1)``: the mean stays that of a cold start, and no score is an outlier.
        warm_by: ``"absolute"``: edges that matter either way start most open, as suits KL from the full model;
            ``"signed"``: those that help, or that another training of masks kept.
        spread: how far from the recipe's start the first and the last edge are.

    Source: Bhaskar, Wettig, Friedman, Chen, "Finding Transformer Circuits with Edge Pruning" (NeurIPS 2024). Warm
    starts: Mondorf et al., "BlackboxNLP-2025 MIB Shared Task: Exploring Ensemble Strategies for Circuit Localization
    Methods" (2025), who start from the sizes of EAP-IG's scores.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> circuit = EdgePruning(edges=len(planted.circuit), steps=60).find(planted.model, planted.task)
        >>> circuit == planted.circuit
        True
    """

    sparsity: float = 0.95
    edges: int | None = None
    recipe: Literal["short", "paper"] = "short"
    steps: int | None = None
    batch_size: int = 32
    keep_embeddings: bool = False
    kv: Literal["shared", "per_query_head"] = "shared"
    qkv: Literal["split", "joined"] = "split"
    heads: Literal["split", "joined"] = "split"
    validate_every: int | None = None
    seed: int = 0
    warm_start: Any = None
    warm_by: By = "absolute"
    spread: float = 1.0

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)} but is {self.recipe!r}. Choose one of these.")
        check_sparsity(self.sparsity, self.edges)
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 but is {value}. Leave it out for the recipe's own.")
        check_by(self.warm_by, "warm_by")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"spread must be at least 0 and finite but is {self.spread}. For a cold start give 0.")

    def sites(self, model: Any) -> Sites:
        return edge_sites(
            model,
            embeddings="kept" if self.keep_embeddings else "merged",
            kv=self.kv,
            qkv=self.qkv,
            heads=self.heads,
        )

    def keep(self, sites: Sites) -> dict[str, int]:
        return {"edges": size(self.edges, self.sparsity, sites)}

    def masks(self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool) -> Masks:
        gate = HardConcrete(initial=RECIPES[self.recipe].initial)
        return Masks(sites, gate, start=self._start(gate, model, discovery, sites, ablation, progress))

    def _start(
        self, gate: HardConcrete, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, progress: bool
    ) -> Float[Tensor, "site"] | None:
        if self.warm_start is None:
            return None
        scores = scores_of(self.warm_start, model, discovery, sites, ablation, by=self.warm_by, progress=progress)
        return (gate.initial + self.spread * (2 * scaled(scores, "rank") - 1)).float()

    def plan(self, masks: Masks) -> dict[str, Any]:
        recipe = RECIPES[self.recipe]
        steps, count = self.steps or recipe.steps, self.keep(masks.sites)["edges"]
        return {
            "objective": KL(),
            "budget": recipe.budget(count, len(masks.log_alpha[masks.part()]), steps),
            "steps": steps,
            "batch_size": self.batch_size,
            "optimiser": recipe.optimiser(steps),
            "validate_every": self.validate_every,
            "seed": self.seed,
        }


RECIPES = {
    "short": Recipe(2.0, 300, 0.1, 0.1, 0.0, None, 0.0, 2 / 3, "expected", "logarithmic", "log_density", samples=4),
    "paper": Recipe(10.0, 3000, 0.8, 0.8, 0.01, 1.0, 200 / 3000, 2500 / 3000, "sampled", "linear"),
}
