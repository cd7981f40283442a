"""Accuracy by domain in plots: against sparsity, violins over seeds, bars of single seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tlprune.drawing.charts import TEMPLATE, plotly

if TYPE_CHECKING:
    from tlprune.studies.domains import Domain, Domains

AXIS = "accuracy, %"
COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd")


def lines_by_sparsity(found: Domains, shown: list[Domain]) -> Any:
    """Mean over seeds against sparsity, the full model at 0, with all seeds as a band."""
    figure = plotly().Figure()
    removed = [0.0, *(100 * one for one in found.sparsities)]
    for place, one in enumerate(shown):
        colour, spreads = COLOURS[place % len(COLOURS)], [one.spreads[size] for size in found.sparsities]
        full = one.full.value
        low, high = ([full, *(getattr(spread, end) for spread in spreads)] for end in ("low", "high"))
        mean = [full, *(spread.mean for spread in spreads)]
        band = {"legendgroup": one.name, "hoverinfo": "skip", "showlegend": False, "mode": "lines"}
        edge = {"width": 0, "color": colour}
        figure.add_scatter(x=removed, y=_points(high), line=edge, **band)
        figure.add_scatter(x=removed, y=_points(low), line=edge, fill="tonexty", opacity=0.2, **band)
        line = {"color": colour, "dash": "solid" if one.task == found.within else "dash"}
        figure.add_scatter(
            x=removed, y=_points(mean), line=line, name=one.name, legendgroup=one.name, mode="lines+markers"
        )
    figure.update_layout(
        template=TEMPLATE,
        title="Accuracy against sparsity: mean and range over seeds",
        xaxis_title="removed, %",
        yaxis_title=AXIS,
    )
    return figure


def violins_of_seeds(found: Domains, shown: list[Domain]) -> Any:
    """A violin over the seeds of each domain and sparsity, and the full model as a line in it."""
    figure = plotly().Figure()
    for place, size in enumerate(found.sparsities):
        x = [one.name for one in shown for _ in one.at(size)]
        y = _points([interval.value for one in shown for interval in one.at(size).values()])
        text = [str(run) for one in shown for run in one.at(size)]
        name, colour = f"{100 * size:g}% removed", COLOURS[place % len(COLOURS)]
        figure.add_violin(
            x=x, y=y, text=text, name=name, legendgroup=name, line_color=colour, points="all", spanmode="hard"
        )
    full = _points([one.full.value for one in shown])
    marker = {"symbol": "line-ew-open", "size": 30, "color": "black"}
    figure.add_scatter(x=[one.name for one in shown], y=full, mode="markers", marker=marker, name="full model")
    figure.update_layout(template=TEMPLATE, title="Spread over seeds by domain", yaxis_title=AXIS, violinmode="group")
    return figure


def bars_of_seeds(shown: list[Domain], sparsity: float) -> Any:
    """A bar for each seed, with its interval over examples, beside that of the full model."""
    figure, names = plotly().Figure(), [one.name for one in shown]
    full = [one.full for one in shown]
    figure.add_bar(x=names, y=_ends(full), error_y=_errors(full), name="full model", marker_color="black")
    for run in shown[0].at(sparsity):
        own = [one.subnetworks[run] for one in shown]
        label = "no seed" if run.seed is None else f"seed {run.seed}"
        figure.add_bar(x=names, y=_ends(own), error_y=_errors(own), name=label)
    figure.update_layout(
        template=TEMPLATE, title=f"Single seeds, {100 * sparsity:g}% removed", yaxis_title=AXIS, barmode="group"
    )
    return figure


def _ends(intervals: list[Any]) -> list[float]:
    return _points([one.value for one in intervals])


def _errors(intervals: list[Any]) -> dict[str, Any]:
    above, below = ([one.high - one.value for one in intervals], [one.value - one.low for one in intervals])
    return {"type": "data", "symmetric": False, "array": _points(above), "arrayminus": _points(below)}


def _points(shares: list[float]) -> list[float]:
    return [100 * share for share in shares]
