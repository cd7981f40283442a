"""What circuits keep, as tables of colours: each head and MLP over circuits, and each layer of one circuit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tlprune.circuit import Circuit
from tlprune.drawing.cells import Cell, cell_chart
from tlprune.drawing.picture import Drawing
from tlprune.drawing.placed import Place, column_of, layer_of, matrix_place, node_place, site_place
from tlprune.drawing.saving import charted
from tlprune.graph import Graph
from tlprune.sites import Weights
from tlprune.spans import Spanned


def draw_keep_counts(
    circuits: Sequence[Circuit], path: str | Path | None = None, *, title: str | None = None
) -> Drawing:
    """How many of several circuits keep each head and MLP: layers up, heads across.

    Of a circuit of edges these are the writers that an effective edge leaves; of heads, MLPs and writers themselves,
    those that are effective.

    Args:
        circuits: of one model, such as those of several seeds.
        path: where to save the chart as well, ending in ``.html``, ``.svg`` or ``.png``.
        title: above it.

    Raises:
        ValueError: there are no circuits, they are of different sites, or of neither edges nor heads nor MLPs.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(n_layers=1, n_heads=2, n_kv_heads=2))
        >>> seeds = [Circuit.from_edges(graph, edges) for edges in (["input->logits"], ["input->m0", "m0->logits"])]
        >>> draw_keep_counts(seeds, title="Two seeds").svg.count("m0: in 1 of 2")
        1
    """
    places = _places(circuits)
    counts = Counter(name for circuit in circuits for name in {*circuit.effective.nodes})
    cells = {}
    for name, place in places.items():
        note = f"{name}: in {counts[name]} of {len(circuits)}"
        cells[place] = Cell(counts[name] / len(circuits), str(counts[name]), note)
    caption = f"in how many of {len(circuits)} circuits; {circuits[0].sites}"
    return charted(_table(cells, title, caption), path, title=title or "Kept heads and MLPs")


def _places(circuits: Sequence[Circuit]) -> dict[str, Place]:
    if len({str(circuit.sites) for circuit in circuits}) != 1:
        raise ValueError(
            f"A count of kept heads needs circuits of the same sites but got {len(circuits)}, of "
            f"{', '.join(sorted({str(circuit.sites) for circuit in circuits})) or 'nothing'}. Find all with one model "
            "and convention."
        )
    places = {name: place for name in _nodes_of(circuits[0]) if (place := node_place(name))}
    if not places:
        raise ValueError(
            f"A count of kept heads needs circuits of edges, heads or MLPs but these are of {circuits[0].sites}. "
            "See tp.draw_density for others."
        )
    return places


def _nodes_of(circuit: Circuit) -> Iterator[str]:
    for kind in circuit.sites.kinds:
        group = circuit.sites.bare(kind)
        if isinstance(group, Graph):
            yield from group.writers
        elif kind in ("nodes", "heads", "mlps"):
            yield from (group.name(index) for index in range(len(group)))


def draw_density(circuit: Circuit, path: str | Path | None = None, *, title: str | None = None) -> Drawing:
    """How much of each layer a circuit keeps: edges by what they enter, heads, MLPs, neurons, weights by matrix.

    A cell is the share of its sites that are kept, ``kept / all``; its colour grows with the share's root, so that a
    few percent are seen. By span, sites at all spans count together.

    Args:
        circuit: of any sites.
        path: where to save the chart as well, ending in ``.html``, ``.svg`` or ``.png``.
        title: above it.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(n_layers=1, n_heads=2, n_kv_heads=2))
        >>> draw_density(Circuit.from_edges(graph, ["input->m0"])).svg.count("layer 0, mlp: 1 of 3 kept")
        1
    """
    kept, totals = Counter(), Counter()
    for place, count, total in _counted(circuit):
        kept[place] += count
        totals[place] += total
    cells = {}
    for (row, column), total in totals.items():
        count = kept[row, column]
        text = f"{100 * count / total:.3g}%"
        cells[row, column] = Cell((count / total) ** 0.5, text, f"{row}, {column}: {count:,} of {total:,} kept")
    caption = f"kept: {len(circuit):,} of {circuit.sites}"
    return charted(_table(cells, title, caption), path, title=title or "Density by layer")


def _counted(circuit: Circuit) -> Iterator[tuple[Place, int, int]]:
    for kind, part in circuit.sites.parts.items():
        group, values = circuit.sites.group(kind), circuit.kept[part]
        if isinstance(group, Weights):
            for name, own in group.split(values).items():
                yield matrix_place(name), int(own.sum()), own.numel()
            continue
        bare = group.group if isinstance(group, Spanned) else group
        rows = values.view(-1, len(bare))
        for index, count in enumerate(rows.sum(0).tolist()):
            yield site_place(bare.name(index), kind), count, len(rows)


def _table(cells: dict[Place, Cell], title: str | None, caption: str) -> str:
    rows = sorted({row for row, _ in cells}, key=layer_of, reverse=True)
    return cell_chart(cells, rows, _columns({column for _, column in cells}), title=title, caption=caption)


def _columns(named: Iterable[str]) -> list[str]:
    own = sorted(named, key=column_of)
    heads = [name for name in own if name.isdigit()]
    rest = [name for name in own if not name.isdigit()]
    return [*heads, *([""] if heads and rest else []), *rest]
