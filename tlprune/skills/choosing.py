"""Neurons by their place in a ranking of their layer: the best of it, or as many at random."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.scores import Scores
from tlprune.sites import Neurons, Sites

_ROUNDING = 1e-9  # 0.29 of 100 neurons are 29, whatever floating point makes of that


def top_neurons(scores: Scores, fraction: float, *, layers: Sequence[int] | None = None) -> Circuit:
    """The neurons of the highest score, as many in each layer: ``int(fraction * d_mlp)``.

    Of equal scores the neuron that comes first in the model is taken.

    Args:
        scores: a number for every neuron, from any method.
        fraction: which part of a layer, in [0, 1]; rounded down to a number of neurons.
        layers: the layers that neurons are taken of; by default all that have scores.

    Returns:
        The circuit of these neurons, among all neurons of the layers.

    Raises:
        ValueError: the scores are not of neurons, there are none of a layer, or the fraction is out of range.

    Source: Wang et al., "Finding Skill Neurons in Pre-trained Transformer-based Language Models" (2022), section 4.2
    and released code.

    Example:
        >>> scores = Scores(Sites((Neurons((0, 1), 4),)), torch.tensor([0.5, 0.9, 0.6, 0.6, 0.5, 0.5, 0.5, 0.7]))
        >>> top_neurons(scores, 0.5).names
        ['m0.n1', 'm0.n2', 'm1.n0', 'm1.n3']
        >>> top_neurons(scores, 0.25, layers=[1]).names
        ['m1.n3']
    """
    group, values = layer_scores(scores, layers)
    chosen = places(values) < count_of(fraction, group.width)
    provenance = {**scores.provenance, "top_neurons": {"fraction": fraction, "layers": list(group.layers)}}
    return Circuit(Sites((group,)), chosen.flatten(), provenance)


def layer_scores(scores: Scores, layers: Sequence[int] | None = None) -> tuple[Neurons, Float[Tensor, "layer neuron"]]:
    """The neurons of some layers and their scores.

    Raises:
        ValueError: the scores are not of neurons, or there are none of a layer.
    """
    group, values = neurons_of(scores.sites), scores.values.detach().cpu().float()
    table = values[scores.sites.part("neurons")].view(len(group.layers), group.width)
    chosen = group.layers if layers is None else tuple(sorted({*layers}))
    missing = [layer for layer in chosen if layer not in group.layers]
    if missing or not chosen:
        raise ValueError(
            f"Neurons are taken of layers that have scores, {', '.join(map(str, group.layers))}, but layers "
            f"{', '.join(map(str, chosen)) or 'none'} were asked for. Choose some of these."
        )
    return Neurons(chosen, group.width), table[[group.layers.index(layer) for layer in chosen]]


def same_neurons(
    scores: Mapping[str, Scores], layers: Sequence[int] | None = None
) -> tuple[Neurons, dict[str, Float[Tensor, "layer neuron"]]]:
    """The neurons that all of several scores are of, and each one's scores of them.

    Raises:
        ValueError: there are no scores, or they are of different neurons.
    """
    found = {name: layer_scores(one, layers) for name, one in scores.items()}
    groups = dict.fromkeys(group for group, _ in found.values())
    if len(groups) != 1:
        raise ValueError(
            f"Tasks are compared by the same neurons but the scores are of "
            f"{' and '.join(map(str, groups)) or 'none'}. Score all tasks on one model, or give layers= that all have."
        )
    return next(iter(groups)), {name: values for name, (_, values) in found.items()}


def neurons_of(sites: Sites) -> Neurons:
    """The neurons among sites.

    Raises:
        ValueError: there are none, or they differ by span.
    """
    found = sites.group("neurons") if "neurons" in sites.kinds else None
    if not isinstance(found, Neurons):
        raise ValueError(
            f"This needs scores of neurons, one for all positions, but they are of {sites!r}"
            f"{' that differ by span' if sites.spans else ''}. Score tp.neurons(model), as tp.SkillNeurons does."
        )
    return found


def count_of(fraction: float, width: int) -> int:
    """``int(fraction * width)``, not one less by rounding.

    Raises:
        ValueError: the fraction lies outside [0, 1].

    Example:
        >>> count_of(0.29, 100), int(0.29 * 100), count_of(0.02, 3072)
        (29, 28, 61)
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"A fraction of neurons lies between 0 and 1 but is {fraction}. For a tenth give 0.1.")
    return math.floor(fraction * width + _ROUNDING)


def places(values: Float[Tensor, "layer neuron"]) -> Int[Tensor, "layer neuron"]:
    """The place of each neuron in its layer, 0 for the highest score; of equal ones the first goes before."""
    order = torch.argsort(values, dim=-1, descending=True, stable=True)
    return torch.argsort(order, dim=-1)


def random_places(group: Neurons, name: str) -> Int[Tensor, "layer neuron"]:
    """A random order of each layer; it depends on the name and on the layers' numbers and width alone."""
    drawn = []
    for layer in group.layers:
        # Generators of neighbouring small seeds begin alike.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name}/{layer}".encode()))
        drawn.append(torch.randperm(group.width, generator=generator))
    return torch.stack(drawn)


def without(orders: Sequence[Int[Tensor, "layer neuron"]], counts: Sequence[int]) -> Bool[Tensor, "circuit site"]:
    """What is kept if the first of each layer are perturbed: for each order as many circuits as there are counts.

    Example:
        >>> without([torch.tensor([[1, 0, 2]])], [0, 1, 2]).int().tolist()
        [[1, 1, 1], [1, 0, 1], [0, 0, 1]]
    """
    return torch.stack([(order >= count).flatten() for order in orders for count in counts])
