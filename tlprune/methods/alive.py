"""Circuits of edges that carry nothing from the embeddings to the logits, refused by the methods that find them."""

from __future__ import annotations

from typing import Any

from tlprune.circuit import Circuit
from tlprune.connecting import connecting_size
from tlprune.scores import Scores
from tlprune.selection.ranked import ranking


class DeadCircuitError(ValueError):
    """A circuit of edges none of which lies on a path from the embeddings to the logits.

    Attributes:
        circuit: what was found.
        scores: what it was taken of, from which another size can be taken.
    """

    def __init__(self, text: str, circuit: Circuit, scores: Scores) -> None:
        super().__init__(text)
        self.circuit, self.scores = circuit, scores


def alive(found: Circuit, scores: Scores, *, count: int | None, selection: Any = None) -> Circuit:
    """The circuit, unless it is of edges and none of them lies on a path.

    A circuit of no edges is let through where just that was asked for.

    Args:
        found: what a method found.
        scores: what it was taken of.
        count: how many edges were asked for; ``None`` where the size was not.
        selection: which selection took it; by default the edges of the highest score were taken.

    Raises:
        DeadCircuitError: naming the smallest number of edges of the highest score that has a path. It carries the
            circuit and the scores, so that no training is lost.
    """
    if found.sites.kinds != ("edges",) or count == 0 or found.n_effective:
        return found
    values = ranking(scores.of("edges"), getattr(selection, "by", "signed"))
    fewest = connecting_size(scores.sites.edges, values)
    raise DeadCircuitError(
        f"A circuit needs a path from the embeddings to the logits but none of its {len(found):,} edges lies on one. "
        f"The {fewest:,} edges of the highest score are the fewest that have one: ask "
        "for as many, or take any number of score(...) by tp.TopConnected(), which keeps the best path.",
        found,
        scores,
    )
