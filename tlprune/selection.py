"""Selection: which circuit of a given size scores give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from tlprune.circuit import Circuit
from tlprune.scores import Scores


@runtime_checkable
class Selection(Protocol):
    """From scores to a circuit of some size."""

    def select(self, scores: Scores, count: int) -> Circuit:
        """A circuit of ``count`` sites, or of as many as the selection's own rule leaves."""
        ...


@dataclass(frozen=True)
class Top:
    """The sites of the highest score; ties go to the one that comes first in the model.

    Attributes:
        by: ``"signed"``: harmful sites come last (MIB's CPR); ``"absolute"``: sites that matter either way come first
            (MIB's CMD).

    Example:
        >>> import torch
        >>> from tlprune.graph import Architecture, Graph
        >>> from tlprune.sites import Sites
        >>> sites = Sites((Graph(Architecture(1, 1, 1)),))
        >>> scores = Scores(sites, torch.tensor([0.1, -3.0, 0.2, 0.0, 0.4, 0.5, 0.3, 0.6]))
        >>> Top().select(scores, 1).edges, Top("absolute").select(scores, 1).edges
        (['m0->logits'], ['input->a0.h0<k>'])
    """

    by: Literal["signed", "absolute"] = "signed"

    def __post_init__(self) -> None:
        if self.by not in ("signed", "absolute"):
            raise ValueError(f"by must be 'signed' or 'absolute' but is {self.by!r}. Choose one of these.")

    def select(self, scores: Scores, count: int) -> Circuit:
        """The ``count`` sites that come first."""
        return (scores.absolute if self.by == "absolute" else scores).top(count)
