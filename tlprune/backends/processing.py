"""What was done to a model's weights without changing what it computes: folding of norms and biases, centring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tlprune.backends.activations import NORMS, Backend

READING = ("W_Q", "W_K", "W_V", "W_in", "W_gate", "W_U")
WRITING = ("W_O", "W_out", "b_out", "W_E", "W_pos")


def processing(backend: Backend) -> dict[str, Any]:
    """What TransformerLens did to the weights, as far as a model shows it, and their precision.

    Centring leaves no mark in a model's settings.

    Example:
        >>> import tlprune as tp
        >>> from tlprune.backends import backend_of
        >>> processing(backend_of(tp.planted("copy").model))
        {'normalization': None, 'folded_norms': False, 'value_biases': False, 'dtype': 'float32'}
    """
    kind = backend.model.cfg.normalization_type
    biases = (value for name, value in backend.parameters().items() if name.endswith("attn.b_V"))
    return {
        "normalization": kind,
        "folded_norms": str(kind).endswith("Pre"),
        "value_biases": any(bool(bias.detach().any()) for bias in biases),
        "dtype": str(backend.dtype).removeprefix("torch."),
    }


@dataclass(frozen=True)
class Signature:
    """Numbers that depend on every weight of a model, but not on how it is processed.

    Attributes:
        values: one or more per parameter.
        scales: how large each could be; rounding is relative to it.
    """

    values: tuple[float, ...]
    scales: tuple[float, ...]


@torch.no_grad()
def signature(backend: Backend) -> Signature:
    """``u W' v`` with fixed random vectors ``u``, ``v`` for each weight, where ``W'`` has its norm's gain folded in.

    Folding and centring only move numbers between parameters, or along directions that a norm or a softmax removes. So
    reading weights are multiplied with the gain of their norm, their biases include its shift, output biases include
    what value biases write, and ``u`` and ``v`` are orthogonal to what centring takes away. Of post-norm models nothing
    can be folded or centred, so each weight counts as it is.
    """
    parameters, centred = backend.parameters(), NORMS[backend.model.cfg.normalization_type] == "layer"
    if backend.architecture.post_norm:
        sums = [_sum(value.reshape(-1, value.shape[-1])) for _, value in sorted(parameters.items())]
    else:
        sums = [number for name in sorted(parameters) for number in _numbers(name, parameters, centred=centred)]
    values, scales = zip(*sums, strict=True)
    return Signature(values, scales)


def _numbers(name: str, parameters: Mapping[str, Tensor], *, centred: bool) -> Iterator[tuple[float, float]]:
    """The numbers of one parameter, each with its scale."""
    block, _, leaf = name.rpartition(".")
    layer = ".".join(block.split(".")[:2])
    norm = {"attn": f"{layer}.ln1", "mlp": f"{layer}.ln2", "unembed": "ln_final"}.get(block.rpartition(".")[2], "")
    value = parameters[name]
    if leaf in READING:
        gain, shift = parameters.get(f"{norm}.w"), parameters.get(f"{norm}.b")
        weight = _by_input(value)
        yield _sum(weight if gain is None else gain[:, None] * weight, rows=centred, columns=leaf == "W_U")
        bias = parameters.get(f"{block}.b_{leaf[2:]}")
        if leaf != "W_V" and (shift is not None or bias is not None):
            yield _sum(_bias(weight, bias, shift)[None], columns=leaf == "W_U")
    elif leaf == "b_O":
        yield _sum(_output_bias(block, norm, parameters)[None], columns=centred)
    elif leaf == "b_out" or not (leaf.startswith("b_") or block.endswith((".ln1", ".ln2")) or block == "ln_final"):
        yield _sum(value.reshape(-1, value.shape[-1]), columns=centred and leaf in WRITING)


def _by_input(weight: Tensor) -> Tensor:
    """``(input, output)``, also where outputs are heads."""
    return weight if weight.dim() == 2 else weight.transpose(0, 1).flatten(1)


def _bias(weight: Tensor, bias: Tensor | None, shift: Tensor | None) -> Tensor:
    total = torch.zeros(weight.shape[1], dtype=weight.dtype, device=weight.device)
    total = total if bias is None else total + bias.flatten()
    return total if shift is None else total + shift @ weight


def _output_bias(block: str, norm: str, parameters: Mapping[str, Tensor]) -> Tensor:
    """What attention adds whatever it attends to."""
    values, outputs = parameters[f"{block}.W_V"], parameters[f"{block}.W_O"]
    carried = _bias(_by_input(values), parameters.get(f"{block}.b_V"), parameters.get(f"{norm}.b"))
    per_head = carried.view(len(values), -1).repeat_interleave(len(outputs) // len(values), 0)
    return parameters[f"{block}.b_O"] + torch.einsum("he,hed->d", per_head, outputs)


def _sum(weight: Tensor, *, rows: bool = False, columns: bool = False) -> tuple[float, float]:
    """``u W v``, and ``|u W|``, which tells how large it could be."""
    first, second = _direction(len(weight), weight, centred=rows), _direction(weight.shape[1], weight, centred=columns)
    mixed = first @ weight
    return float(mixed.double() @ second.double()), float(mixed.double().norm())


def _direction(count: int, like: Tensor, *, centred: bool) -> Tensor:
    """A fixed random vector of about length 1; orthogonal to the vector of ones, where that direction is removed."""
    vector = torch.randn(count, generator=torch.Generator().manual_seed(count))
    vector = vector - vector.mean() if centred else vector
    return (vector / count**0.5).to(like)
