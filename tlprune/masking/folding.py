"""Masks built into weights: the parameters with which a plain model computes what a masked one does.

With a mask value ``m`` and what replaces an activation, ``x~``, the edit ``x~ + m (x - x~)`` of what a matrix reads or
writes is linear in it. So for heads ``W_O' = m W_O`` and ``b_O' = b_O + (1 - m) z~ W_O``; neurons and MLPs likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tlprune.backends.activations import Point
from tlprune.masking.ablation import Zero
from tlprune.masking.installing import refuse_what_needs_prompts
from tlprune.masking.masked import Masked
from tlprune.masking.nodes import masked_points
from tlprune.task import Tokens


@torch.no_grad()
def folded_parameters(masked: Masked) -> dict[str, Tensor]:
    """New parameters, by the names that TransformerLens shows, that make the plain model the masked one.

    The circuit, or the hard circuit of the masks, is used.

    Args:
        masked: a model under masks of heads, MLPs, layers, nodes, neurons or weights.

    Raises:
        ValueError: its sites hold edges or differ by span, norms are frozen, or the ablation knows prompts; or a mean
            would have to stand behind a norm.
    """
    _refuse_edges(masked)
    if masked.sites.kinds == ("weights",):
        masked = Masked(masked.model, masked.masks, Zero(), norm=masked.norm)  # weights are 0 whatever the ablation
    refuse_what_needs_prompts(masked, "A mask in the weights")
    backend, parts = masked.backend, masked.parts(masked.hard_values(), None)
    parameters = {name: value.detach().clone() for name, value in backend.parameters().items()}
    for name, scaled in (masked.scaled(parts) if "weights" in parts else {}).items():
        parameters[name] = scaled(parameters[name])
    any_prompt = Tokens(torch.zeros(1, 1, dtype=torch.long, device=backend.device))
    replaced = masked.ablation.replaced(backend, any_prompt, None, masked.wanted)
    points = masked_points(masked.sites, parts, replaced, backend.architecture)
    # An MLP is edited behind its neurons, so neurons are built in first.
    for point, mask, other in sorted(points, key=lambda found: found[0][0] != "neurons"):
        _FOLD[point[0]](parameters, point, mask.to(backend.dtype), other().flatten(0, 1)[0])
    return parameters


def _refuse_edges(masked: Masked) -> None:
    if "edges" in masked.sites.kinds:
        raise ValueError(
            "A mask in the weights acts on the one residual stream that all readers share, but these sites hold edges, "
            "which differ between readers. Mask heads, MLPs, layers, neurons or weights."
        )


def _fold_heads(parameters: dict[str, Tensor], point: Point, mask: Tensor, other: Tensor) -> None:
    weight, bias = (f"blocks.{point[1]}.attn.{name}_O" for name in "Wb")
    parameters[bias] += torch.einsum("he,hed->d", (1 - mask) * other, parameters[weight])
    parameters[weight] *= mask[..., None]


def _fold_neurons(parameters: dict[str, Tensor], point: Point, mask: Tensor, other: Tensor) -> None:
    weight, bias = _of_mlp(point)
    parameters[bias] += ((1 - mask) * other) @ parameters[weight]
    parameters[weight] *= mask[:, None]


def _fold_mlp(parameters: dict[str, Tensor], point: Point, mask: Tensor, other: Tensor) -> None:
    weight, bias = _of_mlp(point)
    constant = (1 - mask) * other
    if f"blocks.{point[1]}.ln2_post.w" in parameters and bool(constant.any()):
        raise ValueError(
            f"The mean of MLP {point[1]} belongs behind the norm that follows it, where this model has no bias. Use "
            "Zero() ablation, or mask its neurons."
        )
    parameters[weight] *= mask
    parameters[bias] = mask * parameters[bias] + constant


def _fold_embedding(
    parameters: dict[str, Tensor], point: Point, mask: Tensor, other: Tensor, *, name: str, kept_at_zero: str = ""
) -> None:
    if name not in parameters:
        raise ValueError(f"The masks cover {point[0]!r}, which is no single tensor of this model. Leave it unmasked.")
    parameters[name] = other + mask * (parameters[name] - other)
    if kept_at_zero in parameters:
        parameters[kept_at_zero] *= mask


def _of_mlp(point: Point) -> tuple[str, str]:
    return f"blocks.{point[1]}.mlp.W_out", f"blocks.{point[1]}.mlp.b_out"


_FOLD: dict[str, Callable[[dict[str, Tensor], Point, Tensor, Tensor], None]] = {
    "heads": _fold_heads,
    "neurons": _fold_neurons,
    "mlp": _fold_mlp,
    "embed": partial(_fold_embedding, name="embed.W_E"),
    "pos_embed": partial(_fold_embedding, name="pos_embed.W_pos"),
    "input": partial(_fold_embedding, name="embed.W_E", kept_at_zero="pos_embed.W_pos"),
}
