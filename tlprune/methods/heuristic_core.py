"""The Heuristic Core's pruning: which heads and MLPs a fine-tuned model needs to stay itself, under mean ablation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from tlprune.circuit import Circuit
from tlprune.gates import HardConcrete
from tlprune.learning.objectives import KL
from tlprune.masking.ablation import Ablation
from tlprune.masking.masks import Masks
from tlprune.masking.means import Mean
from tlprune.masking.sites import nodes as node_sites
from tlprune.methods.ablations import ablation_for
from tlprune.methods.edge_pruning import RECIPES
from tlprune.methods.mask_training import MaskTraining
from tlprune.methods.recipe import Recipe
from tlprune.methods.scoring import check_sparsity, size
from tlprune.named import check_apart, chosen
from tlprune.sites import Sites
from tlprune.task import Discovery

WARMUP = 200  # steps over which rates rise


@dataclass(frozen=True, kw_only=True)
class HeuristicCore(MaskTraining):
    """Find heads and MLPs with which a model stays itself, all others at their mean.

    Every head (what it writes, in front of the output projection) and every MLP has a hard concrete gate, and all count
    alike. An ablated one sends ``mu``, its mean over all real tokens of the clean training prompts. Training lowers
    ``KL(full || masked)`` of the answers under a Lagrangian that raises sparsity to the target; labels are not used.
    The circuit is the ``nodes`` that are most likely kept, exactly as many as asked for. On models that classify, and
    on decoders at the answer positions.

    Subnetworks of several seeds agree with the full model on its own data and may differ elsewhere:
    :func:`~tlprune.subnetworks` finds one for each seed and sparsity.

    Attributes:
        sparsity: fraction of the heads and MLPs to remove, in (0, 1).
        nodes: how many to keep; instead of ``sparsity``.
        pattern: names of what may go, such as ``"a*"`` for heads alone; all else is kept and not counted.
        include: names of what of this must stay, such as ``"a0.h3|m*"``; it counts as kept.
        exclude: names of what of this must go; it counts as removed.
        recipe: ``"paper"``: gates start at ``N(10, 0.01)``, the sampled sparsity follows a straight line to its target,
            ``6500 + 50 S`` steps for ``S`` percent and ``6 S`` more, as released, on a model of 156 heads and MLPs;
            ``"short"``: gates start at 2, and the logarithm of the expected density follows a straight line (300
            steps), for models of a few layers.
        steps: training steps; by default the recipe's; its parts keep their shares.
        batch_size: examples per step.
        samples: mask samples per step, each for an equal part of the batch: the released code accumulates gradients of
            4 batches of 32.
        validate_every: steps between hard measurements on validation examples.
        seed: of mask samples, first gates and example order; the released subnetworks have 42 to 53.

    Raises:
        ValueError: a number is out of range; or in :meth:`find`, the task is a regression, a name matches nothing or is
            for both, or more is included than is to be kept or excluded than is to be removed.

    Source: Bhaskar, Friedman, Chen, "The Heuristic Core: Understanding Subnetwork Generalization in Pretrained Language
    Models" (ACL 2024), section 3. Its code trains gates and multipliers with AdamW at 0.1 and 1, a decay of 0.01 and
    gradients clipped at 1, which are torch's and transformers' defaults.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("induction")
        >>> pruning = HeuristicCore(nodes=2, recipe="short", steps=40)
        >>> pruning.find(planted.model, planted.task).names == planted.circuit.heads
        True
    """

    sparsity: float = 0.5
    nodes: int | None = None
    pattern: str = "a*|m*"
    include: str | None = None
    exclude: str | None = None
    recipe: Literal["paper", "short"] = "paper"
    steps: int | None = None
    batch_size: int = 128
    samples: int = 4
    validate_every: int | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        if self.recipe not in ("paper", "short"):
            raise ValueError(f"recipe must be 'paper' or 'short' but is {self.recipe!r}. Choose one of these.")
        check_sparsity(self.sparsity, self.nodes)
        for name in ("steps", "batch_size", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 but is {value}. Leave it out for the recipe's own.")

    def sites(self, model: Any) -> Sites:
        return node_sites(model, self.pattern)

    def keep(self, sites: Sites) -> dict[str, int]:
        count = size(self.nodes, self.sparsity, sites)
        always, among = self._always(sites), self._among(sites)
        least, most = 0 if always is None else len(always), len(sites) if among is None else len(among)
        if not least <= count <= most:
            raise ValueError(
                f"Of {sites} {least:,} are included and {len(sites) - most:,} excluded, so {least:,} to {most:,} can "
                f"be kept, but {count:,} were asked for. Name fewer, or choose another size."
            )
        return {"nodes": count}

    def ablation(self, discovery: Discovery, given: Ablation | None) -> Ablation:
        """The given one, by default the mean over the clean training prompts."""
        return ablation_for(discovery, given or Mean(discovery.train().clean))

    def masks(self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool) -> Masks:
        if discovery.train().targets is not None:
            raise ValueError(
                f"The Heuristic Core needs classes or tokens but {discovery.name!r} is a regression, whose one output "
                "has no KL. Train masks of yours: tp.fit(masked, task.discovery, tp.SquaredError(), budget)."
            )
        gate = HardConcrete(initial=self._recipe(self.sparsity).initial)
        start = None
        if self.recipe == "paper":
            noise = torch.randn(len(sites), generator=torch.Generator().manual_seed(self.seed))
            start = gate.initial + 0.01 * noise
        return Masks(sites, gate, start=start, among=self._among(sites), always=self._always(sites))

    def _among(self, sites: Sites) -> Circuit | None:
        """What may be kept; ``None`` for all."""
        return None if self.exclude is None else Circuit(sites, ~chosen(sites, self.exclude))

    def _always(self, sites: Sites) -> Circuit | None:
        """What must be kept."""
        if self.include is None:
            return None
        keep = chosen(sites, self.include)
        check_apart(sites, keep, chosen(sites, self.exclude or ()))
        return Circuit(sites, keep)

    def plan(self, masks: Masks) -> dict[str, Any]:
        count, total = self.keep(masks.sites)["nodes"], len(masks.sites)
        recipe = self._recipe(self.sparsity if self.nodes is None else 1 - count / total)
        return {
            "objective": KL(),
            "budget": recipe.budget(count, len(masks.log_alpha[masks.part()]), recipe.steps),
            "steps": recipe.steps,
            "batch_size": self.batch_size,
            "optimiser": recipe.optimiser(recipe.steps),
            "validate_every": self.validate_every,
            "seed": self.seed,
        }

    def _recipe(self, sparsity: float) -> Recipe:
        if self.recipe == "short":
            return replace(RECIPES["short"], steps=self.steps or RECIPES["short"].steps, samples=self.samples)
        rise, rest = 6500 + 5000 * sparsity, 600 * sparsity
        steps, whole = self.steps or round(rise + rest), rise + rest
        return Recipe(
            initial=10.0,
            steps=steps,
            rate=0.1,
            multiplier_rate=1.0,
            weight_decay=0.01,
            clip=1.0,
            warmup=WARMUP / whole,
            rise=rise / whole,
            measure="sampled",
            path="linear",
            samples=self.samples,
        )
