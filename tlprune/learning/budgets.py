"""Budgets: what makes training remove edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.schedules import Schedule


@dataclass(frozen=True)
class Lagrangian:
    """A sparsity target enforced by two multipliers that *ascend* while the masks descend.

    The term is ``l1 (t - s) + l2 (t - s)^2`` with sparsity ``s`` and target ``t``; ``l1`` and ``l2`` start at 0.

    Attributes:
        sparsity: fraction of edges to remove, or a schedule of it. Targets above 1 are deliberate pressure.
        measure: ``"expected"``: ``s`` is the closed-form expected L0; ``"sampled"``: one less the mean of the
            sampled mask, as Edge Pruning's code has it.

    Source: Wang, Wohlwend, Lei 2020; Edge Pruning, section 3.
    """

    sparsity: float | Schedule
    measure: Literal["expected", "sampled"] = "expected"

    def __post_init__(self) -> None:
        if self.measure not in ("expected", "sampled"):
            raise ValueError(f"measure must be 'expected' or 'sampled' but is {self.measure!r}. Choose one of these.")

    def target(self, step: int) -> float:
        """The sparsity aimed at in this step."""
        return self.sparsity(step) if callable(self.sparsity) else self.sparsity

    def term(self, multipliers: Float[Tensor, "2"], sparsity: Float[Tensor, ""], step: int) -> Float[Tensor, ""]:
        """What is added to the objective; the multipliers' gradient is to be followed upwards."""
        missing = self.target(step) - sparsity
        return multipliers[0] * missing + multipliers[1] * missing.square()

    def start(self) -> torch.nn.Parameter:
        """The multipliers before the first step."""
        return torch.nn.Parameter(torch.zeros(2))
