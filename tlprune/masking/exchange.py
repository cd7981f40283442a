"""The two operations of the edge engine, with hand-written gradients: a writer stores its difference, readers mix.

Each takes the token of the last write. It carries no number; it makes autograd run the backward of every later read
before that of an earlier write, so that a writer's gradient is complete when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tlprune.backends.activations import Projection, autocast_dtype
from tlprune.masking.in_play import Places, Rows
from tlprune.masking.mixing import Piece, backward_of_mix, mix, pieces_of
from tlprune.masking.workspace import Workspace


def exactly(step: Any) -> Any:
    """A forward or backward in the types that it was given, whatever automatic casts hold around it."""

    @wraps(step)
    def run(ctx: Any, first: Tensor, *others: Any) -> Any:
        if autocast_dtype(first.device) is None:
            return step(ctx, first, *others)
        with torch.autocast(first.device.type, enabled=False):
            return step(ctx, first, *others)

    return run


class WriteStream(Function):
    """Store ``x - x~`` of one writer, ``(example, pos, d_model)``, at slot ``index``."""

    @staticmethod
    @exactly
    def forward(ctx: Any, token: Tensor, output: Tensor, replaced: Tensor, workspace: Workspace, index: int) -> Tensor:
        ctx.workspace, ctx.index, ctx.dtype, ctx.replaced = workspace, index, output.dtype, replaced.shape
        slot = workspace.write(index, 1).view(output.shape)
        torch.sub(output, replaced, out=slot)
        return token.new_zeros(())

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx: Any, _: Tensor) -> Any:
        ctx.workspace.enter_backward()
        gradient = ctx.workspace.gradients()[ctx.index].to(ctx.dtype, copy=True)
        to_replaced = -gradient.sum_to_size(ctx.replaced) if ctx.needs_input_grad[2] else None
        return gradient.new_zeros(()), gradient, to_replaced, None, None


class WriteHeads(Function):
    """Store ``(z - z~) W_O`` of one block's heads in their places; ``z`` is ``(example, pos, head, d_head)``.

    Where ``z~`` went through other weights ``U`` than this run's, ``z W_O - z~ U`` is stored.
    """

    @staticmethod
    @exactly
    def forward(
        ctx: Any,
        token: Tensor,
        z: Tensor,
        weight: Tensor,
        replaced: Tensor,
        workspace: Workspace,
        places: Places,
        other: Tensor | None,
    ) -> Tensor:
        ctx.workspace, ctx.places, ctx.replaced, ctx.dtype = workspace, places, replaced.shape, z.dtype
        own = _heads_first(z - replaced if other is None else z).to(weight.dtype)
        ctx.save_for_backward(weight, own if weight.requires_grad else None, other)
        _write_sum(own, weight, workspace, places)
        heads = _of(own, places.own)
        if len(heads):
            slots = workspace.write(places.first, len(heads))
            _product(torch.bmm, heads, _of(weight, places.own), out=slots)
            if other is not None:
                slots -= torch.bmm(_heads_first(replaced.expand_as(z)).to(other.dtype), other)
        return token.new_zeros(())

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx: Any, _: Tensor) -> Any:
        ctx.workspace.enter_backward()
        weight, own, other = ctx.saved_tensors
        gradient = _gathered(ctx.workspace.gradients(), ctx.places, len(weight)).to(weight.dtype)
        shape = ctx.workspace.differences.shape[1:3]
        to_z = _heads_last(torch.bmm(gradient, weight.mT), shape)
        to_weight = torch.bmm(own.mT, gradient) if ctx.needs_input_grad[2] else None
        to_replaced = None
        if ctx.needs_input_grad[3]:
            sent = to_z if other is None else _heads_last(torch.bmm(gradient, other.mT), shape)
            to_replaced = -sent.sum_to_size(ctx.replaced)
        return gradient.new_zeros(()), to_z.to(ctx.dtype), to_weight, to_replaced, None, None, None


def _write_sum(heads: Tensor, weight: Tensor, workspace: Workspace, places: Places) -> None:
    """Heads that share a place, summed as the model sums them."""
    if places.summed is None:
        return
    rows = heads[places.summed.to(heads.device)].transpose(0, 1).flatten(1)
    (slot,) = workspace.write(places.first + len(_of(heads, places.own)), 1)
    _product(torch.mm, rows, weight[places.summed.to(weight.device)].flatten(0, 1), out=slot)


def _product(of: Any, left: Tensor, right: Tensor, *, out: Tensor) -> None:
    """A product in the type of its factors, stored in that of the buffers."""
    if out.dtype == left.dtype:
        of(left, right, out=out)
    else:
        out.copy_(of(left, right))


def _gathered(gradients: Tensor, places: Places, n_heads: int) -> Tensor:
    """The gradient of what each head sent, ``(head, token, d_model)``; 0 for heads without a place."""
    if places.own is None:
        return gradients[places.first : places.first + n_heads].flatten(1, 2)
    result = gradients.new_zeros(n_heads, *gradients.shape[1:]).flatten(1, 2)
    after = places.first + len(places.own)
    result[places.own.to(result.device)] = gradients[places.first : after].flatten(1, 2)
    if places.summed is not None:
        result[places.summed.to(result.device)] = gradients[after].flatten(0, 1)
    return result


def _of(heads: Tensor, own: Tensor | None) -> Tensor:
    return heads if own is None else heads[own.to(heads.device)]


def _heads_first(z: Tensor) -> Tensor:
    return z.permute(2, 0, 1, 3).flatten(1, 2)


def _heads_last(z: Tensor, shape: torch.Size) -> Tensor:
    return z.unflatten(1, shape).permute(1, 2, 0, 3)


class ReadStream(Function):
    """``base + sum_w m_w d_w`` for one reader: ``(example, pos, d_model)``."""

    @staticmethod
    @exactly
    def forward(
        ctx: Any, token: Tensor, mask: Tensor, base: Tensor, workspace: Workspace, dtype: torch.dtype
    ) -> Tensor:
        ctx.workspace = workspace
        ctx.save_for_backward(mask, base)
        return mix(mask, base, workspace)[0].to(dtype)

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.workspace.enter_backward()
        mask, _ = ctx.saved_tensors
        to_mask = torch.zeros_like(mask) if ctx.needs_input_grad[1] else None
        backward_of_mix(mask, gradient[None], ctx.workspace, into=to_mask)
        to_base = gradient.to(ctx.workspace.exact_dtype) if ctx.needs_input_grad[2] else None
        return gradient.new_zeros(()), to_mask, to_base, None, None


class ReadProjected(Function):
    """Mix, normalise and project all readers of one attention block: q, k and v, each ``(head, token, d_head)``.

    ``mask`` has a row for each stream that some reader sees, and ``rows`` says which reader sees which.

    Only the mask is kept for the backward; mix and norm are computed again there, which costs less time and far less
    memory than keeping a stream per reader. ``tensors`` are the projection's own, given so that autograd knows them.
    """

    @staticmethod
    @exactly
    def forward(
        ctx: Any,
        token: Tensor,
        mask: Tensor,
        base: Tensor,
        workspace: Workspace,
        projection: Projection,
        rows: Rows | None,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        ctx.workspace, ctx.projection = workspace, projection
        ctx.of = None if rows is None else rows.of.to(mask.device)
        ctx.save_for_backward(mask, base, *tensors)
        pieces = pieces_of(base.shape[:2], mask.shape[-2] * base.shape[-1])
        if len(pieces) == 1:
            return projection(mix(mask, base, workspace).flatten(1, 2), ctx.of)
        dtype, sizes = projection.weights[0].dtype, [weight.shape[::2] for weight in projection.weights]
        results = [base.new_empty(heads, *base.shape[:2], width, dtype=dtype) for heads, width in sizes]
        for piece in pieces:
            values = _of_piece(projection, base, piece)(mix(mask, base, workspace, piece).flatten(1, 2), ctx.of)
            for result, value in zip(results, values, strict=True):
                part = result[(slice(None), *piece)]
                part.copy_(value.view_as(part))
        return tuple(result.flatten(1, 2) for result in results)

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.workspace.enter_backward()
        mask, base, *_ = ctx.saved_tensors
        needed = ctx.needs_input_grad
        wanted = zip(ctx.projection.tensors, needed[6:], strict=True)
        trained = [tensor for tensor, flag in wanted if flag]
        to_mask = torch.zeros_like(mask) if needed[1] else None
        to_base = torch.empty_like(base) if needed[2] else None
        totals = [torch.zeros_like(tensor) for tensor in trained]
        for piece in pieces_of(base.shape[:2], mask.shape[-2] * base.shape[-1]):
            mixed = mix(mask, base, ctx.workspace, piece)
            own = [_rows_of(gradient, base, piece) for gradient in gradients]
            to_mixed, *found = _backward_of_projection(
                _of_piece(ctx.projection, base, piece), mixed.flatten(1, 2), ctx.of, own, trained
            )
            to_mixed = to_mixed.view_as(mixed)
            backward_of_mix(mask, to_mixed, ctx.workspace, into=to_mask, piece=piece)
            for total, part in zip(totals, found, strict=True):
                total.add_(part)
            if to_base is not None:
                to_base[piece] = to_mixed.sum(0)
        left = iter(totals)
        to_tensors = [next(left) if flag else None for flag in needed[6:]]
        return mask.new_zeros(()), to_mask, to_base, None, None, None, *to_tensors


def _of_piece(projection: Projection, base: Tensor, piece: Piece) -> Projection:
    if projection.scale is None:
        return projection
    return replace(projection, scale=projection.scale.view(*base.shape[:2], 1)[piece].flatten(0, 1))


def _rows_of(gradient: Tensor, base: Tensor, piece: Piece) -> Tensor:
    """What belongs to some tokens, of ``(head, token, d_head)``."""
    return gradient.unflatten(1, base.shape[:2])[(slice(None), *piece)].flatten(1, 2)


def _backward_of_projection(
    projection: Projection,
    mixed: Tensor,
    of: Tensor | None,
    gradients: Sequence[Tensor],
    trained: list[Tensor],
) -> tuple[Tensor, ...]:
    """Gradients of the mixed inputs and of those of the projection's tensors that are trained."""
    with torch.enable_grad():
        mixed.requires_grad_()
        if trained:
            return torch.autograd.grad(projection(mixed, of), [mixed, *trained], gradients)
        normed = projection.normalise(mixed)
    parts = zip(gradients, projection.weights, strict=True)
    if of is None:
        to_normed = torch.empty_like(normed, dtype=projection.weights[0].dtype)
        for part, (gradient, weight) in zip(to_normed.split(projection.splits), parts, strict=True):
            torch.bmm(gradient, weight.mT, out=part)
    else:
        to_normed = torch.zeros_like(normed)
        for part, (gradient, weight) in zip(of.split(projection.splits), parts, strict=True):
            to_normed.index_add_(0, part, torch.bmm(gradient, weight.mT).to(normed.dtype))
    return torch.autograd.grad(normed, mixed, to_normed.to(normed.dtype)) if normed is not mixed else (to_normed,)
