"""What a knowledge-critical subnetwork is held against: as many weights of each matrix, chosen otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.masking.checks import check_sites
from tlprune.sites import Matrix, Weights

KINDS = ("random", "rows", "magnitude")
Order = Callable[[Matrix], Float[Tensor, "site"]]  # a number for each site of a matrix; the lowest go first


def knowledge_baseline(model: Any, circuit: Circuit, *, kind: str = "random", seed: int = 0) -> Circuit:
    """As many sites of each matrix as a circuit of weights has, chosen without looking at any example.

    Args:
        model: the model that the circuit is of.
        circuit: of weights, rows or columns; what it keeps is what is to be removed, and so it is here.
        kind: ``"random"``: any sites of a matrix alike; ``"rows"``: all weights of random input neurons, of the last
            one as many as are left, any alike; ``"magnitude"``: those of the largest absolute weight, of rows and
            columns the largest sum.
        seed: of the draws.

    Raises:
        ValueError: the circuit is not of weights alone, rows are asked of a circuit of columns, or there is no such
            kind.

    Source: Bayazit et al., "Discovering Knowledge-Critical Subnetworks in Pretrained Language Models" (EMNLP 2024),
    section 5, of random ones.

    Example:
        >>> import tlprune as tp
        >>> model = tp.planted("induction").model
        >>> sites = tp.weights(model, "blocks.1.mlp.W_in")
        >>> first = torch.arange(len(sites)) < 100
        >>> found = knowledge_baseline(model, tp.Circuit(sites, first), kind="rows")
        >>> len(found), len({name.split(",")[0] for name in found.names}) == -(-100 // model.cfg.d_mlp)
        (100, True)
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)} but is {kind!r}. Choose one of these.")
    group = weights_of(circuit)
    check_sites(circuit.sites, backend_of(model))
    generator = torch.Generator().manual_seed(seed)
    orders: dict[str, Order] = {
        "random": lambda matrix: _noise(matrix.mask_shape(group.unit), generator),
        "rows": lambda matrix: _by_rows(matrix, group.unit, generator),
        "magnitude": lambda matrix: _size(model, matrix, group.unit).neg(),
    }
    parts = zip(group.matrices, circuit.kept.split(group.sizes), strict=True)
    kept = [_first(orders[kind](matrix), int(part.sum())) for matrix, part in parts]
    return circuit.like(torch.cat(kept), {**origin(circuit), "baseline": kind, "seed": seed})


def weights_of(circuit: Circuit) -> Weights:
    """The matrices of a circuit of weights.

    Raises:
        ValueError: it is of something else.
    """
    if circuit.sites.kinds != ("weights",):
        raise ValueError(
            f"A knowledge-critical subnetwork is of weights but this circuit is of {circuit.sites}. Find one with "
            "tp.KnowledgeSubnetwork, or state it over tp.weights(model, ...)."
        )
    group = circuit.sites.group("weights")
    assert isinstance(group, Weights)
    return group


def origin(circuit: Circuit) -> dict[str, Any]:
    """What circuits that are made from this one share with it."""
    return {name: circuit.provenance[name] for name in ("model", "task", "ablation") if name in circuit.provenance}


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "site"]:
    """Different numbers in [0, 1); of float32 some would be equal in a large matrix."""
    return torch.rand(shape, generator=generator, dtype=torch.float64).flatten()


def _by_rows(matrix: Matrix, unit: str, generator: torch.Generator) -> Float[Tensor, "site"]:
    """Rows in random order, and the weights of each row too."""
    if unit == "column":
        raise ValueError("Random rows are of single weights or rows but this circuit is of columns. Use kind='random'.")
    place = torch.randperm(int(rows_of(matrix, "row").max()) + 1, generator=generator)
    return place[rows_of(matrix, unit)] + _noise(matrix.mask_shape(unit), generator)


def rows_of(matrix: Matrix, unit: str) -> Int[Tensor, "site"]:
    """The number of the row, or input neuron, that each site of a matrix is in."""
    shape = matrix.mask_shape("row")
    rows = torch.arange(torch.Size(shape).numel()).view(shape)
    return rows.expand(matrix.mask_shape(unit)).flatten()


def _size(model: Any, matrix: Matrix, unit: str) -> Float[Tensor, "site"]:
    """Absolute weights, added up over those that a site ties."""
    weight = backend_of(model).parameters()[matrix.name].detach().abs().double().cpu()
    return weight.sum_to_size(matrix.mask_shape(unit)).flatten()


def _first(order: Float[Tensor, "site"], count: int) -> Bool[Tensor, "site"]:
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order.argsort(stable=True)[:count]] = True
    return kept
