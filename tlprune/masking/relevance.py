"""Rules of layer-wise relevance propagation, as what a run lets gradients through.

Values stay those of the model. What is not linear sends back, instead of its slope, the factor by which it multiplied:

- a norm divides by a number that has no gradient (its mean keeps one): LN-rule;
- an activation function ``f(x)`` counts as ``x`` times the number ``f(x) / x``: identity rule;
- of a product of gate and activation each factor gets half of the gradient: half rule;
- attention patterns have no gradient, so that heads are linear in their values: AH-rule, where asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tlprune.backends.activations import Backend, Point, Steering
from tlprune.masking.beside import Beside, frozen_norms
from tlprune.task import Tokens


def _as_it_is(steering: Steering) -> Steering:
    return steering


@dataclass(frozen=True)
class Rules:
    """What is different in a run beside what writers send; nothing by default.

    Attributes:
        beside: edits, and scales of norms.
        around: from the run's steering to one with other gradients.
    """

    beside: Beside = field(default_factory=Beside)
    around: Callable[[Steering], Steering] = field(default=_as_it_is)


def relevance_rules(backend: Backend, tokens: Tokens, *, patterns: bool) -> Rules:
    """The rules for a run on some prompts.

    Args:
        backend: the model.
        tokens: the prompts, whose norms' scales are measured.
        patterns: whether gradients pass through attention patterns.

    Raises:
        ValueError: activations are normalised within the MLP, so that no factor belongs to one of them alone.
    """
    if str(backend.model.cfg.act_fn).endswith("_ln"):
        raise ValueError(
            f"Relevance rules need activation functions of one number each, but {backend.model.cfg.model_name!r} has "
            f"{backend.model.cfg.act_fn!r}, which normalises them. Use EAP or EAPIG."
        )
    norms = frozen_norms(backend.norm_scales(tokens))
    layers = range(backend.architecture.n_layers if backend.architecture.has_mlp else 0)
    edits = {point: edit for layer in layers for point, edit in _activation_edits(backend, layer)}
    beside = Beside({**norms.edits, **edits}, scales=norms.scales)
    return Rules(beside) if patterns else Rules(beside, ValuesOnly)


def _activation_edits(backend: Backend, layer: int) -> Iterator[tuple[Point, Callable[[Tensor], Tensor]]]:
    """Cut the gradient in front of the activation function, and join it again behind, as a factor."""
    inputs: list[Tensor] = []

    def cut(value: Tensor) -> Tensor:
        inputs.append(value)
        return value.detach()

    def join(value: Tensor) -> Tensor:
        bias, before = backend.gate_bias(layer), inputs.pop()
        product = value.detach() if bias is None else value.detach() - bias
        factor = torch.where(before == 0, torch.zeros_like(product), product / before.detach())
        through = factor * (before - before.detach())
        if bias is None:
            return value.detach() + through
        return value.detach() + (value - value.detach() + through) / 2

    yield ("preactivations", layer), cut
    yield ("neurons", layer), join


class ValuesOnly:
    """A ``Steering`` whose q and k have no gradient, so that attention patterns have none."""

    def __init__(self, inner: Steering) -> None:
        self.inner = inner
        self.embedding, self.heads, self.mlp = inner.embedding, inner.heads, inner.mlp
        self.mlp_input, self.final = inner.mlp_input, inner.final

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.inner.attention(layer)
        return q.detach(), k.detach(), v
