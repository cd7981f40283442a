"""What readers see: base and masked differences of the writers before them, for some tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tlprune.masking.workspace import Workspace

MOST_MIXED = 1 << 24  # numbers of all readers that are mixed at one time: 64 MiB in float32
Piece = tuple[slice, slice]  # examples and positions
WHOLE: Piece = (slice(None), slice(None))


def pieces_of(shape: Sequence[int], numbers: int) -> list[Piece]:
    """Parts of a batch, ``(example, pos)``, that are mixed one after the other.

    Args:
        shape: examples and positions.
        numbers: of all readers at one token.
    """
    examples, length = shape
    tokens = max(1, MOST_MIXED // max(1, numbers))
    if tokens >= length:
        step = tokens // length
        return [(slice(start, start + step), slice(None)) for start in range(0, examples, step)]
    parts = range(0, length, tokens)
    return [(slice(one, one + 1), slice(start, start + tokens)) for one in range(examples) for start in parts]


def mix(mask: Tensor, base: Tensor, workspace: Workspace, piece: Piece = WHOLE) -> Tensor:
    """``base + mask @ d``: ``(reader, example, pos, d_model)``.

    Args:
        mask: ``(reader, writer)``, with an example axis, a position axis (size 1 or full) or both before them.
        base: what readers receive when every edge is ablated, ``(example, pos, d_model)``.
        workspace: holds the differences ``d``.
        piece: the tokens that are mixed.
    """
    mask, base = _at(mask, piece), base[piece]
    differences = workspace.differences[(slice(mask.shape[-1]), *piece)]
    rounded = mask.to(differences.dtype)
    if mask.dim() > 2:
        return base + torch.einsum(f"{lead_axes(mask)}rw,wbpd->rbpd", without_ones(rounded), differences).to(base.dtype)
    if differences.dtype == base.dtype:
        mixed = torch.addmm(base.reshape(1, -1), rounded, differences.flatten(1))
    else:
        mixed = torch.mm(rounded, differences.flatten(1)).to(base.dtype).add_(base.reshape(1, -1))
    return mixed.unflatten(1, base.shape)


def backward_of_mix(
    mask: Tensor, gradient: Tensor, workspace: Workspace, *, into: Tensor | None, piece: Piece = WHOLE
) -> None:
    """Add ``mask^T @ gradient`` to the writers' gradients, and the mask's own, ``gradient @ d^T``, to a tensor."""
    width = mask.shape[-1]
    mask, into = _at(mask, piece), into if into is None else _at(into, piece)
    differences = workspace.differences[(slice(width), *piece)]
    rounded, gradient = mask.to(differences.dtype), gradient.to(differences.dtype)
    if mask.dim() > 2:
        axes = lead_axes(mask)
        to_writers = workspace.gradients()[(slice(width), *piece)]
        to_writers += torch.einsum(f"{axes}rw,rbpd->wbpd", without_ones(rounded), gradient)
        if into is not None:
            into += torch.einsum(f"rbpd,wbpd->{axes}rw", gradient, differences).view(mask.shape)
        return
    flat = gradient.flatten(1)
    workspace.add_product((slice(width), *piece), rounded.T, flat)
    if into is not None:
        into += torch.mm(flat, differences.flatten(1).T)


def _at(mask: Tensor, piece: Piece) -> Tensor:
    """The masks of some tokens, of masks that differ between examples or positions."""
    lead = zip(piece, mask.shape[:-2], strict=False)
    return mask[tuple(part if size > 1 else slice(None) for part, size in lead)]


def lead_axes(mask: Tensor) -> str:
    """Einsum letters of the mask's leading axes: b for examples, p for positions; axes of size 1 are dropped."""
    leading = "b" if mask.dim() == 3 else "bp"
    return "".join(letter for letter, size in zip(leading, mask.shape, strict=False) if size > 1)


def without_ones(mask: Tensor) -> Tensor:
    return mask.reshape(*(size for size in mask.shape[:-2] if size > 1), *mask.shape[-2:])
