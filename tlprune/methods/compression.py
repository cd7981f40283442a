"""Compression ratios: which share of some sites may stay so that a model has so many times fewer parameters."""

from __future__ import annotations

from typing import Any

from tlprune.backends import backend_of
from tlprune.sites import Sites, Weights


def density_for(model: Any, sites: Sites, compression: float) -> float:
    """The share of the sites that stays when the whole model has ``1 / compression`` of its parameters.

    ``(total / c - nonprunable) / prunable``, as ShrinkBench has it: what is not among the sites stays whatever happens,
    so of these alone more must go. Each parameter of the model counts once, biases, embeddings and norms included.

    Args:
        model: that the sites are of.
        sites: of weights, rows or columns: what may be pruned.
        compression: ``c``: parameters of the whole model over those that are left; 1 for all.

    Raises:
        ValueError: the ratio is below 1, or above what is reached when all of the sites go; the sites are not of
            weights of this model; or they name a bias that it does not have, or a tensor that is another one's.

    Source: Blalock, Gonzalez Ortiz, Frankle, Guttag, "What is the State of Neural Network Pruning?" (MLSys 2020).

    Example:
        >>> import tlprune as tp
        >>> model = tp.planted("copy").model
        >>> sites = tp.weights(model)
        >>> total = sum(parameter.numel() for parameter in model.parameters())
        >>> density = density_for(model, sites, 1.25)
        >>> round(total - (1 - density) * len(sites)) == round(total / 1.25)
        True
    """
    total, prunable = counted(model, sites)
    fixed = total - prunable
    most = total / fixed if fixed else float("inf")
    if not 1 <= compression <= most:
        raise ValueError(
            f"A compression ratio of these sites lies between 1 and {most:.4g}, because {fixed:,} of the model's "
            f"{total:,} parameters are not among them, but is {compression:g}. Choose one within, or more sites."
        )
    return min(1.0, max(0.0, (total / compression - fixed) / prunable))


def counted(model: Any, sites: Sites) -> tuple[int, int]:
    """Parameters of a model, and those of them that sites of weights cover.

    Raises:
        ValueError: as of :func:`density_for`.
    """
    held = {name: tensor.numel() for name, tensor in backend_of(model).held().items()}
    return sum(held.values()), sum(held[name] for name in own_names(model, sites))


def own_names(model: Any, sites: Sites) -> list[str]:
    """Names of the tensors that sites of weights are of, each one a parameter of its own.

    Raises:
        ValueError: as of :func:`density_for`.
    """
    backend = backend_of(model)
    known, held = {matrix.name: matrix for matrix in backend.matrices()}, backend.held()
    group = sites.groups[0] if len(sites.groups) == 1 else None
    if not isinstance(group, Weights) or any(known.get(matrix.name) != matrix for matrix in group.matrices):
        raise ValueError(
            f"Parameters are counted of weights of the model itself, but these sites are {sites}, or of another model. "
            "Build them from this one: tp.weights(model)."
        )
    absent = [matrix.name for matrix in group.matrices if matrix.name not in held]
    if absent:
        raise ValueError(
            f"Each parameter is counted once, but {absent[0]} is no parameter of its own here: the model lacks this "
            "bias, or it is tied to another tensor. Leave it out, such as by a pattern of '*.W_*'."
        )
    return [matrix.name for matrix in group.matrices]
