"""The selection of Edge Pruning: a threshold that removes as much as the soft masks do."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.gates import Gate, HardConcrete
from tlprune.scores import Scores
from tlprune.selection.ranked import taken

_WIDTH = 1e-5  # of the interval at which the published search ends


@dataclass(frozen=True)
class Bisected:
    """The sites whose noise-free mask is above a threshold, at which as many are kept as the masks add up to.

    Scores are ``log_alpha``, such as ``tp.EdgePruning().score(...)`` gives, and masks ``m = gate.harden(log_alpha)``.
    The threshold ``t`` is the last that a bisection tries for where the part of masks with ``m <= t`` passes
    ``1 - mean(m)``. Masks within 1e-5 of that place may end on either side of it, so for just so many sites take
    :class:`~tlprune.Top`; here ``count`` has no part.

    Attributes:
        gate: what the scores are the ``log_alpha`` of.
        sparsity: the part to remove, in [0, 1]; by default ``1 - mean(m)``.

    Source: the released code of Bhaskar et al., "Finding Transformer Circuits with Edge Pruning" (NeurIPS 2024), which
    hardens the masks of each kind of reader of a layer apart; here they are hardened together.

    Example:
        >>> import torch
        >>> from tlprune.graph import Architecture, Graph
        >>> from tlprune.sites import Sites
        >>> scores = Scores(Sites((Graph(Architecture(1, 1, 1)),)), torch.tensor([9, 9, 9, 0.5, -9, -9, -9, -9]))
        >>> found = Bisected().select(scores, 8)
        >>> len(found), round(found.provenance["selection"]["threshold"], 2)
        (4, 0.65)
    """

    gate: Gate = field(default=HardConcrete())
    sparsity: float | None = None

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 <= self.sparsity <= 1:
            raise ValueError(
                f"A sparsity lies between 0 and 1 but is {self.sparsity}. Leave it out for that of the soft masks."
            )

    def select(self, scores: Scores, count: int) -> Circuit:
        """The sites above the threshold, whatever ``count`` says."""
        masks = self.gate.harden(scores.values.detach().cpu().float())
        threshold = bisected(masks, self.sparsity)
        return taken(self, scores, masks > threshold, threshold=threshold)


def bisected(masks: Float[Tensor, "site"], sparsity: float | None = None) -> float:
    """The last threshold that bisection of [0, 1] tries: near where ``mean(masks <= threshold)`` passes a sparsity.

    Args:
        masks: noise-free values in [0, 1].
        sparsity: by default ``1 - mean(masks)``.

    Example:
        >>> import torch
        >>> masks = torch.tensor([0.0, 0.0, 0.3, 0.7])
        >>> round(bisected(masks), 4), round(bisected(masks, 0.5), 4)
        (0.7, 0.3)
    """
    wanted = 1 - float(masks.double().mean()) if sparsity is None else sparsity
    low, high, threshold = 0.0, 1.0, 1.0
    while high - low > _WIDTH:
        threshold = (low + high) / 2
        if float((masks <= threshold).double().mean()) > wanted:
            high = threshold
        else:
            low = threshold
    return threshold
