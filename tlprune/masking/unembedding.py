"""Logits of a model from its last residual stream: what lies behind it is computed apart, and only where needed."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from tlprune.backends.activations import ROUNDING, Backend
from tlprune.task import Batch

_APART: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def vocabulary(backend: Backend) -> int:
    """How many tokens the logits are over; 0 where they are of classes, or nobody knows."""
    weight = backend.parameters().get("unembed.W_U") if backend.predicts == "tokens" else None
    return 0 if weight is None else weight.shape[-1]


@torch.no_grad()
def unembeds_apart(backend: Backend, batch: Batch) -> bool:
    """Whether :meth:`Backend.unembed` of the last stream gives the model's logits; tried once for each model.

    Some architectures do more behind their last block than a backend knows of, such as scaling logits. These keep
    their logits whole.
    """
    if not vocabulary(backend):
        return False
    if backend.model not in _APART:
        one = batch.rows(torch.arange(1)).to(backend.device)
        tokens, positions = one.clean.trimmed(), one.positions[:, :1]
        logits = backend.logits(tokens, positions)
        error = (backend.unembed(backend.final(tokens, {}, positions)) - logits).abs().max()
        _APART[backend.model] = bool(error <= ROUNDING[backend.precision] * logits.abs().max().clamp(min=1))
    return _APART[backend.model]
