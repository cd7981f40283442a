"""Figures of knowledge drawn: ratios of perplexities as bars, and along sizes or prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.learning.bootstrap import Interval

SAME = {"y": 1.0, "line_dash": "dot", "line_color": "grey"}  # the full model's perplexity


def ratio_bars(ratios: Mapping[str, Mapping[str, Interval]], *, title: str) -> Any:
    """A bar for each run and case, on a logarithmic axis.

    Args:
        ratios: by run and case.
        title: of the figure.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    graphs = plotly()
    figure = graphs.Figure()
    for subject, cases in ratios.items():
        figure.add_trace(graphs.Bar(name=subject, x=list(cases), **_heights(list(cases.values()))))
    figure.add_hline(**SAME)
    return figure.update_layout(template=TEMPLATE, title=title, yaxis={"type": "log", "title": "ratio"})


def ratio_lines(
    ratios: Mapping[str, Mapping[float, Interval]], *, title: str, along: str, texts: Sequence[str] = ()
) -> Any:
    """A line for each case along some number, both axes logarithmic.

    Args:
        ratios: by case and number.
        title: of the figure.
        along: what the number is.
        texts: what is shown of each number under the mouse.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    graphs = plotly()
    figure = graphs.Figure()
    for case, values in ratios.items():
        line = graphs.Scatter(name=case, x=list(values), mode="lines+markers", **_heights(list(values.values())))
        figure.add_trace(line.update(text=list(texts) or None))
    figure.add_hline(**SAME)
    axes = {"xaxis": {"type": "log", "title": along}, "yaxis": {"type": "log", "title": "perplexity ratio"}}
    return figure.update_layout(template=TEMPLATE, title=title, **axes)


def _heights(values: Sequence[Interval]) -> dict[str, Any]:
    """Values with their intervals; an end beyond the value by rounding is none."""
    above = [max(0.0, one.high - one.value) for one in values]
    below = [max(0.0, one.value - one.low) for one in values]
    error = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return {"y": [one.value for one in values], "error_y": error}
