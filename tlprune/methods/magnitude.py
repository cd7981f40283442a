"""Pruning of heads and MLPs by the size of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.graph import Architecture
from tlprune.masking.ablation import Ablation
from tlprune.masking.installing import refuse_installed
from tlprune.methods.effects import layer_of, over_layer_norms
from tlprune.methods.scoring import NodeScoring
from tlprune.sites import Sites
from tlprune.task import Discovery


@dataclass(frozen=True, kw_only=True)
class WeightMagnitude(NodeScoring):
    """Score heads and MLPs by the mean size of their weights; the model is not run and examples are not looked at.

    ``score(n) = mean_{w of n} |w|`` over a head's ``W_Q``, ``W_K``, ``W_V`` and ``W_O``, or all matrices of an MLP.
    Filters of one layer have the same number of weights, so the paper sorts them by the sum of ``|w|``; heads and MLPs
    do not, and a mean makes them comparable. Biases are left out, as there. Under grouped-query attention each query
    head counts the ``W_K`` and ``W_V`` that it shares.

    Weights are taken as the model shows them, so gains of norms that were folded into them count.

    Attributes:
        sparsity: fraction of the nodes to remove, in (0, 1).
        nodes: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        pattern: names of the heads and MLPs that are scored, as of :func:`~tlprune.nodes`.
        norm: ``"l1"``: the mean of ``|w|``; ``"l2"``: the root of the mean of ``w^2``.
        normalise: ``"none"``: one order for the whole model; ``"layer"``: scores over the root of the sum of squares
            of their layer's, for layers whose weights differ in scale.

    Raises:
        ValueError: the pattern names embeddings.
        RuntimeError: the model has masks installed.

    Source: Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets" (ICLR 2017), section 3.1.

    Example:
        Heads that do all the work may have the smallest weights.

        >>> import tlprune as tp
        >>> planted = tp.planted("induction")
        >>> kept = WeightMagnitude(nodes=8).find(planted.model, planted.task)
        >>> {*kept.names} & {*planted.circuit.heads}
        set()
    """

    pattern: str = "a*|m*"
    norm: Literal["l1", "l2"] = "l1"
    normalise: Literal["layer", "none"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("norm", ("l1", "l2")), ("normalise", ("layer", "none"))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be {' or '.join(map(repr, choices))} but is {getattr(self, name)!r}. Choose one of "
                    "these."
                )

    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        refuse_installed(model)
        backend = backend_of(model)
        weights, architecture = backend.parameters(), backend.architecture
        names = [sites.name(place) for place in range(len(sites))]
        sizes = torch.stack([_size(self.norm, weights_of(name, weights, architecture)) for name in names])
        return sizes if self.normalise == "none" else over_layer_norms(sizes, sites)


def weights_of(node: str, weights: Mapping[str, Tensor], architecture: Architecture) -> list[Tensor]:
    """The matrices of a head or MLP; a query head's ``W_K`` and ``W_V`` may be those of others too.

    Args:
        node: such as ``"a3.h1"`` or ``"m3"``.
        weights: of the model, by the name that TransformerLens shows.
        architecture: of the model.

    Raises:
        ValueError: the node has no layer.
    """
    layer = layer_of(node)
    if layer is None:
        raise ValueError(
            f"Weights of heads and MLPs have a magnitude that can be compared, but {node} is an embedding. Leave it "
            "out, such as by pattern='a*|m*'."
        )
    if node.startswith("m"):
        return [value for name, value in weights.items() if name.startswith(f"blocks.{layer}.mlp.W_")]
    head = int(node.partition(".h")[2])
    group = head * architecture.n_kv_heads // architecture.n_heads
    return [weights[f"blocks.{layer}.attn.W_{part}"][head if part in "QO" else group] for part in "QKVO"]


def _size(norm: str, weights: list[Tensor]) -> Float[Tensor, ""]:
    """In float64, so that the order does not depend on how many weights are added up."""
    numbers = torch.cat([weight.detach().flatten().double().cpu() for weight in weights])
    return numbers.abs().mean() if norm == "l1" else numbers.square().mean().sqrt()
