"""What a run under edge masks has beside them, and must have whatever the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tlprune.backends.activations import Edits, Point

Mlps = Literal["auto", "stored", "recomputed"]


@dataclass(frozen=True)
class Beside:
    """What else is different in a run under edge masks.

    Attributes:
        edits: changes of what writers send, made before edges carry it, and of what norms divide by.
        outputs: output projections of the run that gave the replacements, layer by layer, if not this model's.
        scales: what the norm before attention divides by, ``(example, pos, 1)``, by layer; by default its input's own.
        flat_ends: whether mask values of exactly 0 and 1 need no gradient.
        mlps: whether MLPs are computed again in the backward.
        buffers: type of the writers' differences, if not that of the model or of automatic casts.
        seen: filled with what each reader sees, ``(example, pos, d_model)``, by the reader's name.
    """

    edits: Edits = field(default_factory=dict)
    outputs: Sequence[Tensor] | None = None
    scales: Mapping[int, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] | None = None
    flat_ends: bool = False
    mlps: Mlps = "auto"
    buffers: torch.dtype | None = None


def frozen_norms(scales: Mapping[Point, Tensor]) -> Beside:
    """Every norm at the scale that a backend's ``norm_scales`` gave for it, ``(example, pos, 1)``."""
    edits = {point: lambda _, scale=scale: scale for point, scale in scales.items() if point[0] != "attention_norm"}
    return Beside(edits, scales={layer: scale for (kind, layer), scale in scales.items() if kind == "attention_norm"})


def check_gradients(trained: bool) -> None:
    """Raise if masks are trained but somebody switched gradients off within the run."""
    if trained and not torch.is_grad_enabled():
        raise RuntimeError(
            "Gradients were switched off within a masked run (reentrant activation checkpointing around a block?), "
            "so those of the masks would be wrong. Turn checkpointing off: readers are recomputed already."
        )
