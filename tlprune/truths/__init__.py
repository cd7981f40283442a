"""Ground truths: the edges that a method's circuit is compared with, each with its source and its convention."""

from __future__ import annotations

from typing import Any

from tlprune.choices import choice
from tlprune.circuit import Circuit
from tlprune.truths.docstring import DOCSTRING
from tlprune.truths.greater_than import GREATER_THAN
from tlprune.truths.ioi import IOI
from tlprune.truths.planted import PLANTED
from tlprune.truths.stating import Truth, with_internal
from tlprune.truths.taught import TAUGHT
from tlprune.truths.tracr import TRACR

TRUTHS: dict[str, Truth] = {
    "ioi": IOI,
    "greater-than": GREATER_THAN,
    "docstring": DOCSTRING,
    "planted": PLANTED,
    "taught": TAUGHT,
    **TRACR,
}

__all__ = ["TRUTHS", "Truth", "truth", "with_internal"]


def truth(name: str, model: Any) -> Circuit:
    """The true circuit of a behaviour: the edges that its source found, or that hold by construction or training.

    Truths go by the names of their tasks. What was published is stated with one node ``input`` for both embeddings and
    with q, k and v apart; the edges of another convention are those that carry the same:

    - ``embeddings="separate"``: an edge from ``input`` becomes two, from ``embed`` and from ``pos_embed``;
    - ``embeddings="kept"``: edges from ``input`` are gone, because there embeddings reach every reader anyway;
    - ``qkv="joined"``: an edge is true if it is for q, k or v.

    Edges that join q, k and v to their own head are never counted; :func:`~tlprune.truths.with_internal` gives the
    figure of papers that do.

    Args:
        name: one of ``tlprune.truths.TRUTHS``, which tells the source, the model and the convention of each.
        model: the model that the truth is of, or, for published ones, a :class:`~tlprune.Graph` of its shape, which
            also chooses the convention. Only the shape is checked: another model of 12 layers of 12 heads is not told
            from GPT-2 small.

    Returns:
        A circuit whose provenance holds the source, the convention and the counts.

    Raises:
        ValueError: there is no such truth, or the model is not one that it is of.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> gpt2 = Graph(Architecture(12, 12, 12, position_embedding=True))
        >>> truth("ioi", gpt2)
        Circuit(963 of 32,491 edges, 963 effective; embeddings merged, kv shared)
        >>> truth("ioi", gpt2).provenance["counts"]
        {'edges': 963, 'with_internal': 1041}
    """
    return choice("truth", name, TRUTHS).circuit(model)
