"""Optimal constants of a finished circuit: what its ablated sites best become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from tlprune.circuit import Circuit
from tlprune.gates import Heaviside
from tlprune.learning.best import Best
from tlprune.learning.budgets import Penalty
from tlprune.learning.fit import fit
from tlprune.learning.objectives import KL, Objective, Sum, weighted
from tlprune.learning.optimiser import Optimiser
from tlprune.learning.reading import value_of
from tlprune.learning.records import Step
from tlprune.learning.training import run_of
from tlprune.masking.constants import Constant
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.task import Batch, Discovery

LOOKS = 10  # how often the loss on all examples is measured, at the start besides
AT_ONCE = 32  # examples per run of these measurements
Split = Literal["train", "validation"]


def fit_constant(
    constant: Constant,
    model: Any,
    circuit: Circuit,
    discovery: Discovery,
    objective: Objective | Sum | None = None,
    *,
    steps: int = 300,
    batch_size: int = 32,
    rate: float = 0.01,
    best_on: Split = "train",
    report: Callable[[Step], None] | None = None,
    **options: Any,
) -> list[Step]:
    """Train constants, in place, so that the circuit runs as well as it can with all else replaced by them.

    The circuit may be of any method: its loss under its own best constants is what "optimal ablation" compares. The
    loss on all examples is measured at the start and after each tenth of the steps, and the constants with the lowest
    one stay: so it is never above that of the start, such as under mean ablation.

    Args:
        constant: the constants, where they start.
        model: the model.
        circuit: what is kept; it stays as it is.
        discovery: ``task.discovery``.
        objective: what to lower; by default :class:`~tlprune.KL` to the full model.
        steps: how many to take.
        batch_size: examples per step.
        rate: learning rate of the constants, which falls to 0.
        best_on: the examples whose loss says which constants stay. ``"validation"`` holds for other prompts, too, but
            then the loss on training examples may rise.
        report: called with each record.
        options: further arguments of :func:`~tlprune.fit`, such as ``metrics`` and ``seed``.

    Returns:
        The records of the steps.

    Raises:
        ValueError: ``best_on`` is neither of the two.

    Source: Li and Janson, "Optimal ablation for interpretability" (NeurIPS 2024); the released code takes 10,000 steps
    at a rate of 0.01.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> constant = tp.Constant(planted.model, tp.Mean(planted.task.discovery.train().corrupt))
        >>> history = fit_constant(constant, planted.model, planted.circuit, planted.task.discovery, steps=20)
        >>> history[-1].sampled <= history[0].sampled
        True
    """
    if best_on not in ("train", "validation"):
        raise ValueError(f"best_on must be 'train' or 'validation' but is {best_on!r}. Choose one of these.")
    start, device = torch.where(circuit.kept, 1.0, -1.0), constant.heads[0].device
    masked = Masked(model, Masks(circuit.sites, Heaviside(), start=start).to(device), constant)
    best = _Best(masked, constant, discovery, objective or KL(), on=best_on)

    def after(step: Step) -> None:
        if step.step == steps or step.step % max(1, steps // LOOKS) == 0:
            best.look(step.step)
        if report is not None:
            report(step)

    history = fit(
        masked, discovery, objective, Penalty(0.0), steps=steps, batch_size=batch_size, report=after,
        optimiser=Optimiser(rate=0.0, ablation_rate=rate), **options,
    )  # fmt: skip
    best.put_back()
    return history


class _Best:
    """The constants with the lowest loss on all examples so far, those of the start included."""

    def __init__(
        self, masked: Masked, constant: Constant, discovery: Discovery, objective: Objective | Sum, *, on: Split
    ) -> None:
        self.masked, self.terms = masked, weighted(objective)
        self.mask, self.trained = masked.hard_values(), dict(constant.named_parameters())
        splits = {one.on: getattr(discovery, on)(one.on) for _, one in self.terms}
        self.caches = {name: masked.cache(split) for name, split in splits.items()}
        self.best = Best(patience=1)
        self.look(0)

    def look(self, step: int) -> None:
        """Measure the constants as they are."""
        self.best.see(sum(weight * self._loss(one) for weight, one in self.terms), step=step, trained=self.trained)

    @torch.no_grad()
    def _loss(self, objective: Objective) -> float:
        cache, total = self.caches[objective.on], 0.0
        for part in cache.split.split(AT_ONCE):
            total += len(part) * self._value(objective, part.to(self.masked.backend.device))
        return total / len(cache.split)

    def _value(self, objective: Objective, batch: Batch) -> float:
        mask = run_of(self.mask, objective)
        return float(value_of(objective, self.masked, batch, self.caches[objective.on], mask=mask))

    def put_back(self) -> None:
        """Give the constants their best values."""
        self.best.put_back(self.trained)
