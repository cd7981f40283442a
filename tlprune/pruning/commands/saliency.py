"""``tlprune saliency``: strategies of one-shot pruning at several sizes, on several tasks, in one table."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from tlprune.files import write_whole
from tlprune.outcome import Outcome
from tlprune.pruning.grid import ROWS, saliency_grid
from tlprune.pruning.grid_plan import SaliencyGrid
from tlprune.studies.commands.writing import write


def saliency(grid: SaliencyGrid) -> Outcome:
    """Do the grid and write it; what to say."""
    found = saliency_grid(grid, tell=_tell, progress=sys.stderr.isatty())
    write_whole(grid.out / "table.txt", f"{found}\n")
    write_whole(grid.out / "table.csv", found.csv())
    write_whole(grid.out / "overlaps.csv", found.overlaps_csv())
    write_whole(grid.out / "overlaps.txt", "\n\n".join(f"{one.names}\n{one.masks}" for one in found.overlaps) + "\n")
    more = [partial(found.plot, task) for task in found.tasks[1:]]
    said = write(grid.out, "grid", found, title=str(grid.model), more=[*more, *(one.plot for one in found.overlaps)])
    failed = f"\n{len(found.failed)} of {len(found.rows)} rows failed; the same command tries them again" * bool(
        found.failed
    )
    text = f"\n{found}{failed}\n\n{said}, and {ROWS}, table.csv, table.txt, overlaps.csv and overlaps.txt"
    return Outcome(text, found.as_dict(), out=grid.out)


def _tell(row: Mapping[str, Any]) -> None:
    """A line for each model, on the way."""
    figures = [f"{name.removeprefix('test_')} {value:.4f}" for name, value in row.items() if _is_figure(name, value)]
    said = row["error"] or ", ".join(figures)
    print(f"{row['task']} seed {row['seed']} {row['strategy']} {row['target']}: {said}", file=sys.stderr, flush=True)


def _is_figure(name: str, value: Any) -> bool:
    return name.startswith("test_") and not name.endswith(("_low", "_high")) and value is not None


ACTIONS = {"": ("prune a classifier", SaliencyGrid, saliency)}
