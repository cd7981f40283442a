"""Heat maps of heads and MLPs below each other, on one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.drawing.head_map import head_map

_HEIGHT = 26  # pixels of a layer
_FRAME = 110  # and of title and axis of a map
_HOVER = "%{customdata}: %{z:.4f} %{text}<extra></extra>"


def heat_maps(values: Mapping[str, Mapping[str, float]], words: Mapping[str, Mapping[str, str]], *, title: str) -> Any:
    """Maps on one scale that is white at 0, as a figure of plotly.

    Args:
        values: by name of the map, then by unit.
        words: what stands in the cells, in the same way.
        title: of the figure.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    plotly()
    from plotly.subplots import make_subplots

    figure, layers = make_subplots(len(values), 1, subplot_titles=[*values]), 0
    for row, (name, own) in enumerate(values.items(), 1):
        chart = head_map(own, words[name], coloraxis="coloraxis", hovertemplate=_HOVER)
        figure.add_trace(chart, row, 1)
        layers += len(chart.y)
    numbers = [abs(value) for own in values.values() for value in own.values() if math.isfinite(value)]
    most = max(numbers, default=0) or 1
    figure.update_yaxes(autorange="reversed", title="layer")
    figure.update_xaxes(type="category")
    height = _FRAME * (len(values) + 1) + _HEIGHT * layers
    scale = {"colorscale": "RdBu", "cmin": -most, "cmax": most}
    return figure.update_layout(title=title, coloraxis=scale, template=TEMPLATE, height=height)
