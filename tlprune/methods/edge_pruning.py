"""Edge Pruning: learn which edges a behaviour needs, by gradient descent on gates over all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.gates import HardConcrete
from tlprune.grouping import of_heads
from tlprune.learning.budgets import Budget, Budgets
from tlprune.masking.ablation import Ablation
from tlprune.masking.masks import Masks
from tlprune.masking.sites import attention_edges as attention_sites
from tlprune.masking.sites import edges as edge_sites
from tlprune.methods.mask_training import MaskTraining
from tlprune.methods.recipe import Recipe
from tlprune.methods.scales import By, check_by, scaled, scores_of
from tlprune.methods.scoring import check_sparsity
from tlprune.methods.scoring import size as count_of
from tlprune.methods.writer_gates import joint_circuit, joint_scores, reached_circuit, started, with_writers
from tlprune.scores import Scores, check_count
from tlprune.sites import Sites
from tlprune.task import Discovery


@dataclass(frozen=True)
class EdgePruning(MaskTraining):
    """Find the edges that a behaviour needs.

    Every edge has a hard concrete gate. Training lowers ``KL(full || masked)`` at the answer positions (of a model with
    one output the squared difference) under a Lagrangian that raises sparsity to the target; the circuit is the edges
    whose gates are most likely open, exactly as many as asked for, where those on no path from an embedding to the
    logits make room for the next ones (:class:`~tlprune.TopConnected`). :data:`tlprune.recipes` has the paper's
    settings for each of its tasks.

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
        objective: what training lowers; by default the difference from the full model, as of :func:`~tlprune.fit`.
        warm_start: a method whose scores decide where gates start, such as ``tp.EAPIG()``. With the rank of an edge
            scaled to ``r`` in [0, 1], 1 for the highest, its first ``log_alpha`` is the recipe's plus
            ``spread * (2 r - 1)``: the mean stays that of a cold start, and no score is an outlier.
        warm_by: ``"absolute"``: edges that matter either way start most open, as suits KL from the full model;
            ``"signed"``: those that help, or that another training of masks kept.
        spread: how far from the recipe's start the first and the last edge are.
        node_sparsity: gives every writer (embedding, head, MLP) a gate of its own, by which those of its edges are
            multiplied, and is the fraction of the writers to remove, in (0, 1): the paper's node loss. The edges of
            the circuit are then those of which the less open of the two gates is most open. ``None`` for edges alone.
        size: ``"exact"``: as many edges as ``sparsity`` or ``edges`` says; ``"reached"``: as many as training has
            reached, as the paper's code has it (the noise-free masks' sum, less edges of writers that are removed).
            ``sparsity`` is then a target, and one above 1 is pressure that never rests (``recipe="paper"`` alone).
        rate: learning rate of the masks; by default the recipe's, like the next three.
        multiplier_rate: learning rate of the multipliers.
        warmup: steps over which rates rise.
        rise: steps over which targets rise.
        spans: names of the task's spans; every edge then has a gate for each span, and one for the rest of the prompt,
            and ``edges`` counts pairs of edge and span.
        attention_edges: gives what heads move from each span to each a gate, too, and is how many of these to keep
            beside the edges, as of :func:`~tlprune.attention_edges`; needs ``spans``.

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
    objective: Any = None
    warm_start: Any = None
    warm_by: By = "absolute"
    spread: float = 1.0
    node_sparsity: float | None = None
    size: Literal["exact", "reached"] = "exact"
    rate: float | None = None
    multiplier_rate: float | None = None
    warmup: int | None = None
    rise: int | None = None
    spans: tuple[str, ...] = ()
    attention_edges: int | None = None

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)} but is {self.recipe!r}. Choose one of these.")
        self._check_size()
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("rise", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least} but is {value}. Leave it out for the recipe's own.")
        for name in ("rate", "multiplier_rate"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{name} must be above 0 and finite but is {value}. Leave it out for the recipe's own."
                )
        check_by(self.warm_by, "warm_by")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"spread must be at least 0 and finite but is {self.spread}. For a cold start give 0.")

    def _check_size(self) -> None:
        if self.size not in ("exact", "reached"):
            raise ValueError(f"size must be 'exact' or 'reached' but is {self.size!r}. Choose one of these.")
        if self.node_sparsity is not None and not 0 < self.node_sparsity < 1:
            raise ValueError(
                f"node_sparsity must lie between 0 and 1 but is {self.node_sparsity}. Give the fraction of writers "
                "to remove, or None."
            )
        if self.spans and (self.size == "reached" or self.node_sparsity is not None):
            raise ValueError(
                f"Edges by span have gates of their own and an exact number, but size is {self.size!r} and "
                f"node_sparsity {self.node_sparsity}. Leave these out, or spans."
            )
        if self.attention_edges is not None and not self.spans:
            raise ValueError(
                f"Attention edges lead from span to span, but {self.attention_edges} are asked for without spans. Name "
                "those of the task: spans=task.span_names."
            )
        if self.size == "exact":
            if self.edges is None and 1 <= self.sparsity < 2:
                raise ValueError(
                    f"Sparsity must lie between 0 and 1 but is {self.sparsity}. A target from 1 on, which presses "
                    "without rest, goes with recipe='paper', size='reached'."
                )
            return check_sparsity(self.sparsity, self.edges)
        most = 1 if RECIPES[self.recipe].gap == "log_density" else math.inf
        if self.edges is not None or not 0 < self.sparsity < most:
            raise ValueError(
                f"The size that is reached follows a target sparsity above 0, for the short recipe below 1, but "
                f"sparsity is {self.sparsity} and edges {self.edges}. Give such a sparsity and no edges, or "
                "size='exact'."
            )
        return None

    def sites(self, model: Any) -> Sites:
        embeddings = "kept" if self.keep_embeddings else "merged"
        found = edge_sites(model, embeddings=embeddings, kv=self.kv, qkv=self.qkv, heads=self.heads, spans=self.spans)
        if self.attention_edges is not None:
            kv = "per_query_head" if of_heads(found.graph).convention.ungrouped else "shared"
            return found + attention_sites(model, spans=self.spans, kv=kv)
        return found if self.node_sparsity is None else with_writers(found)

    def keep(self, sites: Sites) -> dict[str, int]:
        if self.size == "reached":
            return {}
        counts = {"edges": count_of(self.edges, self.sparsity, Sites((sites.group("edges"),)))}
        if self.attention_edges is not None:
            check_count(self.attention_edges, Sites((sites.group("attention_edges"),)))
            counts["attention_edges"] = self.attention_edges
        return counts

    def circuit(self, masks: Masks, provenance: Mapping[str, Any]) -> Circuit:
        if self.size == "reached":
            return reached_circuit(masks, provenance)
        if self.attention_edges is not None:
            return masks.circuit(**self.keep(masks.sites), provenance=provenance)
        return joint_circuit(masks, self.keep(masks.sites)["edges"], provenance)

    def scores(self, masks: Masks, provenance: Mapping[str, Any]) -> Scores:
        return joint_scores(masks, provenance) if self.attention_edges is None else masks.scores(provenance)

    def masks(self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool) -> Masks:
        gate = HardConcrete(initial=RECIPES[self.recipe].initial)
        return Masks(sites, gate, start=self._start(gate, model, discovery, sites, ablation, progress))

    def _start(
        self, gate: HardConcrete, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, progress: bool
    ) -> Float[Tensor, "site"] | None:
        if self.warm_start is None:
            return None
        edges = Sites((sites.group("edges"),))
        scores = scores_of(self.warm_start, model, discovery, edges, ablation, by=self.warm_by, progress=progress)
        own = (gate.initial + self.spread * (2 * scaled(scores, "rank") - 1)).float()
        return started(own, sites, gate.initial)

    def plan(self, masks: Masks) -> dict[str, Any]:
        steps = self.steps or RECIPES[self.recipe].steps
        recipe = self._tuned(steps)
        return {
            "objective": self.objective,
            "budget": self._budget(masks, recipe, steps),
            "steps": steps,
            "batch_size": self.batch_size,
            "optimiser": recipe.optimiser(steps),
            "validate_every": self.validate_every,
            "seed": self.seed,
        }

    def _tuned(self, steps: int) -> Recipe:
        """The recipe with the rates and warm-ups that were given, which it has as fractions of the steps."""
        own = {"rate": self.rate, "multiplier_rate": self.multiplier_rate}
        own |= {name: None if (given := getattr(self, name)) is None else given / steps for name in ("warmup", "rise")}
        return replace(RECIPES[self.recipe], **{name: value for name, value in own.items() if value is not None})

    def _budget(self, masks: Masks, recipe: Recipe, steps: int) -> Budget | Budgets:
        if self.size == "reached":
            kind = None if self.node_sparsity is None else "edges"
            own: Any = recipe.pressure(self.sparsity, steps, on=kind)
        else:
            own = self._exact_budget(masks, recipe, steps)
        return own if self.node_sparsity is None else own + recipe.pressure(self.node_sparsity, steps, on="nodes")

    def _exact_budget(self, masks: Masks, recipe: Recipe, steps: int) -> Budget | Budgets:
        """A target for each kind of site that the circuit has an exact number of."""
        counts = self.keep(masks.sites)
        budgets = [
            replace(recipe.budget(count, len(masks.log_alpha[masks.part(kind)]), steps), on=kind)
            for kind, count in counts.items()
        ]
        if len(budgets) > 1:
            return Budgets(tuple(budgets))
        return replace(budgets[0], on=None) if self.node_sparsity is None else budgets[0]


RECIPES = {
    "short": Recipe(2.0, 300, 0.1, 0.1, 0.0, None, 0.0, 2 / 3, "expected", "logarithmic", "log_density", samples=4),
    "paper": Recipe(10.0, 3000, 0.8, 0.8, 0.01, 1.0, 200 / 3000, 2500 / 3000, "sampled", "linear"),
}
