"""Heat maps of heads by layer, with MLPs in a column of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tlprune.drawing.charts import TEMPLATE, plotly

MLP = "MLP"
_HEIGHT = 26  # pixels of a layer
_FRAME = 110  # and of title and axis of a map


def cell_of(unit: str) -> tuple[int, str]:
    """The layer and the column of a head or an MLP.

    Example:
        >>> cell_of("a3.h11"), cell_of("m4")
        ((3, 'h11'), (4, 'MLP'))
    """
    layer, _, head = unit[1:].partition(".")
    return int(layer), head or MLP


def heat_maps(values: Mapping[str, Mapping[str, float]], words: Mapping[str, Mapping[str, str]], *, title: str) -> Any:
    """Maps below each other on one scale that is white at 0, as a figure of plotly.

    Args:
        values: by name of the map, then by unit.
        words: what stands in the cells, in the same way.
        title: of the figure.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    library = plotly()
    from plotly.subplots import make_subplots

    units = [unit for own in values.values() for unit in own]
    layers = max(cell_of(unit)[0] for unit in units) + 1
    columns = _columns(units)
    figure = make_subplots(len(values), 1, subplot_titles=[*values], shared_xaxes=False)
    for row, (name, own) in enumerate(values.items(), 1):
        figure.add_trace(_map(library, own, words[name], layers, columns), row, 1)
    most = max((abs(value) for own in values.values() for value in own.values() if math.isfinite(value)), default=0)
    scale = {"colorscale": "RdBu", "cmin": -(most or 1), "cmax": most or 1}
    figure.update_yaxes(autorange="reversed", dtick=1, title="layer")
    height = len(values) * (_FRAME + _HEIGHT * layers) + _FRAME
    return figure.update_layout(title=title, coloraxis=scale, template=TEMPLATE, height=height)


def _columns(units: list[str]) -> list[str]:
    found = {cell_of(unit)[1] for unit in units}
    heads = sorted(int(column[1:]) for column in found - {MLP})
    return [*(f"h{head}" for head in heads), *([MLP] if MLP in found else [])]


def _map(library: Any, values: Mapping[str, float], words: Mapping[str, str], layers: int, columns: list[str]) -> Any:
    table: list[list[float | None]] = [[None] * len(columns) for _ in range(layers)]
    text = [[""] * len(columns) for _ in range(layers)]
    for unit, value in values.items():
        layer, column = cell_of(unit)
        place = columns.index(column)
        table[layer][place], text[layer][place] = value, words[unit]
    hover = "layer %{y}, %{x}: %{z:.4f} %{text}<extra></extra>"
    return library.Heatmap(
        z=table, x=columns, text=text, texttemplate="%{text}", hovertemplate=hover, coloraxis="coloraxis"
    )
