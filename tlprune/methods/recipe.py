"""The training settings that methods with an exact target share: a Lagrangian's path, rates, samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tlprune.learning.budgets import Lagrangian
from tlprune.learning.optimiser import Optimiser
from tlprune.schedules import Schedule, join, linear, logarithmic


@dataclass(frozen=True)
class Recipe:
    """The training settings behind a recipe's name.

    Attributes:
        initial: first ``log_alpha``.
        steps: default length.
        rate: learning rate of the masks.
        multiplier_rate: learning rate of the multipliers.
        weight_decay: of masks and multipliers.
        clip: largest gradient norm.
        warmup: fraction of the steps over which the rates rise.
        rise: fraction of the steps over which the target rises.
        measure: how sparsity is measured in the budget.
        path: how the target rises.
        gap: how the distance to the target is measured.
        samples: mask samples per step.
    """

    initial: float
    steps: int
    rate: float
    multiplier_rate: float
    weight_decay: float
    clip: float | None
    warmup: float
    rise: float
    measure: Literal["expected", "sampled"]
    path: Literal["linear", "logarithmic"]
    gap: Literal["sparsity", "log_density"] = "sparsity"
    samples: int = 1

    def budget(self, count: int, total: int, steps: int) -> Lagrangian:
        """What leads to ``count`` of ``total`` sites."""
        least = 0.5 if self.gap == "log_density" else 0  # no density is the logarithm of nothing
        return self.pressure(1 - max(count, least) / total, steps)

    def pressure(self, sparsity: float, steps: int, *, on: str | None = None) -> Lagrangian:
        """What leads to a sparsity of the sites of a kind, or of all; above 1 it is never reached and never rests."""
        return Lagrangian(self._schedule(sparsity, round(self.rise * steps)), self.measure, on=on, gap=self.gap)

    def _schedule(self, sparsity: float, steps: int) -> Schedule:
        rise = {"linear": linear, "logarithmic": logarithmic}[self.path]
        return join(rise(0.0, sparsity, steps=steps), lambda _: sparsity, at=steps)

    def optimiser(self, steps: int) -> Optimiser:
        return Optimiser(
            rate=self.rate,
            multiplier_rate=self.multiplier_rate,
            weight_decay=self.weight_decay,
            clip=self.clip,
            warmup=round(self.warmup * steps),
            samples=self.samples,
        )
