"""Multi-granular pruning: layers, heads, MLPs and neurons in one run, each at its own price."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

from tlprune.backends import backend_of
from tlprune.gates import HardConcrete
from tlprune.learning.budgets import Budgets, Penalty
from tlprune.learning.objectives import KL
from tlprune.learning.optimiser import Optimiser
from tlprune.masking.ablation import Ablation
from tlprune.masking.masks import Masks
from tlprune.masking.sites import heads, layers, mlps, neurons
from tlprune.methods.mask_training import MaskTraining
from tlprune.methods.subnetwork_probing import INITIAL
from tlprune.sites import Sites
from tlprune.task import Discovery

# What of a model each granularity is. Whole MLPs are ``mlps``, so ``layers`` are those of attention.
SITES = {"layers": lambda model: layers(model, "a*"), "heads": heads, "mlps": mlps, "neurons": neurons}
OF_MLPS = ("mlps", "neurons")


@dataclass(frozen=True, kw_only=True)
class MultiGranularPruning(MaskTraining):
    """Find the attention layers, heads, MLPs and neurons that are worth their price, all in one run.

    Every site has a hard concrete gate. Mask values multiply: a head counts as that of its layer times its own, a
    neuron as that of its MLP times its own, so a whole layer may close at once or part by part. Training lowers the
    objective plus, for each granularity, its price times the mean of ``P(z > 0)`` over its sites. The circuit is the
    sites with ``log_alpha > 0``; ``circuit.effective`` leaves out heads of layers and neurons of MLPs that are gone.

    Models without MLPs have attention layers and heads alone. The source also masks whole blocks, here an attention
    layer and an MLP each on its own, and single neurons of attention, which are not masked here. Its prices are its
    own; these are chosen so that one layer of twelve costs a tenth of a nat.

    Attributes:
        layers: the price of keeping all attention layers instead of none, in units of the objective (nats); ``None``
            leaves them unmasked.
        heads: that of all heads.
        mlps: that of all MLPs.
        neurons: that of all neurons of MLPs.
        objective: what training lowers beside the prices.
        steps: training steps.
        rate: learning rate of the masks.
        samples: mask samples per step, each for an equal part of the batch.
        batch_size: examples per step.
        validate_every: steps between hard measurements on validation examples.
        seed: of mask samples and example order.

    Source: Haider, Rizwan, Sajjad, Siddique, "Multi-Granular Node Pruning for Circuit Discovery" (2025,
    arXiv 2512.10903).

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("induction")
        >>> circuit = MultiGranularPruning(steps=40, samples=2).find(planted.model, planted.task)
        >>> circuit.names
        ['a0', 'a1', 'a0.h2', 'a1.h1']
    """

    layers: float | None = 1.0
    heads: float | None = 1.0
    mlps: float | None = 1.0
    neurons: float | None = 1.0
    objective: Any = field(default=KL())
    steps: int = 300
    rate: float = 0.1
    samples: int = 4
    batch_size: int = 32
    validate_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prices:
            raise ValueError("Pruning needs a granularity but all prices are None. Give one, such as heads=1.0.")
        for kind, price in self.prices.items():
            if not (math.isfinite(price) and price >= 0):
                raise ValueError(f"The price of {kind} must be at least 0 and finite but is {price}. Raise it from 0.")
        for name in ("steps", "samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 but is {getattr(self, name)}. Give a positive number.")

    @property
    def prices(self) -> dict[str, float]:
        """The price of each granularity that is masked."""
        return {kind: price for kind in SITES if (price := getattr(self, kind)) is not None}

    def sites(self, model: Any) -> Sites:
        found = list(self._groups(model))
        if not found:
            raise ValueError(
                f"{' and '.join(self.prices)} are parts of MLPs but this model has none. Give a price to its heads."
            )
        return reduce(add, found)

    def _groups(self, model: Any) -> Iterator[Sites]:
        has_mlp = backend_of(model).architecture.has_mlp
        for kind in self.prices:
            if has_mlp or kind not in OF_MLPS:
                yield SITES[kind](model)

    def keep(self, sites: Sites) -> dict[str, int]:
        return {}

    def masks(self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool) -> Masks:
        return Masks(sites, HardConcrete(initial=INITIAL))

    def plan(self, masks: Masks) -> dict[str, Any]:
        return {
            "objective": self.objective,
            "budget": Budgets(tuple(Penalty(self.prices[kind], on=kind) for kind in masks.sites.kinds)),
            "steps": self.steps,
            "batch_size": self.batch_size,
            "optimiser": Optimiser(rate=self.rate, decay=False, samples=self.samples),
            "validate_every": self.validate_every,
            "seed": self.seed,
        }
