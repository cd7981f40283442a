"""Selections by rank alone: the best so many, a share of them helpful, or all above a threshold."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.scores import Scores, check_count, first

By = Literal["signed", "absolute"]


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
        >>> Top().select(scores, 1).provenance["selection"]
        {'name': 'Top', 'by': 'signed', 'count': 1}
    """

    by: By = "signed"

    def __post_init__(self) -> None:
        check_by(self.by)

    def select(self, scores: Scores, count: int) -> Circuit:
        """The ``count`` sites that come first."""
        check_count(count, scores.sites)
        return taken(self, scores, first(ranking(scores, self.by), count), count=count)


@dataclass(frozen=True)
class Threshold:
    """All sites whose score is higher than a number, however many they are; ``count`` has no part.

    Attributes:
        above: a site of just this score is left out.
        by: as of :class:`Top`: the score, or its size.

    Example:
        >>> import torch
        >>> from tlprune.graph import Architecture, Graph
        >>> from tlprune.sites import Sites
        >>> sites = Sites((Graph(Architecture(1, 1, 1)),))
        >>> scores = Scores(sites, torch.tensor([0.1, -3.0, 0.2, 0.0, 0.4, 0.5, 0.3, 0.6]))
        >>> Threshold(0.4).select(scores, 8).edges
        ['input->logits', 'm0->logits']
    """

    above: float
    by: By = "signed"

    def __post_init__(self) -> None:
        check_by(self.by)

    def select(self, scores: Scores, count: int) -> Circuit:
        """All sites above the threshold, whatever ``count`` says."""
        return taken(self, scores, ranking(scores, self.by) > self.above)


@dataclass(frozen=True)
class Ratio:
    """A part of the circuit by score, the rest by size: the most helpful sites first, then what matters either way.

    ``round(helpful * count)`` sites are those of the highest score, the others those of the largest ``|score|`` among
    the rest. ``Ratio(1)`` is ``Top()``; ``Ratio(0)`` is ``Top("absolute")``. Circuits of growing size are not nested.

    Source: the idea of a positive-negative ratio is that of Nikankin et al., "BlackboxNLP-2025 MIB Shared Task:
    Improving Circuit Faithfulness via Better Edge Selection" (2025).

    Attributes:
        helpful: share of the sites that are taken by score, in [0, 1].

    Example:
        >>> import torch
        >>> from tlprune.graph import Architecture, Graph
        >>> from tlprune.sites import Sites
        >>> sites = Sites((Graph(Architecture(1, 1, 1)),))
        >>> scores = Scores(sites, torch.tensor([0.1, -3.0, 0.2, 0.0, 0.4, 0.5, 0.3, 0.6]))
        >>> Ratio(0.5).select(scores, 2).edges
        ['input->a0.h0<k>', 'm0->logits']
    """

    helpful: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.helpful <= 1:
            raise ValueError(f"A share lies between 0 and 1 but helpful is {self.helpful}. For half of them give 0.5.")

    def select(self, scores: Scores, count: int) -> Circuit:
        """``count`` sites, of which the given share comes by score and the rest by size."""
        check_count(count, scores.sites)
        kept = first(ranking(scores, "signed"), round(self.helpful * count))
        sizes = ranking(scores, "absolute").masked_fill(kept, -torch.inf)
        return taken(self, scores, kept | first(sizes, count - int(kept.sum())), count=count)


def check_by(by: str) -> None:
    """Raise a ValueError unless sites can be ranked like this."""
    if by not in ("signed", "absolute"):
        raise ValueError(f"by must be 'signed' or 'absolute' but is {by!r}. Choose one of these.")


def ranking(scores: Scores, by: By) -> Float[Tensor, "site"]:
    """What sites are ranked by, on the CPU: their score, or its size."""
    values = scores.values.detach().cpu()
    return values.abs() if by == "absolute" else values


def graph_of(scores: Scores, user: str, *, by_span: bool = False) -> Graph:
    """The graph of scores that are of edges alone.

    Args:
        scores: of edges.
        user: who needs them.
        by_span: whether it follows paths from span to span too.

    Raises:
        ValueError: there are other sites, or spans.
    """
    if scores.sites.kinds != ("edges",) or (scores.sites.spans and not by_span):
        spans = f" that differ by the spans {', '.join(scores.sites.spans)}" if scores.sites.spans else ""
        kinds = " + ".join(scores.sites.kinds)
        raise ValueError(
            f"{user} follows paths, so it needs scores of edges alone, one for each, but these are "
            f"of {kinds}{spans}. Take the edges, scores.of('edges'), and the sums of their spans, "
            "scores.without_spans(), or use tp.Top()."
        )
    return scores.graph


def taken(selection: object, scores: Scores, kept: Bool[Tensor, "site"], **facts: Any) -> Circuit:
    """The circuit, whose provenance is that of the scores and says how it was taken of them."""
    return Circuit(scores.sites, kept, {**scores.provenance, "selection": {**told(selection), **facts}})


def told(selection: Any) -> dict[str, Any]:
    """A selection as plain data: its name and its fields."""
    own = {one.name: getattr(selection, one.name) for one in fields(selection)}
    own = {name: told(value) if is_dataclass(value) else value for name, value in own.items()}
    return {"name": type(selection).__name__, **own}
