"""Heat maps of where the weights of a subnetwork lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.drawing.head_map import head_map

if TYPE_CHECKING:
    from tlprune.knowledge.structure import Part

_HOVER = "%{customdata}: %{z:.4%}<extra></extra>"
_SCALE = {"colorscale": "Blues", "cmin": 0, "colorbar": {"title": "density", "tickformat": ".2%"}}
_MARKS = {1: "+", 0: "", -1: "-"}  # denser or sparser than chance


def matrix_map(parts: Sequence[Part]) -> Any:
    """Layers down, kinds of matrices across; a sign where the density is unlike chance."""
    named = {part.name: part for part in parts}
    places = {name: _place(name) for name in named}
    layers = sorted({layer for layer, _ in places.values()}, key=lambda layer: (not layer.isdigit(), layer.zfill(6)))
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    cells = {place: named[name] for name, place in places.items()}
    rows = [[cells.get((layer, kind)) for kind in kinds] for layer in layers]
    chart = plotly().Heatmap(
        x=kinds,
        y=layers,
        z=[[part.density if part else None for part in row] for row in rows],
        text=[[_MARKS[part.unlike_chance] if part else "" for part in row] for row in rows],
        customdata=[[part.name if part else "" for part in row] for row in rows],
        texttemplate="%{text}",
        hovertemplate=_HOVER,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
    )
    figure = plotly().Figure(chart)
    figure.update_yaxes(autorange="reversed", title="layer", type="category")
    return figure.update_layout(title="Density by layer and matrix", template=TEMPLATE, coloraxis=_SCALE)


def head_maps(parts: Sequence[Part]) -> Any:
    """Layers down, heads across; below it the keys and values that several heads share."""
    if not parts:
        raise ValueError(
            "A map of heads needs attention matrices but the subnetwork could have none of them. Plot the matrices."
        )
    plotly()
    from plotly.subplots import make_subplots

    shared = [part for part in parts if ".kv" in part.name]
    maps = {"Heads": [part for part in parts if ".kv" not in part.name], "Shared keys and values": shared}
    maps = {title: own for title, own in maps.items() if own}
    figure = make_subplots(len(maps), 1, subplot_titles=[*maps])
    for row, own in enumerate(maps.values(), 1):
        named = {part.name.replace(".kv", ".h"): part for part in own}
        values = {name: part.density for name, part in named.items()}
        texts = {name: _MARKS[part.unlike_chance] for name, part in named.items()}
        figure.add_trace(head_map(values, texts, coloraxis="coloraxis", hovertemplate=_HOVER), row, 1)
    figure.update_yaxes(autorange="reversed", title="layer")
    figure.update_xaxes(type="category")
    return figure.update_layout(title="Density by head", template=TEMPLATE, coloraxis=_SCALE)


def _place(name: str) -> tuple[str, str]:
    """Layer and kind of a matrix."""
    if name.startswith("blocks."):
        _, layer, kind = name.split(".", 2)
        return layer, kind
    return "-", name
