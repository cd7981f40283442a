"""Circuits of given effective sizes from what a method found."""

from __future__ import annotations

from collections.abc import Sequence

from tlprune.benchmarking.sizes import Size
from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.inducing import induced
from tlprune.scores import Scores
from tlprune.selection import Pruned, Selection


def circuits_at(
    scores: Scores, sizes: Sequence[Size], selection: Selection, graph: Graph
) -> list[tuple[Size, Circuit]]:
    """For each size, the circuit of just so many effective edges that the selection takes.

    Of scores of nodes it is the largest circuit of all edges between the first nodes that has no more effective edges:
    nodes come whole, so most sizes are not met. Sizes below the smallest such circuit are left out: without any of the
    nodes that were scored, the edges between the others are there still.

    Args:
        scores: of edges, or of nodes, heads, MLPs or layers.
        sizes: numbers of effective edges.
        selection: the method's.
        graph: of the edges between nodes.

    Raises:
        ValueError: every size is below the smallest circuit.

    Example:
        >>> import tlprune as tp
        >>> circuit = tp.planted("copy").circuit
        >>> scores = Scores(circuit.sites, circuit.kept.float())
        >>> [len(one) for _, one in circuits_at(scores, [Size("2", 2), Size("9", 9)], tp.Top(), circuit.graph)]
        [2, 9]
    """
    if scores.sites.kinds == ("edges",):
        pruned = Pruned(selection, size="effective")
        return [(size, pruned.select(scores, size.count)) for size in sizes]
    circuits = [between_nodes(selection.select(scores, count), graph) for count in range(len(scores.sites) + 1)]
    least = min(map(len, circuits))
    if least > max(size.count for size in sizes):
        raise ValueError(
            f"Circuits of {' + '.join(scores.sites.kinds)} have at least {least:,} effective edges in this model, "
            f"those between other nodes, but no size is as large. Ask for a size of {least:,} or more."
        )
    return [(size, _largest(circuits, size.count)) for size in sizes if size.count >= least]


def between_nodes(circuit: Circuit, graph: Graph) -> Circuit:
    """A circuit of edges: as it is, or all effective edges between the nodes of one of nodes."""
    return circuit if "edges" in circuit.sites.kinds else induced(circuit, graph).effective


def _largest(circuits: Sequence[Circuit], count: int) -> Circuit:
    return max((one for one in circuits if len(one) <= count), key=len)
