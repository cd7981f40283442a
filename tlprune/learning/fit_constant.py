"""Optimal constants of a finished circuit: what its ablated sites best become."""

from __future__ import annotations

from typing import Any

import torch

from tlprune.circuit import Circuit
from tlprune.gates import Heaviside
from tlprune.learning.budgets import Penalty
from tlprune.learning.fit import fit
from tlprune.learning.objectives import Objective, Sum
from tlprune.learning.optimiser import Optimiser
from tlprune.learning.records import Step
from tlprune.masking.constants import Constant
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.task import Discovery


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
    **options: Any,
) -> list[Step]:
    """Train constants, in place, so that the circuit runs as well as it can with all else replaced by them.

    The circuit may be of any method: its loss under its own best constants is what "optimal ablation" compares.

    Args:
        constant: the constants, where they start.
        model: the model.
        circuit: what is kept; it stays as it is.
        discovery: ``task.discovery``.
        objective: what to lower; by default :class:`~tlprune.KL` to the full model.
        steps: how many to take.
        batch_size: examples per step.
        rate: learning rate of the constants, which falls to 0.
        options: further arguments of :func:`~tlprune.fit`, such as ``validate_every`` and ``patience``.

    Returns:
        The records of the steps.

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
    start = torch.where(circuit.kept, 1.0, -1.0)
    masked = Masked(model, Masks(circuit.sites, Heaviside(), start=start).to(constant.heads[0].device), constant)
    optimiser = Optimiser(rate=0.0, ablation_rate=rate)
    return fit(
        masked, discovery, objective, Penalty(0.0), steps=steps, batch_size=batch_size, optimiser=optimiser, **options
    )
