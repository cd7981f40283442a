"""Figures of a whole set of examples that no mean over examples gives, such as correlations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

Columns = Float[Tensor, "example column"]
Prepared = Float[Tensor, "example prepared"]


def unchanged(columns: Columns) -> Prepared:
    """The columns themselves."""
    return columns


@dataclass(frozen=True)
class Statistic:
    """A function of several means over examples; a task's metric, in place of one number per example.

    A bootstrap draws examples, all columns of one example together, and so gives its interval.

    Attributes:
        columns: from logits, batch and the full model's predictions to some numbers per example, ``(example, column)``.
        of_means: from the mean of each column to the figure; works element by element. Higher is better.
        prepared: from the columns of all examples together to those whose means are taken; for ranks, which are known
            only then.

    Example:
        >>> import torch
        >>> ratio = Statistic(lambda logits, batch, reference: logits[:, 0, :2], lambda first, second: first / second)
        >>> columns = ratio.columns(torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]]]), None, None)
        >>> float(ratio.of_means(*ratio.prepared(columns).mean(0)))
        0.5
    """

    columns: Callable[..., Columns]
    of_means: Callable[..., Tensor]
    prepared: Callable[[Columns], Prepared] = unchanged


@dataclass(frozen=True)
class Measured:
    """A statistic of some examples.

    Attributes:
        columns: what its means are of, ``(example, column)``.
        of_means: from these means to the figure.
    """

    columns: Columns
    of_means: Callable[..., Tensor]

    @property
    def value(self) -> float:
        return float(self.of_means(*self.columns.double().mean(0)))
