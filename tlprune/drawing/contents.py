"""The edges that a drawing shows, and what it says of each: whether it can matter, its weight, whose it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.spans import Spanned

Owner = Literal["first", "both", "second"]
OWNERS: tuple[Owner, ...] = ("first", "both", "second")


@dataclass(frozen=True)
class Contents:
    """Edges to draw.

    Attributes:
        edges: all that there are, perhaps by span.
        kept: those to draw.
        effective: those on a path from an embedding to the logits.
        weights: a number for each; ``None`` for none.
        owners: of two circuits that lie on each other, whose each edge is, as a place in ``OWNERS``; ``None`` for one
            circuit alone.
    """

    edges: Graph | Spanned
    kept: Bool[Tensor, "site"]
    effective: Bool[Tensor, "site"]
    weights: Float[Tensor, "site"] | None = None
    owners: Int[Tensor, "site"] | None = None

    @staticmethod
    def of(circuit: Circuit, weights: Float[Tensor, "site"] | None = None) -> Contents:
        """The edges of one circuit.

        Args:
            circuit: with edges, perhaps beside sites of other kinds.
            weights: a number for every edge of the graph, or at every span.
        """
        part = circuit.sites.part("edges")
        return Contents(_edges(circuit), circuit.kept[part], circuit.effective.kept[part], weights)

    @staticmethod
    def overlaid(first: Circuit, second: Circuit) -> Contents:
        """The edges of either of two circuits; each is effective if it is so in one that has it.

        Raises:
            ValueError: the edges of the two differ by convention, architecture or spans.
        """
        one, other = Contents.of(first), Contents.of(second)
        if one.edges != other.edges:
            raise ValueError(
                f"An overlay needs two circuits over the same edges but these are over {one.edges} and {other.edges}. "
                "Find both with the same convention and spans, or make them so with tp.convert and without_spans()."
            )
        owners = 2 * other.kept.int() - (one.kept & other.kept).int()
        return Contents(one.edges, one.kept | other.kept, one.effective | other.effective, None, owners)

    @property
    def graph(self) -> Graph:
        """Of which the edges are, whatever their spans."""
        graph = self.edges.group if isinstance(self.edges, Spanned) else self.edges
        assert isinstance(graph, Graph)
        return graph

    def __len__(self) -> int:
        return int(self.kept.sum())

    def owned(self, owner: Owner) -> int:
        """How many edges are the first circuit's alone, the second's alone, or in both."""
        return 0 if self.owners is None else int((self.kept & (self.owners == OWNERS.index(owner))).sum())

    def by_span(self) -> dict[str, Contents]:
        """The edges at each span."""
        assert isinstance(self.edges, Spanned)
        spans, table = self.edges.all_spans, self.edges.table
        return {span: self._parts(lambda values, n=n: table(values)[n]) for n, span in enumerate(spans)}

    def _parts(self, choose: Callable[[Tensor], Tensor]) -> Contents:
        fields = {name: getattr(self, name) for name in ("kept", "effective", "weights", "owners")}
        chosen = {name: None if value is None else choose(value) for name, value in fields.items()}
        return replace(self, edges=self.graph, **chosen)

    def without_spans(self) -> Contents:
        """Every edge that is drawn at some span, for where its nodes stand: without weights and owners."""
        assert isinstance(self.edges, Spanned)
        kept, effective = (self.edges.table(values).any(0) for values in (self.kept, self.effective))
        return Contents(self.graph, kept, effective)


def _edges(circuit: Circuit) -> Graph | Spanned:
    group = circuit.sites.group("edges")
    assert isinstance(group, (Graph, Spanned))
    return group


def checked_weights(weights: Float[Tensor, "..."], circuit: Circuit) -> Float[Tensor, "site"]:
    """Weights for a drawing of a circuit, on the CPU.

    Raises:
        ValueError: they do not fit its edges, or one of a kept edge is not finite.
    """
    edges = circuit.sites.part("edges")
    total = edges.stop - edges.start
    if weights.shape != (total,):
        raise ValueError(
            f"The weights of a drawing need shape ({total:,},), one for every edge of the graph, but "
            f"have {tuple(weights.shape)}. Give weights over the graph of the circuit."
        )
    weights = weights.detach().to("cpu", torch.float32)
    if not weights[circuit.kept[edges]].isfinite().all():
        raise ValueError(
            "The weights of the kept edges must be finite but some are infinite or NaN. Replace them, for instance "
            "with weights.nan_to_num()."
        )
    return weights
