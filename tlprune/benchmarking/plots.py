"""Plots of a comparison: KL and faithfulness against effective edges, and KL against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlprune.benchmarking.comparing import Cell, Line, compared
from tlprune.benchmarking.rows import Store
from tlprune.drawing.charts import TEMPLATE, plotly, write_page

PLOTS = "plots.html"
SETTING = ("model", "task", "ablation", "discovery_ablation")


def write_plots(store: Store) -> Path:
    """Write ``plots.html`` into the folder of a comparison: one page that needs nothing but a browser.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    library, figures = plotly(), []
    for setting in dict.fromkeys(tuple(row[name] for name in SETTING) for row in store.rows):
        rows = [row for row in store.rows if tuple(row[name] for name in SETTING) == setting]
        table = compared(store, rows)
        if table:
            figures.append(library.Figure(_lines(library, table), _layout(setting, rows)))
    path = store.folder / PLOTS
    write_page(path, figures, title="Methods compared")
    return path


def _lines(library: Any, table: Mapping[int, Mapping[Line, Cell]]) -> list[Any]:
    """One line a method: its KL over sizes, with 95% intervals."""
    names = dict.fromkeys(line for cells in table.values() for line in cells)
    return [
        _line(library, name, {size: cells[name] for size, cells in table.items() if name in cells}) for name in names
    ]


def _line(library: Any, name: Line, cells: Mapping[int, Cell]) -> Any:
    method, how = name
    kl = [cell.kl for cell in cells.values()]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [one.high - one.value for one in kl],
        "arrayminus": [one.value - one.low for one in kl],
    }
    return library.Scatter(
        x=[sum(cell.effective) / len(cell.effective) for cell in cells.values()],
        y=[one.value for one in kl],
        error_y=bars,
        name=method if how == "ranked" else f"{method} ({how})",
        mode="lines+markers",
    )


def _layout(setting: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    model, task, ablation, _ = setting
    full = next(row for row in rows if row["method"] == "full model")
    empty = next(row for row in rows if row["method"] == "empty circuit")
    return {
        "title": f"{task} in {model}, {ablation} ablation: {full['total']:,} edges ({full['convention']})",
        "xaxis": {"title": "effective edges", "type": "log"},
        "yaxis": {"title": f"KL from the full model (nats); empty circuit {empty['kl']:.3g}"},
        "template": TEMPLATE,
    }
