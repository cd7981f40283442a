"""Figures of merit of a hard circuit on examples that no method saw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.learning.objectives import divergence, logit_difference
from tlprune.masking.cache import RunCache
from tlprune.masking.masked import Masked
from tlprune.task import Batch


@dataclass(frozen=True)
class Performance:
    """Behaviour of one circuit, per example (averaged over answer positions).

    Attributes:
        correct: the most likely token is the answer, ``(example,)``.
        agrees: the most likely token is the full model's, ``(example,)``.
        logit_difference: logit of the answer less that of the foil, ``(example,)``.
        kl: divergence from the full model in nats, ``(example,)``.
    """

    correct: Float[Tensor, "example"]
    agrees: Float[Tensor, "example"]
    logit_difference: Float[Tensor, "example"]
    kl: Float[Tensor, "example"]

    def means(self) -> dict[str, float]:
        """The mean of each figure over examples."""
        names = {"accuracy": self.correct, "agreement": self.agrees}
        names |= {"logit_difference": self.logit_difference, "kl": self.kl}
        return {name: float(values.mean()) for name, values in names.items()}


@torch.no_grad()
def measure(
    masked: Masked, kept: Bool[Tensor, "edge"], batch: Batch, *, cache: RunCache | None = None, batch_size: int = 64
) -> Performance:
    """Run a hard circuit on examples.

    Args:
        masked: the model; its own masks are not used.
        kept: the circuit, 1 for a kept edge.
        batch: the examples.
        cache: replacements and predictions of these examples, shared between circuits.
        batch_size: examples per forward pass.
    """
    cache = cache or masked.cache(batch)
    parts: list[tuple[Tensor, ...]] = []
    for rows in batch.split(batch_size):
        part = rows.to(masked.backend.device)
        reference = cache.reference(part)
        logits = masked(part, mask=kept.float(), replaced=cache.replaced(part))
        best = logits.argmax(-1)
        figures = (best == part.answers, best == reference.argmax(-1), logit_difference(logits, part))
        parts.append(tuple(f.float().mean(1).cpu() for f in (*figures, divergence(logits, reference))))
    return Performance(*(torch.cat(column) for column in zip(*parts, strict=True)))
