"""Ablations: what a reader receives in place of a writer's output when their edge is masked out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from tlprune.backends.activations import Activations, Backend
from tlprune.graph import Architecture
from tlprune.task import Tokens


@runtime_checkable
class Ablation(Protocol):
    """A choice of replacement.

    Attributes:
        per_example: whether the replacement differs between examples, and so needs their corrupted prompts.
    """

    per_example: bool

    def replaced(self, backend: Backend, clean: Tokens, corrupt: Tokens | None) -> Activations:
        """What ablated writers send, shaped to broadcast against the run on ``clean``."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Plain data for provenance."""
        ...


@dataclass(frozen=True)
class Resample:
    """Interchange ablation: the writer's output on the example's corrupted twin, position by position.

    The twin is run through the unmasked model. Clean and corrupted prompts must have equal numbers of tokens.

    Source: Geiger et al. 2021; Edge Pruning, section 3.
    """

    per_example = True

    def replaced(self, backend: Backend, clean: Tokens, corrupt: Tokens | None) -> Activations:
        if corrupt is None:
            raise ValueError(
                "Resample ablation needs a corrupted twin for each prompt but none was given. Pass masked(clean, "
                "corrupt), or choose Zero() or Mean(reference)."
            )
        if corrupt.ids.shape != clean.ids.shape:
            raise ValueError(
                f"Resample ablation needs clean and corrupted prompts of one shape but got {tuple(clean.ids.shape)} "
                f"and {tuple(corrupt.ids.shape)}. Give each prompt a twin with as many tokens."
            )
        return backend.observe(corrupt)

    def as_dict(self) -> dict[str, Any]:
        return {"name": "resample"}


@dataclass(frozen=True)
class Zero:
    """Ablated writers send nothing. What no edge carries (attention output biases) still reaches every reader.

    A reader in front of a norm with a single writer and nothing else (layer 0's q, k and v when embeddings are merged)
    would not notice a mask value between 0 and 1, because norms undo the scale. There q, k and v are gated behind the
    norm, which agrees at 0 and 1; an MLP in this place (parallel attention and MLP) is gated by ``mask > 0``.
    """

    per_example = False

    def replaced(self, backend: Backend, clean: Tokens, corrupt: Tokens | None) -> Activations:
        shape = backend.architecture
        stream = torch.zeros(1, 1, backend.d_model, dtype=backend.dtype, device=backend.device)
        heads, d_head, _ = backend.output_weight(0).shape
        return Activations(
            embeddings=(stream,) * (2 if shape.position_embedding else 1),
            heads=(stream.new_zeros(1, 1, heads, d_head),) * shape.n_layers,
            mlps=(stream,) * (shape.n_layers if shape.has_mlp else 0),
            streams=tuple(constant[None, None] for constant in backend.constants()),
        )

    def as_dict(self) -> dict[str, Any]:
        return {"name": "zero"}


@dataclass(frozen=True)
class Mean:
    """Ablated writers send their mean over reference prompts; padding is not counted.

    Attributes:
        reference: prompts to average over; never the evaluated ones. A task's training prompts, corrupted, are usual.
        over: ``"positions"``: one mean for all positions; ``"examples"``: one per position, for reference and
            evaluated prompts that are aligned and unpadded.
        batch_size: reference prompts per forward pass.
    """

    reference: Tokens
    over: Literal["positions", "examples"] = "positions"
    batch_size: int = 64
    per_example = False

    def __post_init__(self) -> None:
        if self.over not in ("positions", "examples"):
            raise ValueError(f"Mean goes over 'positions' or 'examples' but got {self.over!r}. Choose one of these.")
        if self.over == "examples" and self.reference.attention_mask is not None:
            raise ValueError(
                "A mean per position needs aligned prompts but the reference prompts are padded. Use "
                "Mean(reference, over='positions')."
            )

    def replaced(self, backend: Backend, clean: Tokens, corrupt: Tokens | None) -> Activations:
        if self.over == "examples" and clean.ids.shape[1] != self.reference.ids.shape[1]:
            raise ValueError(
                f"A mean per position needs prompts of one length but the reference has {self.reference.ids.shape[1]} "
                f"tokens and the prompts have {clean.ids.shape[1]}. Use Mean(reference, over='positions')."
            )
        totals: list[Tensor] | None = None
        for rows in torch.arange(len(self.reference.ids)).split(self.batch_size):
            tokens = self.reference.rows(rows)
            sums = backend.observe(tokens).map(lambda value, tokens=tokens: self._sum(value, tokens)).tensors
            totals = list(sums) if totals is None else [old + new for old, new in zip(totals, sums, strict=True)]
        count = self._count()
        return _rebuild([(total / count).to(backend.dtype) for total in totals or []], backend.architecture)

    def _sum(self, value: Tensor, tokens: Tokens) -> Tensor:
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        if self.over == "examples":
            return value.sum(0, keepdim=True)
        if tokens.attention_mask is not None:
            real = tokens.attention_mask.to(value)
            value = value * real.reshape(*real.shape, *(1,) * (value.dim() - 2))
        return value.sum((0, 1), keepdim=True)

    def _count(self) -> int:
        ids, mask = self.reference.ids, self.reference.attention_mask
        if self.over == "examples":
            return len(ids)
        return ids.numel() if mask is None else int(mask.sum())

    def as_dict(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.reference.ids.cpu().numpy().tobytes()).hexdigest()[:16]
        return {"name": "mean", "over": self.over, "reference": digest, "prompts": len(self.reference.ids)}


def _rebuild(tensors: list[Tensor], shape: Architecture) -> Activations:
    """The inverse of ``Activations.tensors``."""
    embeddings, layers = (2 if shape.position_embedding else 1), shape.n_layers
    mlps = layers if shape.has_mlp else 0
    ends = [embeddings, embeddings + layers, embeddings + layers + mlps]
    return Activations(*(tuple(tensors[a:b]) for a, b in zip([0, *ends], [*ends, len(tensors)], strict=True)))
