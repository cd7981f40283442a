"""Scores of weights pooled to rows, columns, neurons, heads and MLPs, so that whole parts can be removed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.graph import Architecture
from tlprune.scores import Scores
from tlprune.selection.within import weights_of
from tlprune.sites import Matrix, Neurons, Nodes, Sites, Weights

Place = tuple[int, int]  # a layer, and which of the kinds of units in it
Unit = Literal["row", "column", "neuron", "head", "mlp", "node"]
_PART = re.compile(r"blocks\.(\d+)\.(attn|mlp)\.([Wb]_(?:Q|K|V|O|in|gate|out))")


def pooled(scores: Scores, model: Any, *, unit: Unit, by: Literal["mean", "sum"] = "mean") -> Scores:
    """Scores of whole units from those of their weights: ``sum_{w of u} s(w)``, or that over their number.

    A neuron has its column of the MLP's input matrices, its bias there, and its row of the output matrix. A head has
    its ``W_Q``, ``W_K``, ``W_V`` and ``W_O`` and the biases of the first three; under grouped-query attention each
    query head counts the keys and values that it shares, whole. An MLP has all its matrices and biases. Output biases
    of attention are no head's, and biases are in no row or column. Units none of whose weights have scores have none.

    The mean makes units with different numbers of weights comparable, such as heads and MLPs in one pool; the sum says
    what removing all of them at once is worth where scores of weights add up.

    Args:
        scores: of single weights, such as of :func:`~tlprune.weights`.
        model: that they are of.
        unit: ``"row"``: all weights of one input of a matrix; ``"column"``: of one output; ``"neuron"``; ``"head"``;
            ``"mlp"``; or ``"node"``: heads and MLPs in one pool.
        by: what becomes of the scores of a unit's weights.

    Returns:
        Scores of :func:`~tlprune.weights` with this unit, or of neurons, heads, MLPs or nodes, in the model's order.
        Samples are pooled alike.

    Raises:
        ValueError: the scores are not of single weights of this model, or no unit has any.

    Example:
        >>> import tlprune as tp
        >>> model = tp.planted("copy").model
        >>> sites = tp.weights(model, "blocks.0.*")
        >>> sizes = torch.cat([p.detach().abs().flatten() for n, p in model.named_parameters() if "blocks.0." in n])
        >>> heads = pooled(tp.Scores(sites, sizes), model, unit="head")
        >>> heads.sites, len(heads.top(1).heads)
        (Sites(4 heads), 1)
    """
    for name, value, choices in (("unit", unit, get_args(Unit)), ("by", by, ("mean", "sum"))):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)} but is {value!r}. Choose one of these.")
    weights, backend = weights_of(scores.sites, "A pool of scores", unit="weight"), backend_of(model)
    if not {*weights.matrices} <= {*backend.matrices()}:
        raise ValueError(
            "Scores are pooled over parts of the model that they are of, but these are of another one. Give its own."
        )
    origin = {**scores.provenance, "pooled": {"unit": unit, "by": by}}
    sites, values = _pooled(unit, by, weights, scores.values, backend.architecture)
    if scores.samples is None:
        return Scores(sites, values, origin)
    samples = [_pooled(unit, by, weights, one, backend.architecture)[1] for one in scores.samples]
    return Scores(sites, values, origin, torch.stack(samples))


def _pooled(
    unit: Unit, by: Literal["mean", "sum"], weights: Weights, values: Float[Tensor, "weight"], shape: Architecture
) -> tuple[Sites, Float[Tensor, "unit"]]:
    if unit in ("row", "column"):
        matrices = tuple(matrix for matrix in weights.matrices if matrix.inputs)
        sites = Sites((Weights(_some(matrices, unit), unit),))
        own = weights.split(values.detach().cpu().double())
        parts = [own[matrix.name].sum(_tied(unit, matrix)).flatten() for matrix in matrices]
        counts = [torch.Size([matrix.shape[axis] for axis in _tied(unit, matrix)]).numel() for matrix in matrices]
        parts = parts if by == "sum" else [part / count for part, count in zip(parts, counts, strict=True)]
        return sites, torch.cat(parts).to(values.dtype)
    kinds = ("head", "mlp") if unit == "node" else (unit,)
    sums, numbers = _by_layer(kinds, weights, values, shape)
    order = _some(sorted(sums), unit)
    found = torch.cat([sums[key] if by == "sum" else sums[key] / numbers[key] for key in order])
    return _sites(unit, order, max(len(own) for own in sums.values())), found.to(values.dtype)


def _tied(unit: str, matrix: Matrix) -> tuple[int, ...]:
    return matrix.outputs if unit == "row" else matrix.inputs


def _some(found: Sequence[Any], unit: str) -> tuple[Any, ...]:
    if not found:
        raise ValueError(
            f"Scores are pooled to a {unit} over its weights, but none of these has one. Score more, such as "
            "tp.weights(model)."
        )
    return tuple(found)


def _by_layer(
    kinds: Sequence[str], weights: Weights, values: Float[Tensor, "weight"], shape: Architecture
) -> tuple[dict[Place, Tensor], dict[Place, Tensor]]:
    """For each layer, and kind of unit in it, the sum of its units' scores and the number of these."""
    sums: dict[Place, Tensor] = {}
    numbers: dict[Place, Tensor] = {}
    for matrix, scores in zip(weights.matrices, values.detach().cpu().split(weights.sizes), strict=True):
        part = _PART.fullmatch(matrix.name)
        for place, kind in enumerate(kinds if part else ()):
            assert part
            own = _POOLS[kind](part[3], scores.view(matrix.shape).double(), shape)
            if own is not None:
                ones = torch.ones((), dtype=torch.float64).expand(matrix.shape)
                key = (int(part[1]), place)
                sums[key] = sums.get(key, 0) + own
                numbers[key] = numbers.get(key, 0) + _POOLS[kind](part[3], ones, shape)
    return sums, numbers


def _of_neurons(name: str, scores: Tensor, shape: Architecture) -> Float[Tensor, "neuron"] | None:
    sides = {"W_in": 0, "W_gate": 0, "W_out": 1}
    return scores.sum(sides[name]) if name in sides else scores if name == "b_in" else None


def _of_heads(name: str, scores: Tensor, shape: Architecture) -> Float[Tensor, "head"] | None:
    if name[2:] not in ("Q", "K", "V", "O") or name == "b_O":
        return None
    own = scores.flatten(1).sum(1)
    return own.repeat_interleave(shape.n_heads // len(own))  # shared keys and values, for each head that reads them


def _of_mlp(name: str, scores: Tensor, shape: Architecture) -> Float[Tensor, "1"] | None:
    return scores.sum()[None] if name[2:] in ("in", "gate", "out") else None


_POOLS: dict[str, Callable[[str, Tensor, Architecture], Any]] = {
    "neuron": _of_neurons,
    "head": _of_heads,
    "mlp": _of_mlp,
}


def _sites(unit: Unit, order: Sequence[Place], width: int) -> Sites:
    layers = tuple(layer for layer, _ in order)
    if unit == "neuron":
        return Sites((Neurons(layers, width),))
    heads = {layer: [f"a{layer}.h{head}" for head in range(width)] for layer in layers}
    if unit == "node":
        return Sites((Nodes("nodes", _joined(order, heads)),))
    names = [name for layer in layers for name in heads[layer]] if unit == "head" else [f"m{layer}" for layer in layers]
    return Sites((Nodes("heads" if unit == "head" else "mlps", tuple(names)),))


def _joined(order: Sequence[Place], heads: Mapping[int, Sequence[str]]) -> tuple[str, ...]:
    return tuple(name for layer, place in order for name in ([f"m{layer}"] if place else heads[layer]))
