"""One method at several target sparsities and seeds: each cell a folder, all of them one table."""

from __future__ import annotations

import csv
import inspect
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.evaluation.baselines import evaluate
from tlprune.evaluation.table import aligned, number
from tlprune.files import read_json, write_whole
from tlprune.finetuning.command import make
from tlprune.finetuning.pruning import claim
from tlprune.masking.ablation import Ablation
from tlprune.methods.ablations import ablation_for
from tlprune.methods.alive import DeadCircuitError
from tlprune.methods.edge_pruning import EdgePruning
from tlprune.methods.provenance import check_settings, plain
from tlprune.sealing import sealed
from tlprune.studies.collection import Run
from tlprune.studies.searching import searches
from tlprune.task import Task

SETTINGS, CIRCUIT, EVALUATION = "sweep-settings.json", "circuit.json", "evaluation.json"
RECORDS = {"metrics": "metrics.jsonl", "checkpoint": "checkpoint.safetensors"}
BOUNDED = ("kl", "faithfulness")
# Columns of the table: figure, header, digits.
COLUMNS = (
    ("sparsity", "sparsity", 4),
    ("accuracy", "accuracy", 3),
    ("logit_difference", "logit diff", 2),
    ("kl", "KL (nats)", 4),
    ("faithfulness", "faithfulness", 3),
)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Circuits of several sizes, measured; printing it gives a table.

    Attributes:
        name: of the task.
        rows: for each target and seed the sites that the circuit has (``kept``), those that can matter (``effective``),
            the ``sparsity`` that came of it, and the figures of :func:`tlprune.evaluate`, of KL and faithfulness with
            the ends of their intervals, ``kl_low`` and ``kl_high``.
        circuits: by target and seed.
    """

    name: str
    rows: tuple[Row, ...]
    circuits: Mapping[Run, Circuit]

    def __str__(self) -> str:
        columns = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in self.rows)]
        header = ["target", "seed", "kept", "effective", *(head for _, head, _ in columns)]
        return "\n".join(aligned(header, [_line(row, columns) for row in self.rows]))

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"task": self.name, "rows": [dict(row) for row in self.rows]}

    def csv(self) -> str:
        """The rows, with a column for whatever any of them has."""
        file = io.StringIO()
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in self.rows for name in row)))
        writer.writeheader()
        writer.writerows(self.rows)
        return file.getvalue().replace("\r\n", "\n")

    def plot(self, figure: str = "faithfulness") -> Any:
        """A chart of plotly: a figure against the number of edges kept, a line for each seed, on a logarithmic axis.

        Where faithfulness is undefined there are no points of it.

        Args:
            figure: one of the rows, such as ``"kl"``.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        chart = plotly().Figure()
        known = [row for row in self.rows if row.get(figure) is not None]
        for seed in dict.fromkeys(row["seed"] for row in known):
            own = sorted((row for row in known if row["seed"] == seed), key=lambda row: row["effective"])
            name = "all seeds" if seed is None else f"seed {seed}"
            values = [row[figure] for row in own]
            bars = _bars(own, figure)
            chart.add_scatter(
                x=[row["effective"] for row in own], y=values, name=name, mode="lines+markers", error_y=bars
            )
        chart.update_xaxes(title="effective edges", type="log")
        chart.update_yaxes(title=figure)
        return chart.update_layout(template=TEMPLATE, title=f"{self.name}: {figure} against size")


def _bars(rows: Iterable[Row], figure: str) -> dict[str, Any] | None:
    rows = [row for row in rows if row.get(f"{figure}_low") is not None]
    up, down = ([abs(row[f"{figure}_{end}"] - row[figure]) for row in rows] for end in ("high", "low"))
    return {"array": up, "arrayminus": down, "thickness": 1} if rows else None


def _line(row: Row, columns: Sequence[tuple[str, str, int]]) -> list[str]:
    figures = ("-" if row.get(name) is None else number(row[name], digits) for name, _, digits in columns)
    seed = "-" if row["seed"] is None else str(row["seed"])
    return [f"{row['target']:g}", seed, f"{row['kept']:,}", f"{row['effective']:,}", *figures]


def sweep(
    model: Any,
    task: Task,
    method: Any | None = None,
    *,
    targets: Sequence[float],
    seeds: Sequence[int] = (0,),
    out: str | Path,
    ablation: Ablation | None = None,
    tell: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Sweep:
    """Find a circuit for each target sparsity and seed, and measure it on test examples.

    Each cell has a folder, ``out/target-0.98/seed-0``, with its circuit, evaluation, training record and checkpoint.
    Called again with the same settings a sweep goes on where it stopped, on a CPU bit for bit, and with further
    targets or seeds just these are found. A circuit without any path, which the method alone would refuse, is a row
    with 0 effective edges.

    Args:
        model: a TransformerLens model.
        task: its test examples are for the evaluation alone.
        method: with fields ``sparsity`` and, unless chance has no part in it, ``seed``; by default
            :class:`~tlprune.EdgePruning`. The paper's is ``tp.recipes["ioi"].method(task)``.
        targets: sparsities; above 1 where the method takes such (``size="reached"``).
        seeds: of the method; one that has none gives one circuit for each target.
        out: the folder.
        ablation: what replaces ablated edges; by default :class:`~tlprune.Resample`.
        tell: is called with a line for each cell.
        progress: whether to show a progress bar for each training.

    Raises:
        ValueError: the folder holds a sweep of other settings, or a target is none that the method takes; both are seen
            before anything is trained.

    Example:
        >>> import tempfile
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> found = sweep(planted.model, planted.task, tp.EAP(), targets=[0.9, 0.98], out=tempfile.mkdtemp())
        >>> [(row["target"], row["kept"]) for row in found.rows]
        [(0.9, 11), (0.98, 2)]
    """
    method, folder = method or EdgePruning(), Path(out)
    runs = list(searches(method, targets, seeds))
    chosen = ablation_for(task.discovery, ablation)
    make(folder)
    claim(folder / SETTINGS, _settings(model, task, method, chosen), work="sweep")
    cells = _Cells(model, task, chosen, folder, progress)
    rows, circuits = [], {}
    for run, own in runs:
        circuits[run] = cells.circuit(run, own)
        rows.append(cells.row(run, circuits[run]))
        if tell is not None:
            tell(f"{len(rows)} of {len(runs)}: {run}: {circuits[run]}")
    return Sweep(task.name, tuple(rows), circuits)


def _settings(model: Any, task: Task, method: Any, ablation: Ablation) -> dict[str, Any]:
    """What is the same in all cells."""
    told = {name: value for name, value in plain(method).items() if name not in ("sparsity", "edges", "nodes", "seed")}
    return {
        "method": told,
        "task": {"name": task.name, "fingerprint": task.fingerprint},
        "model": backend_of(model).fingerprint()["weights"],
        "ablation": ablation.as_dict(),
    }


@dataclass(frozen=True)
class _Cells:
    """What all cells of a sweep share."""

    model: Any
    task: Task
    ablation: Ablation
    out: Path
    progress: bool

    def folder(self, run: Run) -> Path:
        place = self.out / f"target-{run.sparsity:g}"
        return place if run.seed is None else place / f"seed-{run.seed}"

    def circuit(self, run: Run, method: Any) -> Circuit:
        """The circuit of a cell, from its folder or found now."""
        folder = self.folder(run)
        path = folder / CIRCUIT
        if path.exists():
            found = Circuit.load(path)
            check_settings(found.provenance, path, method, self.model, self.task.discovery, self.ablation)
            return found
        make(folder)
        known = inspect.signature(method.find).parameters
        files = {name: folder / file for name, file in RECORDS.items() if name in known}
        try:
            found = method.find(self.model, sealed(self.task), ablation=self.ablation, progress=self.progress, **files)
        except DeadCircuitError as dead:  # a point of the curve like any other, with 0 effective edges
            found = dead.circuit
        found.save(path)
        return found

    def row(self, run: Run, circuit: Circuit) -> dict[str, Any]:
        """Figures of a cell, from its folder or measured now."""
        path = self.folder(run) / EVALUATION
        if not path.exists():
            figures = evaluate(self.model, circuit, self.task, ablation=self.ablation).as_dict()
            write_whole(path, json.dumps(figures, indent=1, allow_nan=False) + "\n")
        own = next(row for row in read_json(path, "evaluation")["rows"] if row["name"] == "circuit")
        place = {"target": run.sparsity, "seed": run.seed, "sparsity": 1 - len(circuit) / len(circuit.sites)}
        bounds = {name: own["intervals"][name] for name in BOUNDED if name in own["intervals"]}
        ends = {
            f"{name}_{end}": value
            for name, both in bounds.items()
            for end, value in zip(("low", "high"), both, strict=True)
        }
        return place | {name: value for name, value in own.items() if name not in ("name", "intervals")} | ends
