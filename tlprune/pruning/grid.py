"""A grid of one-shot pruning: one scoring pass for all strategies and sizes, then each cell on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from tlprune.circuit import Circuit
from tlprune.files import read_json, write_whole
from tlprune.finetuning.command import finetune, make, prune, splits_of
from tlprune.finetuning.plan import FineTune
from tlprune.finetuning.pruning import (
    CIRCUIT,
    DENSE,
    ORIGIN,
    START,
    claim,
    done,
    lens_of,
    rewound,
    row_of,
    task_of,
    write_start,
)
from tlprune.finetuning.pruning_plan import PruningPlan
from tlprune.methods.saliency import Saliency, saliency_scores
from tlprune.pruning.grid_plan import Cell, SaliencyGrid
from tlprune.pruning.grid_result import DONE, FAILED, WHOLE, GridOverlap, GridResult
from tlprune.pruning.mask_overlap import mask_overlap
from tlprune.pruning.savings import savings

GRID, ROWS, ROW, SAVINGS = "grid-settings.json", "rows.jsonl", "row.json", "savings.json"
ERRORS = (ValueError, RuntimeError, FloatingPointError, NotImplementedError, OSError)
_KEPT = (CIRCUIT, SAVINGS, ROW, "tlprune.json", "metrics.jsonl")
Tell = Callable[[Mapping[str, Any]], object]


def saliency_grid(grid: SaliencyGrid, *, tell: Tell = lambda row: None, progress: bool = False) -> GridResult:
    """Score once per task and seed, then cut, measure or train each cell; what ``grid.out`` holds is not done again.

    Ratios are compared with what the model can reach, and examples of all tasks read, before anything is trained.

    Args:
        grid: settings.
        tell: is called with each row as it is there.
        progress: whether to show a progress bar while weights are scored.

    Returns:
        A row for each model, the whole one first, and how alike the masks of the strategies are.

    Raises:
        ValueError: data or model cannot be read, a ratio cannot be reached, a classifier that nothing trains is new, or
            ``grid.out`` holds a grid with other settings.

    Source: Blalock, Gonzalez Ortiz, Frankle, Guttag, "What is the State of Neural Network Pruning?" (MLSys 2020), which
    asks for several sizes, tasks and seeds with magnitude and random pruning beside.
    """
    make(grid.out)
    claim(grid.out / GRID, grid.fixed(), work="grid")
    for task in grid.tasks:
        _check(grid, task)
    rows: list[dict[str, Any]] = []
    overlaps: list[GridOverlap] = []
    for task, seed in product(grid.tasks, grid.seeds):
        part = _Part(grid, grid.plan(task, seed))
        for row in part.rows(progress=progress):
            rows.append(row)
            write_whole(grid.out / ROWS, "".join(f"{json.dumps(one)}\n" for one in rows))
            tell(row)
        overlaps += part.overlaps()
    return GridResult(tuple(rows), tuple(overlaps))


def _check(grid: SaliencyGrid, task: str) -> None:
    """Raise a ValueError if a task's examples cannot be read, its start not be scored, or a ratio not be reached."""
    plan = grid.plan(task, grid.seeds[0])
    splits_of(plan.stage(START, model=plan.model, epochs=1))
    write_start(plan)
    new = read_json(plan.out / START / ORIGIN, "origin of a start")["new"]
    if new and not grid.dense_epochs and not grid.epochs:
        raise ValueError(
            f"Pruning without training needs a classifier that is trained for {task}, but {grid.model} has no "
            f"{', '.join(new)}. Give one that tlprune finetune wrote, or --dense-epochs."
        )
    model = lens_of(plan, plan.out / START)
    for size in grid.sizes:
        method = grid.method(grid.strategies[0], size=size)
        method.kept_of(model, method.sites(model))


@dataclass(frozen=True)
class _Part:
    """One task and seed of a grid."""

    grid: SaliencyGrid
    trained: PruningPlan

    @property
    def cells(self) -> list[Cell]:
        return list(self.grid.cells(self.trained.task, self.trained.seed))

    def folder(self, cell: Cell) -> Path:
        return self.trained.out / cell.strategy / cell.size.name

    # ---- rows

    def rows(self, *, progress: bool) -> Iterator[dict[str, Any]]:
        """The whole model's, then each cell's; errors are rows too."""
        names = {"task": self.trained.task, "seed": self.trained.seed, "strategy": WHOLE, "target": WHOLE}
        whole = _tried(names, self._whole)
        yield whole
        circuits = whole if whole["status"] == FAILED else _tried({}, lambda: self._circuits(progress=progress))
        failed = {name: circuits[name] for name in ("status", "error") if circuits["status"] == FAILED}
        for cell in self.cells:
            yield cell.names | failed if failed else _tried(cell.names, lambda cell=cell: self._cell(cell))

    def _whole(self) -> dict[str, Any]:
        """Figures of the model whose weights are scored."""
        plan = self.trained
        write_start(plan)
        if plan.dense_epochs:
            stage = plan.stage(DENSE, model=plan.out / START, epochs=plan.dense_epochs)
            return self._row(stage, finetune, lambda: savings(self._scored, length=plan.max_length).as_dict())
        stage = plan.stage(WHOLE, model=plan.out / START, epochs=0)
        row = self._row(stage, prune, lambda: savings(self._scored, length=plan.max_length).as_dict())
        self._drop(stage.out)
        return row

    def _cell(self, cell: Cell) -> dict[str, Any]:
        plan, folder = self.trained, self.folder(cell)
        begin = plan.out / START if plan.begin == "rewound" else self._last
        name = str(folder.relative_to(plan.out))
        stage = plan.stage(name, model=begin, epochs=plan.epochs, circuit=folder / CIRCUIT)
        row = self._row(stage, finetune if plan.epochs else prune, lambda: read_json(folder / SAVINGS, "savings"))
        self._drop(folder)
        return row

    def _row(self, stage: FineTune, work: Any, saved: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What a stage's folder says, or the stage done."""
        path = stage.out / ROW
        if path.exists():
            return read_json(path, "row")
        facts = done(stage, work)
        row = row_of(stage, facts, density=None)
        if row["weights"]:
            row["kept"] = row["weights"] - row["removed"]
            row["density"] = row["kept"] / row["weights"]
        row = {name: value for name, value in row.items() if name != "stage"} | dict(saved())
        for name, (low, high) in facts["test_intervals"].items():
            row |= {f"test_{name}_low": low, f"test_{name}_high": high}
        write_whole(path, json.dumps(row, indent=1, allow_nan=False) + "\n")
        return row

    def _drop(self, folder: Path) -> None:
        """Leave of a finished model its figures alone, unless it is to be kept."""
        if self.grid.models == "dropped":
            for path in folder.iterdir():
                if path.is_file() and path.name not in _KEPT:
                    path.unlink()

    # ---- circuits

    @property
    def _last(self) -> Path:
        """Folder of the model whose weights are scored."""
        return self.trained.out / (DENSE if self.trained.dense_epochs else START)

    @cached_property
    def _scored(self) -> Any:
        return lens_of(self.trained, self._last)

    def _circuits(self, *, progress: bool) -> dict[str, Any]:
        """Write the circuits that are not there, by one pass, and what each leaves of the model."""
        missing = [cell for cell in self.cells if not (self.folder(cell) / CIRCUIT).exists()]
        if not missing:
            return {}
        methods = [self._method(cell) for cell in missing]
        found = saliency_scores(self._scored, task_of(self.trained, self._scored), methods, progress=progress)
        start = lens_of(self.trained, self.trained.out / START) if self.trained.begin == "rewound" else None
        for cell, method, scores in zip(missing, methods, found, strict=True):
            circuit, folder = method.cut(self._scored, scores), self.folder(cell)
            make(folder)
            left = savings(self._scored, circuit, length=self.trained.max_length).as_dict()
            write_whole(folder / SAVINGS, json.dumps(left, indent=1) + "\n")
            (circuit if start is None else rewound(circuit, start)).save(folder / CIRCUIT)
        return {}

    def _method(self, cell: Cell) -> Saliency:
        return self.grid.method(cell.strategy, size=cell.size, seed=cell.seed)

    def overlaps(self) -> Iterator[GridOverlap]:
        """Of the strategies' masks at each size, as far as they are there and there are two."""
        for size in self.grid.sizes:
            own = [cell for cell in self.cells if cell.size == size and (self.folder(cell) / CIRCUIT).exists()]
            circuits = {cell.strategy: Circuit.load(self.folder(cell) / CIRCUIT) for cell in own}
            if len(circuits) > 1:
                yield GridOverlap(self.trained.task, self.trained.seed, size.name, mask_overlap(circuits))


def _tried(names: Mapping[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row of what was found, or of the error."""
    try:
        return {**names, "status": DONE, "error": None, **work()}
    except ERRORS as error:
        return {**names, "status": FAILED, "error": " ".join(str(error).split()) or type(error).__name__}
