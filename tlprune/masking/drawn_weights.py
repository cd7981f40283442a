"""Masked weights straight from a draw: in training, no flat vector of mask values and no gradient of it ever exists.

Beside the scores, their gradient and what an optimiser keeps, a term then takes two copies of the masked matrices: the
draw, and the product with the weights. In the backward the product's memory goes matrix by matrix as that of its
gradient comes, and the gradient of the scores takes the place of the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tlprune.masking.masks import Masks
from tlprune.pieces import Smooth, pieces, uniform_like
from tlprune.sites import Weights


class DrawnWeights:
    """The masked matrices of one draw, for one run of the model.

    Args:
        masks: over weights alone, with a gate that ``can_draw`` knows.
        weights: the model's tensors by name.
        run: ``"kept"``: ``W m``; ``"complement"``: ``W (1 - m)``.
        generator: of the draw; it takes what ``masks.sample`` would.
    """

    def __init__(
        self,
        masks: Masks,
        weights: Mapping[str, Tensor],
        *,
        run: Literal["kept", "complement"],
        generator: torch.Generator | None = None,
    ) -> None:
        group = masks.sites.group("weights")
        assert isinstance(group, Weights)
        own = [weights[matrix.name].detach() for matrix in group.matrices]
        noise = uniform_like(masks.log_alpha.detach(), generator)
        products = MaskedWeights.apply(masks.log_alpha, noise, masks.gate, group, run, *own)
        self._products = dict(zip((matrix.name for matrix in group.matrices), products, strict=True))

    def taken(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """For each matrix what takes its place, given away: nothing is kept here."""
        return {name: lambda _, name=name: self._products.pop(name) for name in list(self._products)}


def can_draw(masks: Masks) -> bool:
    """Whether masked weights can come straight from a draw: over weights alone, with a gate of one noise per site."""
    return masks.sites.kinds == ("weights",) and isinstance(masks.gate, Smooth)


class MaskedWeights(torch.autograd.Function):
    """``W m`` or ``W (1 - m)`` of every matrix, with ``m`` drawn in the memory of the noise."""

    @staticmethod
    def forward(
        ctx: Any,
        log_alpha: Float[Tensor, "site"],
        noise: Float[Tensor, "site"],
        gate: Smooth,
        group: Weights,
        run: str,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        for own, smooth in pieces(log_alpha, noise):
            gate.smooth_(smooth, own)
        ctx.smooth, ctx.gate, ctx.group, ctx.run, ctx.weights = noise, gate, group, run, weights
        parts = zip(group.split(noise).values(), weights, strict=True)
        return tuple(_product(gate.value(smooth), weight, run) for smooth, weight in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.smooth is None:
            raise RuntimeError("A draw of weight masks gives its gradient once. Draw anew for a second backward.")
        result, ctx.smooth = ctx.smooth, None
        parts = ctx.group.split(result).values()
        for matrix, smooth, weight, gradient in zip(ctx.group.matrices, parts, ctx.weights, gradients, strict=True):
            if gradient is None:
                smooth.zero_()
                continue
            own = _of_mask(gradient * weight, matrix.mask_shape(ctx.group.unit), ctx.run)
            own = own.to(smooth.dtype).contiguous()
            for one, place in pieces(own, smooth):
                ctx.gate.descend(one, place, out=(descended := torch.empty_like(place)))
                place.copy_(descended)
        return result, *[None] * (4 + len(ctx.weights))


def _product(value: Tensor, weight: Tensor, run: str) -> Tensor:
    if run == "complement":
        value.neg_().add_(1)
    if value.shape == weight.shape and value.dtype == weight.dtype:
        return value.mul_(weight)
    return weight * value.to(weight.dtype)


def _of_mask(gradient: Tensor, shape: tuple[int, ...], run: str) -> Tensor:
    """From the gradient in every single ``m`` to that in a matrix' mask, where a unit ties some together."""
    tied = [axis for axis, size in enumerate(shape) if size < gradient.shape[axis]]
    own = gradient.sum(tied, keepdim=True) if tied else gradient
    return own.neg_() if run == "complement" else own
