"""A grid of pruned models as tables and plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.evaluation.table import aligned, number
from tlprune.pruning.mask_overlap import MaskOverlap
from tlprune.tasks.labelled.data import described

DONE, FAILED, WHOLE = "done", "failed", "whole"
Row = Mapping[str, Any]
_PAIRS = ("mean", "least", "most", "chance", "pooled")
_FIGURES = ("accuracy", "matthews", "f1", "pearson", "spearman", "loss")


@dataclass(frozen=True)
class GridOverlap:
    """How alike the masks of strategies are at one size.

    Attributes:
        task: name of the data.
        seed: of the scores.
        target: how many weights are kept, such as ``density-0.361``.
        masks: the strategies' masks, two by two.
    """

    task: str
    seed: int
    target: str
    masks: MaskOverlap

    @property
    def names(self) -> dict[str, Any]:
        """Task, seed and target."""
        return {"task": self.task, "seed": self.seed, "target": self.target}

    def rows(self) -> list[dict[str, Any]]:
        """A row for each pair: mean, least and most over tensors, by chance, and of all sites in one."""
        told = [pair.as_dict() for pair in self.masks.pairs]
        pairs = [{name: one[name] for name in ("first", "second", *_PAIRS)} for one in told]
        return [self.names | pair for pair in pairs]

    def plot(self) -> Any:
        """A heat map of plotly.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        title = f"Mean overlap of removed weights: {self.task}, seed {self.seed}, {self.target}"
        return self.masks.plot_pairs().update_layout(title=title)


@dataclass(frozen=True)
class GridResult:
    """Pruned models of a grid; printing it gives a table for each task.

    Attributes:
        rows: for each task and seed the whole model, then each strategy at each size: ``status``, ``error``; the
            ``target``, such as ``density-0.361``, and the density there is; weights ``kept`` and ``removed``; the
            figures of :class:`~tlprune.Savings`; steps; figures on dev and test, of the test with the ends of their
            intervals, ``test_accuracy_low`` and ``test_accuracy_high``.
        overlaps: of the strategies' masks, for each task, seed and size.
    """

    rows: tuple[Row, ...]
    overlaps: tuple[GridOverlap, ...] = ()

    @property
    def tasks(self) -> list[str]:
        """Names of the data."""
        return list(dict.fromkeys(row["task"] for row in self.rows))

    @property
    def failed(self) -> list[Row]:
        """Rows that are errors."""
        return [row for row in self.rows if row["status"] == FAILED]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        pairs = [row for overlap in self.overlaps for row in overlap.rows()]
        return {"rows": [dict(row) for row in self.rows], "overlaps": pairs}

    def csv(self) -> str:
        """The rows, with a column for whatever any of them has."""
        return _csv(self.rows)

    def overlaps_csv(self) -> str:
        """The pairs of masks."""
        return _csv([row for overlap in self.overlaps for row in overlap.rows()])

    def __str__(self) -> str:
        return "\n\n".join(f"{task}\n{self._table(task)}" for task in self.tasks)

    def _table(self, task: str) -> str:
        own = [row for row in self.rows if row["task"] == task]
        figures = [name for name in _FIGURES if any(row.get(f"test_{name}") is not None for row in own)]
        lines = aligned([*_HEADER, *figures], [_line(row, figures) for row in own])
        errors = [f"{_label(row)}: {row['error']}" for row in own if row["status"] == FAILED]
        return "\n".join([*lines, *(["failed:", *errors] if errors else [])])

    def plot(self, task: str | None = None) -> Any:
        """Lines of plotly: a task's figure against compression, a line for each strategy, the whole model dotted.

        The figure is that by which the task's checkpoints are compared. Points are means over seeds; bars are from the
        lowest seed to the highest, or of one seed its interval over examples.

        Args:
            task: by default the first.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        task = self.tasks[0] if task is None else task
        figure, by = plotly().Figure(), f"test_{described(task).best_by}"
        known = [row for row in self.rows if row["task"] == task and row.get(by) is not None]
        for strategy in dict.fromkeys(row["strategy"] for row in known if row["strategy"] != WHOLE):
            points = _points([row for row in known if row["strategy"] == strategy], by)
            up, down = [one["high"] - one["y"] for one in points], [one["y"] - one["low"] for one in points]
            bars = {"array": up, "arrayminus": down, "thickness": 1}
            place = {name: [one[name] for one in points] for name in "xy"}
            figure.add_scatter(**place, name=strategy, mode="lines+markers", error_y=bars)
        for one in _points([row for row in known if row["strategy"] == WHOLE], by):
            figure.add_hline(y=one["y"], line={"dash": "dot"}, annotation_text=WHOLE)
        figure.update_xaxes(title="compression: all parameters / those that are not 0")
        figure.update_yaxes(title=f"{by.removeprefix('test_')} on the test")
        return figure.update_layout(template=TEMPLATE, title=f"{task}: pruned by strategies", height=600)


_HEADER = ["strategy", "target", "seed", "density", "kept", "compression", "speed-up"]


def _label(row: Row) -> str:
    return f"{row['strategy']} {row['target']} seed {row['seed']}"


def _line(row: Row, figures: Iterable[str]) -> list[str]:
    shares = [_shown(row.get("density"), 4), f"{row['kept']:,}" if row.get("kept") is not None else "-"]
    ratios = [_shown(row.get(name), 3) for name in ("compression_ratio", "theoretical_speedup")]
    names = [row["strategy"], row["target"], str(row["seed"])]
    return [*names, *shares, *ratios, *(_with_interval(row, name) for name in figures)]


def _with_interval(row: Row, name: str) -> str:
    low, high = (_shown(row.get(f"test_{name}_{end}"), 3) for end in ("low", "high"))
    return f"{_shown(row.get(f'test_{name}'), 4)} [{low}, {high}]"


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else number(value, digits)


def _points(rows: Iterable[Row], by: str) -> list[dict[str, float]]:
    """Means over seeds of compression and figure, by size, the lowest compression first."""
    sizes: dict[str, list[Row]] = {}
    for row in rows:
        sizes.setdefault(row["target"], []).append(row)
    return sorted((_point(own, by) for own in sizes.values()), key=lambda one: one["x"])


def _point(rows: list[Row], by: str) -> dict[str, float]:
    values = [row[by] for row in rows]
    ends = {"low": min(values), "high": max(values)}
    if len(rows) == 1:
        ends = {end: values[0] if (one := rows[0].get(f"{by}_{end}")) is None else one for end in ends}
    place = {"x": sum(row["compression_ratio"] for row in rows) / len(rows), "y": sum(values) / len(values)}
    return place | ends


def _csv(rows: Iterable[Row]) -> str:
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
