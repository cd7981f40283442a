"""Selections that compare weights only with those of their own tensor, or of their own output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.scores import Scores, check_count, first
from tlprune.selection.ranked import By, Selection, Top, check_by, ranking, taken
from tlprune.sites import Matrix, Sites, Weights


@dataclass(frozen=True)
class PerTensor:
    """The same share of every tensor's weights, by another selection that sees this tensor alone.

    ``Top()`` itself compares all weights in one pool ("global" pruning); ``PerTensor()`` is "layer" pruning. Of
    ``count`` weights a tensor with ``n`` of ``N`` gets ``n count / N``, rounded down; what is left goes, one each, to
    the tensors with the largest fractions, the first of equal ones. So the circuit has just ``count`` weights, and no
    tensor is a whole weight off its share.

    Source: Blalock, Gonzalez Ortiz, Frankle, Guttag, "What is the State of Neural Network Pruning?" (MLSys 2020), whose
    ShrinkBench has global and layerwise strategies.

    Attributes:
        inner: what is taken of each tensor.

    Example:
        >>> import torch
        >>> from tlprune.sites import Matrix, Sites, Weights
        >>> sites = Sites((Weights((Matrix("small", (4,), ()), Matrix("large", (2, 2), (0,)))),))
        >>> scores = Scores(sites, torch.tensor([1.0, 2, 3, 4, 50, 60, 70, 80]))
        >>> Top().select(scores, 4).names[0], PerTensor().select(scores, 4).names
        ('large[0,0]', ['small[2]', 'small[3]', 'large[1,0]', 'large[1,1]'])
    """

    inner: Selection = field(default=Top())

    def select(self, scores: Scores, count: int) -> Circuit:
        """A circuit with the same share of each tensor.

        Raises:
            ValueError: the scores are not of weights alone.
        """
        weights = weights_of(scores.sites, "A share of each tensor")
        check_count(count, scores.sites)
        sizes = torch.tensor(weights.sizes)
        parts = zip(weights.matrices, scores.values.split(weights.sizes), apportioned(sizes, count), strict=True)
        kept = [
            self.inner.select(Scores(Sites((Weights((matrix,), weights.unit),)), values), int(own)).kept
            for matrix, values, own in parts
        ]
        return taken(self, scores, torch.cat(kept), count=count)


@dataclass(frozen=True)
class PerOutput:
    """The same share of the weights of every output of every matrix, the best of each; a bias vector is one such set.

    Shares are rounded as those of :class:`PerTensor`: just ``count`` weights in all, none a whole weight off.

    Source: Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models" (ICLR 2024),
    whose Wanda compares weights per output.

    Attributes:
        by: as of :class:`Top`: the score, or its size.

    Example:
        >>> import torch
        >>> from tlprune.sites import Matrix, Sites, Weights
        >>> scores = Scores(Sites((Weights((Matrix("W", (2, 3), (0,)),)),)), torch.tensor([1.0, 5, 9, 2, 4, 8]))
        >>> PerOutput().select(scores, 3).names
        ['W[0,1]', 'W[0,2]', 'W[1,0]']
    """

    by: By = "signed"

    def __post_init__(self) -> None:
        check_by(self.by)

    def select(self, scores: Scores, count: int) -> Circuit:
        """A circuit with the same share of each output's weights.

        Raises:
            ValueError: the scores are not of single weights alone.
        """
        weights = weights_of(scores.sites, "A share of each output's weights", unit="weight")
        check_count(count, scores.sites)
        values = ranking(scores, self.by).split(weights.sizes)
        tables = [by_output(matrix, own) for matrix, own in zip(weights.matrices, values, strict=True)]
        sizes = torch.cat([torch.full((len(table),), table.shape[1]) for table in tables])
        counts = apportioned(sizes, count).split([len(table) for table in tables])
        kept = [
            from_outputs(matrix, first_of_each(table, own))
            for matrix, table, own in zip(weights.matrices, tables, counts, strict=True)
        ]
        return taken(self, scores, torch.cat(kept), count=count)


def weights_of(sites: Sites, what: str, *, unit: Literal["weight"] | None = None) -> Weights:
    """The weights that are all of some sites.

    Args:
        sites: to be of weights alone.
        what: needs them; the beginning of the message.
        unit: ``"weight"`` where rows and columns will not do.

    Raises:
        ValueError: they are others.
    """
    group = sites.groups[0] if len(sites.groups) == 1 else None
    if not isinstance(group, Weights) or unit not in (None, group.unit):
        own = f"{group.unit}s of weights" if isinstance(group, Weights) else " + ".join(sites.kinds)
        wanted = "single weights" if unit else "weights"
        raise ValueError(f"{what} needs sites of {wanted} alone but these are {own}. Use those of tp.weights(model).")
    return group


def apportioned(sizes: Int[Tensor, "part"], count: int) -> Int[Tensor, "part"]:
    """``count`` things over parts in proportion to their sizes, by largest remainders; the first of equal ones.

    Example:
        >>> apportioned(torch.tensor([4, 3, 3]), 5).tolist()
        [2, 2, 1]
    """
    shares = sizes * count
    total = int(sizes.sum())
    whole = shares // total
    return whole + first((shares % total).double(), count - int(whole.sum()))


def by_output(matrix: Matrix, values: Float[Tensor, "weight"]) -> Float[Tensor, "output input"]:
    """A row for each output of a matrix, in the order of its axes; of a bias vector one row in all."""
    if not matrix.inputs:
        return values[None]
    outputs = [matrix.shape[axis] for axis in matrix.outputs]
    rows = torch.Size(outputs).numel()
    return values.view(matrix.shape).permute(*matrix.outputs, *matrix.inputs).reshape(rows, -1)


def from_outputs(matrix: Matrix, kept: Bool[Tensor, "output input"]) -> Bool[Tensor, "weight"]:
    """The way back from :func:`by_output`."""
    if not matrix.inputs:
        return kept.flatten()
    order = (*matrix.outputs, *matrix.inputs)
    back = sorted(range(len(order)), key=lambda axis: order[axis])
    return kept.view([matrix.shape[axis] for axis in order]).permute(back).reshape(-1)


def first_of_each(
    values: Float[Tensor, "*rows member"], counts: Int[Tensor, "*rows"] | int
) -> Bool[Tensor, "*rows member"]:
    """So many of the highest of each row; of equal ones those that come first."""
    order = values.sort(dim=-1, descending=True, stable=True).indices
    wanted = torch.as_tensor(counts).unsqueeze(-1)
    chosen = (torch.arange(values.shape[-1]) < wanted).expand(values.shape)
    return torch.zeros(values.shape, dtype=torch.bool).scatter(-1, order, chosen)
