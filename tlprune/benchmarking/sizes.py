"""Sizes at which circuits are compared: counts, parts of all edges, or the size of the true circuit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlprune.circuit import Circuit

# The sizes of the primary table: on a linear scale four fifths of any area lie above a fifth of the edges.
SIZES = ("0.1%", "0.5%", "1%", "2%", "5%", "10%")
TRUE = "true"


@dataclass(frozen=True)
class Size:
    """A number of effective edges, and how it was asked for.

    Attributes:
        label: ``"1%"``, ``"85"`` or ``"true"``.
        count: of edges.
    """

    label: str
    count: int


def sizes_of(labels: Sequence[str | int], total: int, truth: Circuit | None = None) -> list[Size]:
    """Sizes in a graph of ``total`` edges, smallest first, each count once, none below 1.

    Args:
        labels: ``"1%"`` of all edges, ``85`` or ``"85"`` edges, ``"true"``: as many as the true circuit.
        total: edges in the graph.
        truth: the true circuit, where one is known; without one ``"true"`` is left out.

    Raises:
        ValueError: a label is none of these, or lies outside the graph.

    Example:
        >>> sizes_of(["10%", 85, "true"], 1701)
        [Size(label='85', count=85), Size(label='10%', count=170)]
    """
    if not labels:
        raise ValueError(f"Circuits are compared at sizes but none is given. Leave sizes out for {', '.join(SIZES)}.")
    found: dict[int, Size] = {}
    for label in map(str, labels):
        if label == TRUE and truth is None:
            continue
        count = truth.n_effective if label == TRUE and truth is not None else _count(label, total)
        if not 1 <= count <= total:
            raise ValueError(f"A size lies between 1 and {total:,} edges but {label!r} is {count:,}. Choose another.")
        found.setdefault(count, Size(label, count))
    return [found[count] for count in sorted(found)]


def _count(label: str, total: int) -> int:
    try:
        return max(1, round(float(label[:-1]) / 100 * total)) if label.endswith("%") else int(label)
    except ValueError:
        raise ValueError(
            f"A size is a number of edges, a part such as '1%', or 'true', but {label!r} was given. Write it as one "
            "of these."
        ) from None
