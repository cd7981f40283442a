"""Elementwise work on millions of gates, piece by piece: fresh memory would cost several times what arithmetic does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 1 << 18  # numbers; a megabyte in float32
Sites = Float[Tensor, "*sites"]


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Contiguous tensors of one shape side by side, as views small enough to stay in a processor's cache.

    Example:
        >>> [len(piece) for (piece,) in pieces(torch.zeros(300_000))]
        [262144, 37856]
    """
    return zip(*(tensor.reshape(-1).split(PIECE) for tensor in tensors), strict=True)


@runtime_checkable
class Smooth(Protocol):
    """A gate whose draw is a function of a smooth number in (0, 1), made of ``log_alpha`` and one uniform number."""

    def smooth_(self, noise: Sites, log_alpha: Sites) -> None:
        """Turn uniform noise into the smooth number, in place."""
        ...

    def value(self, smooth: Sites) -> Sites:
        """The mask value, in fresh memory."""
        ...

    def descend(self, gradient: Sites, smooth: Sites, *, out: Sites) -> None:
        """From the gradient in the mask value to that in ``log_alpha``."""
        ...


class Draw(torch.autograd.Function):
    """Mask values of a :class:`Smooth` gate; all that is kept for the gradient lies in the memory of the noise."""

    @staticmethod
    def forward(ctx: Any, log_alpha: Sites, noise: Sites, gate: Smooth) -> Sites:
        values = torch.empty(log_alpha.shape, dtype=log_alpha.dtype, device=log_alpha.device)
        for own, smooth, value in pieces(log_alpha, noise, values):
            gate.smooth_(smooth, own)
            value.copy_(gate.value(smooth))
        ctx.gate = gate
        ctx.save_for_backward(noise)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Sites) -> tuple[Sites, None, None]:
        result = torch.empty_like(ctx.saved_tensors[0])
        for own, smooth, value in pieces(gradient, ctx.saved_tensors[0], result):
            ctx.gate.descend(own, smooth, out=value)
        return result, None, None


def drawn(gate: Smooth, log_alpha: Sites, generator: torch.Generator | None) -> Sites:
    """One mask value per site, differentiable in ``log_alpha``."""
    return Draw.apply(log_alpha, uniform_like(log_alpha, generator), gate)


def uniform_like(log_alpha: Sites, generator: torch.Generator | None) -> Sites:
    """One number in [0, 1) per site, drawn on the CPU so that all devices see the same."""
    return torch.rand(log_alpha.shape, generator=generator, dtype=log_alpha.dtype).to(log_alpha.device)


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
