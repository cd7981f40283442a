"""The chart of methods side by side: accuracy against sparsity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tlprune.drawing.charts import TEMPLATE, plotly

if TYPE_CHECKING:
    from tlprune.studies.comparison import Placed, StudyComparison

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart without red and green
_HEIGHT, _GAP = 380, 0.12


def comparison_chart(found: StudyComparison) -> Any:
    """A panel for each task: a line and a band for each method, and the full model.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    go = plotly()
    from plotly.subplots import make_subplots

    tasks, count = list(found.full), len(found.full)
    gap = _GAP / count if count > 1 else None
    figure = make_subplots(rows=count, cols=1, subplot_titles=tasks, shared_xaxes=True, vertical_spacing=gap)
    for panel, task in enumerate(tasks, start=1):
        for place, method in enumerate(found.methods):
            rows = [row for row in found.rows if (row.task, row.method) == (task, method)]
            for trace in _traces(go, rows, COLOURS[place % len(COLOURS)], named=panel == 1):
                figure.add_trace(trace, row=panel, col=1)
        figure.add_trace(_full(go, found, task, named=panel == 1), row=panel, col=1)
        figure.update_yaxes(title_text="accuracy (%)", row=panel, col=1)
    figure.update_xaxes(title_text="heads and MLPs removed (%)", row=count, col=1)
    figure.update_layout(template=TEMPLATE, height=_HEIGHT * count, hovermode="x")
    return figure


def _traces(go: Any, rows: list[Placed], colour: str, *, named: bool) -> list[Any]:
    """The band from worst to best seed, and the line of means in it."""
    name, across = rows[0].method, [100 * row.sparsity for row in rows]
    high, low = ([100 * getattr(row.accuracy, end) for row in rows] for end in ("high", "low"))
    band = go.Scatter(
        x=[*across, *reversed(across)], y=[*high, *reversed(low)], fill="toself", fillcolor=colour, opacity=0.2,
        line={"width": 0}, hoverinfo="skip", legendgroup=name, showlegend=False,
    )  # fmt: skip
    means = [100 * row.accuracy.mean for row in rows]
    line = go.Scatter(
        x=across, y=means, name=name, mode="lines+markers", line={"color": colour}, legendgroup=name, showlegend=named
    )
    return [band, line]


def _full(go: Any, found: StudyComparison, task: str, *, named: bool) -> Any:
    across, height = [100 * row.sparsity for row in found.rows], 100 * found.full[task]
    line = {"color": "#555555", "dash": "dot"}
    return go.Scatter(
        x=[min(across), max(across)], y=[height, height], name="full model", mode="lines", line=line,
        legendgroup="full model", showlegend=named,
    )  # fmt: skip
