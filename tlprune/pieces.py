"""Elementwise work on millions of gates, piece by piece: fresh memory would cost several times what arithmetic does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from tlprune.gates import HardConcrete

PIECE = 1 << 18  # numbers; a megabyte in float32
Sites = Float[Tensor, "*sites"]


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Contiguous tensors of one shape side by side, as views small enough to stay in a processor's cache.

    Example:
        >>> [len(piece) for (piece,) in pieces(torch.zeros(300_000))]
        [262144, 37856]
    """
    return zip(*(tensor.reshape(-1).split(PIECE) for tensor in tensors), strict=True)


class HardConcreteDraw(torch.autograd.Function):
    """``clip(low + (high - low) s, 0, 1)`` with :class:`~tlprune.HardConcrete`'s ``s``, in the memory of the noise."""

    @staticmethod
    def forward(ctx: Any, log_alpha: Sites, noise: Sites, gate: HardConcrete) -> Sites:
        values = torch.empty(log_alpha.shape, dtype=log_alpha.dtype, device=log_alpha.device)
        for own, smooth, value in pieces(log_alpha, noise, values):
            smooth.mul_(1 - 2 * gate.epsilon).add_(gate.epsilon).logit_().add_(own).div_(gate.temperature).sigmoid_()
            torch.mul(smooth, gate.high - gate.low, out=value).add_(gate.low).clamp_(0, 1)
        ctx.gate = gate
        ctx.save_for_backward(noise)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Sites) -> tuple[Sites, None, None]:
        gate, result = ctx.gate, torch.empty_like(ctx.saved_tensors[0])
        for own, smooth, value in pieces(gradient, ctx.saved_tensors[0], result):
            stretched = (gate.high - gate.low) * smooth + gate.low
            torch.mul(own, (stretched >= 0) & (stretched <= 1), out=value).mul_(gate.high - gate.low)
            value.mul_(1 - smooth).mul_(smooth).div_(gate.temperature)
        return result, None, None


class ExpectedCount(torch.autograd.Function):
    """The sum of what each site is expected to be kept, which is computed again for the gradient instead of stored."""

    @staticmethod
    def forward(ctx: Any, log_alpha: Sites, expected_kept: Callable[[Tensor], Tensor]) -> Float[Tensor, ""]:
        ctx.expected_kept = expected_kept
        ctx.save_for_backward(log_alpha)
        return torch.stack([expected_kept(piece).sum() for (piece,) in pieces(log_alpha)]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, ""]) -> tuple[Sites, None]:
        (log_alpha,) = ctx.saved_tensors
        result = torch.empty(log_alpha.shape, dtype=log_alpha.dtype, device=log_alpha.device)
        for own, value in pieces(log_alpha, result):
            with torch.enable_grad():
                piece = own.detach().requires_grad_()
                count = ctx.expected_kept(piece).sum()
            value.copy_(torch.autograd.grad(count, piece, gradient)[0])
        return result, None


def expected_count(expected_kept: Callable[[Tensor], Tensor], log_alpha: Sites) -> Float[Tensor, ""]:
    """Expected number of sites whose mask value is not 0, of gates with this ``expected_kept``."""
    return ExpectedCount.apply(log_alpha, expected_kept)
