"""The selection of ``N`` of every ``M`` weights, a pattern that hardware can skip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.scores import Scores
from tlprune.selection.ranked import By, check_by, ranking, taken
from tlprune.selection.within import by_output, first_of_each, from_outputs, weights_of
from tlprune.sites import Matrix


@dataclass(frozen=True)
class NM:
    """The best ``keep`` of every ``group`` neighbouring inputs of each output; ``count`` has no part.

    ``NM(2, 4)`` is what sparse tensor cores multiply. Inputs are counted along the matrix' input axes; of ``W_O`` they
    are those of one head after the other, so that the pattern is that of the Hugging Face matrix. Biases stay.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks" (2021), section 2.

    Attributes:
        keep: ``N``.
        group: ``M``; it must divide the number of inputs of every matrix.
        by: as of :class:`Top`: the score, or its size.

    Raises:
        ValueError: not ``0 < keep <= group``.

    Example:
        >>> import torch
        >>> from tlprune.sites import Matrix, Sites, Weights
        >>> sites = Sites((Weights((Matrix("W", (4, 1), (0,)), Matrix("b", (1,), ()))),))
        >>> NM(2, 4).select(Scores(sites, torch.tensor([3.0, 1, 2, 4, 0])), 0).names
        ['W[0,0]', 'W[3,0]', 'b[0]']
    """

    keep: int = 2
    group: int = 4
    by: By = "signed"

    def __post_init__(self) -> None:
        check_by(self.by)
        if not 0 < self.keep <= self.group:
            raise ValueError(
                f"N:M keeps N of every M weights, 0 < N <= M, but got {self.keep}:{self.group}. Write tp.NM(2, 4)."
            )

    def select(self, scores: Scores, count: int) -> Circuit:
        """``keep`` of every ``group`` weights, whatever ``count`` says.

        Raises:
            ValueError: the scores are not of single weights alone, or a matrix has a number of inputs that ``group``
                does not divide.
        """
        weights = weights_of(scores.sites, "N:M", unit="weight")
        values = ranking(scores, self.by).split(weights.sizes)
        kept = [self._of(matrix, own) for matrix, own in zip(weights.matrices, values, strict=True)]
        return taken(self, scores, torch.cat(kept))

    def _of(self, matrix: Matrix, values: Float[Tensor, "weight"]) -> Bool[Tensor, "weight"]:
        if not matrix.inputs:
            return torch.ones(len(values), dtype=torch.bool)
        table = by_output(matrix, values)
        if table.shape[1] % self.group:
            raise ValueError(
                f"{self.keep}:{self.group} needs a number of inputs that {self.group} divides, but {matrix.name} has "
                f"{table.shape[1]:,}. Choose another group, or sites without this matrix."
            )
        kept = first_of_each(table.unflatten(1, (-1, self.group)), self.keep)
        return from_outputs(matrix, kept.flatten(1))
