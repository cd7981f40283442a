"""A heat map of a number for each head and MLP: layers down, heads across, MLPs apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tlprune.drawing.charts import plotly

HEAD, MLP = re.compile(r"a(\d+)\.h(\d+)"), re.compile(r"m(\d+)")
_MLPS, _GAP = "MLP", " "


def head_map(values: Mapping[str, float], texts: Mapping[str, str], **options: Any) -> Any:
    """A ``Heatmap`` of plotly: rows are layers, columns heads, then a gap and the MLPs.

    Args:
        values: by name, such as ``a3.h7`` and ``m3``; other names have no place and are left out.
        texts: by name: what is written into its cell.
        options: more of ``Heatmap``'s own, such as ``zmin``.

    Raises:
        ValueError: no name is of a head or an MLP.
        ModuleNotFoundError: plotly is not installed.

    Example:
        >>> shown = head_map({"a0.h1": 3, "m0": 1}, {"a0.h1": "3", "m0": "1"})
        >>> shown.x, shown.z[0]
        (('0', '1', ' ', 'MLP'), [None, 3, None, 1])
    """
    places = {name: place for name in values if (place := _place(name))}
    if not places:
        raise ValueError(
            f"A heat map needs heads or MLPs but these are sites such as {next(iter(values), 'none')}. Print them."
        )
    columns = _columns(column for _, column in places.values())
    cells: list[list[str]] = [[""] * len(columns) for _ in range(1 + max(layer for layer, _ in places.values()))]
    for name, (layer, column) in places.items():
        cells[layer][columns.index(column)] = name
    return plotly().Heatmap(
        x=columns,
        y=[str(layer) for layer in range(len(cells))],
        z=[[values[name] if name else None for name in row] for row in cells],
        text=[[texts[name] if name else "" for name in row] for row in cells],
        customdata=cells,
        texttemplate="%{text}",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        **options,
    )


def _place(name: str) -> tuple[int, str] | None:
    """Layer and column."""
    if head := HEAD.fullmatch(name):
        return int(head[1]), head[2]
    return (int(mlp[1]), _MLPS) if (mlp := MLP.fullmatch(name)) else None


def _columns(named: Iterable[str]) -> list[str]:
    own = {*named}
    heads = [str(head) for head in range(1 + max((int(column) for column in own - {_MLPS}), default=-1))]
    return [*heads, *([_GAP] if heads and _MLPS in own else []), *([_MLPS] if _MLPS in own else [])]
