"""A whole training step of masks, as benchmarks time it: everything but what is computed once beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tlprune as tp
from tlprune.learning.objectives import divergence
from tlprune.task import Batch

Work = Callable[[], None]


def training_step(model: Any, sites: tp.Sites, batch: Batch, ablation: Any) -> Work:
    """Gates sampled, masked forward, backward, optimiser; replacements and the reference are there."""
    masks, budget = tp.Masks(sites), tp.Lagrangian(0.95)
    masked, multipliers = tp.Masked(model, masks, ablation), budget.start()
    cache = masked.cache(batch)
    replaced, reference = cache.replaced(batch), cache.reference(batch)
    optimiser = tp.Optimiser().build([masks.log_alpha], [multipliers])

    def step() -> None:
        optimiser.zero_grad()
        kl = divergence(masked(batch, replaced=replaced), reference).mean()
        sparsity = 1 - masks.expected_kept / len(masks.log_alpha)
        (kl + budget.term(multipliers, sparsity, 0)).backward()
        optimiser.step()

    return step
