"""Causal tests of neurons drawn: figures against the fraction perturbed, maps of tasks by tasks, scores by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.skills.accuracy import is_accuracy
from tlprune.studies.comparison_chart import COLOURS

if TYPE_CHECKING:
    from tlprune.skills.perturbation import PerturbationCurve, Perturbed

_CELL, _FRAME = 46, 170  # pixels of a row of a map, and around it
_GREY = {"color": "#555555", "dash": "dot"}


def perturbation_chart(found: PerturbationCurve, figure: str) -> Any:
    """A line and a band for the best neurons and for random ones, and chance where it is known.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    go, points = plotly(), found.of(figure)
    across = [100 * point.fraction for point in points]
    chart = go.Figure()
    parts = {"skill": COLOURS[0], "random": COLOURS[1]}
    for part, colour in parts.items():
        low, high = zip(*(_band(point, part) for point in points), strict=True)
        hidden = {"mode": "lines", "line": {"width": 0, "color": colour}, "hoverinfo": "skip", "showlegend": False}
        hidden["legendgroup"] = part
        chart.add_scatter(x=across, y=high, **hidden)
        chart.add_scatter(x=across, y=low, fill="tonexty", fillcolor=_pale(colour), **hidden)
    for part, colour in parts.items():  # above both bands
        values, name = [getattr(point, part).value for point in points], f"{part} neurons"
        chart.add_scatter(x=across, y=values, name=name, legendgroup=part, mode="lines+markers", line_color=colour)
    if found.chance is not None and is_accuracy(figure):
        line = {"mode": "lines", "line": _GREY, "name": "most frequent answer"}
        chart.add_scatter(x=[across[0], across[-1]], y=[found.chance] * 2, **line)
    title = f"{found.task} with neurons perturbed ({_words(found.ablation['name'])})"
    title += f"<br><sup>{found.examples:,} examples; {_bands(points[0])}</sup>"
    axes = {"xaxis_title": f"neurons perturbed in {_range(found.layers)}, %", "yaxis_title": _words(figure)}
    return chart.update_layout(template=TEMPLATE, title=title, hovermode="x", **axes)


def _band(point: Perturbed, part: str) -> tuple[float, float]:
    """From the worst to the best run; of a single run its interval over examples."""
    runs = _runs(point, part)
    if len(runs) > 1:
        return min(runs), max(runs)
    own = getattr(point, part)
    return own.low, own.high


def _bands(point: Perturbed) -> str:
    """What the bands are: those of runs on the same examples are narrower than what chance in the examples does."""
    counts = [len(_runs(point, part)) for part in ("skill", "random")]
    return "bands: " + ", ".join(f"worst to best of {n} runs" if n > 1 else "95% over examples" for n in counts)


def _runs(point: Perturbed, part: str) -> list[float]:
    if part == "skill":
        return list(point.skill_runs)
    return [value for trial in point.random_runs for value in trial]


def task_map(
    values: Mapping[str, Mapping[str, float | None]],
    words: Mapping[str, Mapping[str, str]],
    *,
    title: str,
    down: str,
    across: str,
    colours: Mapping[str, Any],
) -> Any:
    """A cell for each pair of names, with what stands in it.

    Args:
        values: by row, then by column; ``None`` leaves a cell empty.
        words: what stands in the cells.
        title: of the figure.
        down: what the rows are.
        across: what the columns are.
        colours: plotly's scale and its ends.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    rows, columns = list(values), list(next(iter(values.values())))
    chart = plotly().Heatmap(
        x=columns,
        y=rows,
        z=[[_shown(values[row][column]) for column in columns] for row in rows],
        text=[[words[row][column] for column in columns] for row in rows],
        texttemplate="%{text}",
        hovertemplate="%{y}, %{x}: %{z:.4f}<extra></extra>",
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
    )
    figure = plotly().Figure(chart)
    figure.update_yaxes(autorange="reversed", type="category", title=down)
    figure.update_xaxes(type="category", title=across)
    height = _FRAME + _CELL * (1 + len(rows))
    return figure.update_layout(title=title, template=TEMPLATE, coloraxis=dict(colours), height=height)


def layer_lines(lines: Mapping[str, Mapping[int, float]], *, title: str, of: str) -> Any:
    """A line along the layers for each name.

    Args:
        lines: by name, then by layer.
        title: of the figure.
        of: what the numbers are.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    figure = plotly().Figure()
    for place, (name, own) in enumerate(lines.items()):
        colour, dash = COLOURS[place % len(COLOURS)], "solid" if place < len(COLOURS) else "dash"
        heights = [_shown(value) for value in own.values()]
        line = {"color": colour, "dash": dash}
        figure.add_scatter(x=list(own), y=heights, name=name, mode="lines+markers", line=line)
    figure.update_xaxes(title="layer", dtick=1)
    return figure.update_layout(title=title, template=TEMPLATE, yaxis_title=of, hovermode="x", showlegend=True)


def layer_histograms(values: Mapping[int, Sequence[float]], marks: Mapping[str, float], *, title: str, of: str) -> Any:
    """A histogram of each layer below the other, on one axis, with named vertical lines through all.

    Args:
        values: numbers by layer.
        marks: where the lines are, by name.
        title: of the figure.
        of: what the numbers are.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    plotly()
    from plotly.subplots import make_subplots

    layers = list(values)
    figure = make_subplots(len(layers), 1, shared_xaxes=True, vertical_spacing=0.1 / len(layers))
    for row, layer in enumerate(layers, 1):
        bars = {"marker_color": COLOURS[0], "bingroup": 1, "name": f"layer {layer}", "showlegend": False}
        figure.add_histogram(x=list(values[layer]), row=row, col=1, **bars)
        figure.update_yaxes(title_text=f"layer {layer}", row=row, col=1)
    for place, (name, where) in enumerate(marks.items(), 1):
        colour = COLOURS[place % len(COLOURS)]
        figure.add_vline(x=where, line={"color": colour, "dash": "dash"})
        # A line across all panels has no entry in the legend of its own.
        figure.add_scatter(x=[None], y=[None], mode="lines", line={"color": colour, "dash": "dash"}, name=name)
    figure.update_xaxes(title_text=of, row=len(layers), col=1)
    height = _FRAME + 2 * _CELL * len(layers)
    return figure.update_layout(title=title, template=TEMPLATE, height=height, showlegend=bool(marks))


def _pale(colour: str) -> str:
    """A colour that others shine through."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.15)"


def _shown(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _range(layers: Sequence[int]) -> str:
    first, last = layers[0], layers[-1]
    if len(layers) == 1:
        return f"layer {first}"
    whole = len(layers) == last - first + 1
    return f"layers {first} to {last}" if whole else f"layers {', '.join(map(str, layers))}"


def _words(figure: str) -> str:
    return figure.replace("_", " ")
