"""Values of objectives where logits are too many to be alive at once: answer positions are read some at a time.

An objective is a mean over answer positions, so the value and its gradient in the last residual stream are sums over
groups of them. Each group is unembedded, compared and differentiated before the next one, so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tlprune.backends.activations import Activations
from tlprune.learning.objectives import Objective
from tlprune.masking.cache import RunCache
from tlprune.masking.drawn_weights import DrawnWeights
from tlprune.masking.masked import Masked
from tlprune.masking.unembedding import unembeds_apart, vocabulary
from tlprune.task import Batch

MOST_LOGITS = 1 << 23  # numbers alive at once, of each kind: 32 MiB in float32
Places = Int[Tensor, "place 2"]
OfGroup = Callable[[Float[Tensor, "place d_model"], Places], Float[Tensor, ""]]


def value_of(
    objective: Objective,
    masked: Masked,
    batch: Batch,
    cache: RunCache,
    *,
    mask: Float[Tensor, "site"] | DrawnWeights,
    flat_ends: bool = False,
    most: int = MOST_LOGITS,
) -> Float[Tensor, ""]:
    """The objective's value for some examples under given mask values.

    Args:
        objective: a mean over answer positions.
        masked: the model; where masks change what lies behind its last block, all logits are computed at once.
        batch: the examples.
        cache: replacements and predictions of the split that they are of.
        mask: mask values, or masked weights of a draw.
        flat_ends: whether mask values of exactly 0 and 1 need no gradient.
        most: logits that may be alive at once.
    """
    replaced = cache.replaced(batch)
    tokens = vocabulary(masked.backend)
    few = batch.positions.numel() * tokens <= most
    if few or not masked.ends_plain or not unembeds_apart(masked.backend, batch):
        return objective(
            masked(batch, mask=mask, replaced=replaced, flat_ends=flat_ends), batch, cache.reference(batch)
        )
    return _in_groups(objective, masked, batch, cache, mask, replaced, max(1, most // tokens))


def _in_groups(
    objective: Objective,
    masked: Masked,
    batch: Batch,
    cache: RunCache,
    mask: Tensor | DrawnWeights,
    replaced: Activations,
    size: int,
) -> Tensor:
    references, places = cache.references(batch), batch.answered.nonzero()
    stream = masked.stream(batch, mask=mask, replaced=replaced)

    def of_group(values: Tensor, group: Places) -> Tensor:
        rows, answers = group.unbind(1)
        return objective(
            masked.backend.unembed(values[:, None]), _each_apart(batch, rows, answers), references(rows, answers)
        )

    rows, answers = places.to(stream.device).unbind(1)
    return MeanOfGroups.apply(stream[rows, answers], places, of_group, size)


def _each_apart(batch: Batch, rows: Int[Tensor, "place"], answers: Int[Tensor, "place"]) -> Batch:
    """Answers as examples of their own."""
    parts = {name: getattr(batch, name)[rows, answers][:, None] for name in ("positions", "answers", "foils")}
    return replace(batch.rows(rows), **parts)


class MeanOfGroups(torch.autograd.Function):
    """A mean over places, from its value on groups of them; the gradient is taken group by group on the way."""

    @staticmethod
    def forward(
        ctx: Any, stream: Float[Tensor, "place d_model"], places: Places, of_group: OfGroup, size: int
    ) -> Float[Tensor, ""]:
        wanted = ctx.needs_input_grad[0]
        gradients, total = [], stream.new_zeros((), dtype=torch.promote_types(stream.dtype, torch.float32))
        for part, group in zip(stream.split(size), places.split(size), strict=True):
            with torch.set_grad_enabled(wanted):
                values = part.detach().requires_grad_(wanted)
                value = of_group(values, group) * (len(group) / len(places))
            gradients += torch.autograd.grad(value, values) if wanted else []
            total += value.detach()
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, ""]) -> tuple[Tensor, None, None, None]:
        (own,) = ctx.saved_tensors
        return (own * gradient).to(own.dtype), None, None, None
