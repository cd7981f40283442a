"""The optimiser of masks and multipliers, and how its rates change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import Parameter


@dataclass(frozen=True)
class Optimiser:
    """AdamW for masks and multipliers.

    Attributes:
        rate: learning rate of the masks.
        multiplier_rate: learning rate of the budgets' multipliers, which ascend.
        weight_decay: decoupled decay of masks and multipliers, as a fraction of the rate.
        clip: largest joint gradient norm of masks and multipliers; ``None`` for no limit.
        warmup: steps over which all rates rise from 0.
        decay: whether all rates then fall linearly, to 0 after the last step.
        samples: mask samples per step and term, each shared by an equal part of the batch; more make the gradient less
            noisy.
        ablation_rate: learning rate of an ablation's own parameters, where it has any; they do not decay.
    """

    rate: float = 0.1
    multiplier_rate: float = 1.0
    weight_decay: float = 0.0
    clip: float | None = None
    warmup: int = 0
    decay: bool = True
    samples: int = 1
    ablation_rate: float = 0.002

    def factor(self, step: int, steps: int) -> float:
        """What all rates are multiplied with in a step."""
        if step < self.warmup:
            return step / self.warmup
        return (steps - step) / max(1, steps - self.warmup) if self.decay else 1.0

    def build(
        self, masks: Sequence[Parameter], multipliers: Sequence[Parameter], learned: Sequence[Parameter] = ()
    ) -> torch.optim.AdamW:
        """The optimiser at full rates; ``learned`` are parameters of the ablation."""
        groups = [
            {"params": list(masks), "lr": self.rate},
            {"params": list(multipliers), "lr": self.multiplier_rate, "maximize": True},
            {"params": list(learned), "lr": self.ablation_rate, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=True)
