"""Whether a subnetwork's weights gather at few input or output neurons of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.learning.bootstrap import Interval, bounds, finite
from tlprune.sites import Matrix

Side = Literal["inputs", "outputs"]
TOP = 0.01  # of the neurons


@dataclass(frozen=True)
class Concentration:
    """How unevenly a matrix' weights of the subnetwork lie over the neurons on one side of it.

    Attributes:
        matrix: its name.
        side: ``"inputs"`` or ``"outputs"``.
        neurons: how many there are.
        gini: Gini coefficient of the numbers of weights per neuron: 0 if all have as many, nearly 1 if one has all;
            not a number for an empty subnetwork.
        top: share of the weights that lie at the hundredth of the neurons, at least one, with the most.
        chance_gini: mean and interval of the coefficient where as many weights of the matrix are drawn uniformly.
        chance_top: the same of the share.
    """

    matrix: str
    side: Side
    neurons: int
    gini: float
    top: float
    chance_gini: Interval
    chance_top: Interval

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        plain = {"matrix": self.matrix, "side": self.side, "neurons": self.neurons}
        figures = {"gini": finite(self.gini), "top": finite(self.top)}
        return plain | figures | {"chance_gini": self.chance_gini.as_dict(), "chance_top": self.chance_top.as_dict()}


def concentration(
    matrix: Matrix, kept: Bool[Tensor, "..."], side: Side, *, draws: int = 200, seed: int = 0
) -> Concentration:
    """Of the kept weights of one matrix, beside as many that are drawn uniformly.

    Args:
        matrix: which axes count inputs.
        kept: its weights in the subnetwork, in its shape.
        side: whose neurons.
        draws: random masks that chance is told from.
        seed: of these.

    Example:
        >>> weights = torch.zeros(4, 5, dtype=torch.bool)
        >>> weights[2] = True
        >>> found = concentration(Matrix("W", (4, 5), (0,)), weights, "inputs")
        >>> found.gini, found.top, found.chance_top.high < 1
        (0.75, 1.0, True)
    """
    counts = per_neuron(matrix, kept, side)
    drawn = _drawn(len(counts), kept.numel() // len(counts), int(counts.sum()), draws=draws, seed=seed)
    chance = [_interval(figure(drawn)) for figure in (gini, top_share)]
    return Concentration(matrix.name, side, len(counts), float(gini(counts)), float(top_share(counts)), *chance)


def per_neuron(matrix: Matrix, kept: Bool[Tensor, "..."], side: Side) -> Int[Tensor, "neuron"]:
    """How many kept weights each neuron has on one side of a matrix; of several heads one after the other."""
    return kept.sum(matrix.outputs if side == "inputs" else matrix.inputs).flatten()


def gini(counts: Int[Tensor, "*lead neuron"]) -> Float[Tensor, "*lead"]:
    """Gini coefficient: half the mean difference of two neurons' counts, over the mean count.

    Example:
        >>> gini(torch.tensor([[3, 3, 3], [0, 0, 9]])).tolist()
        [0.0, 0.6666666666666666]
    """
    ordered, number = counts.double().sort(-1).values, counts.shape[-1]
    ranks = 2 * torch.arange(1, number + 1, dtype=torch.float64) - number - 1
    return (ordered @ ranks) / (number * ordered.sum(-1))


def top_share(counts: Int[Tensor, "*lead neuron"]) -> Float[Tensor, "*lead"]:
    """Share of all that the hundredth of the neurons with the most have."""
    most = counts.double().topk(math.ceil(TOP * counts.shape[-1]), dim=-1).values
    return most.sum(-1) / counts.double().sum(-1)


def _drawn(neurons: int, each: int, kept: int, *, draws: int, seed: int) -> Int[Tensor, "draw neuron"]:
    import numpy

    generator = numpy.random.default_rng(seed)
    found = generator.multivariate_hypergeometric([each] * neurons, kept, size=draws, method="marginals")
    return torch.from_numpy(found)


def _interval(values: Float[Tensor, "draw"]) -> Interval:
    low, high = bounds(values[:, None])
    return Interval(float(values.mean()), float(low), float(high))


def mean_over(rows: Sequence[Concentration]) -> tuple[float, float, float, float]:
    """Mean Gini coefficient and that by chance, mean share and that by chance."""
    columns = zip(*((row.gini, row.chance_gini.value, row.top, row.chance_top.value) for row in rows), strict=True)
    first, second, third, fourth = (sum(column) / len(rows) for column in columns)
    return first, second, third, fourth
