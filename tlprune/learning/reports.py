"""Where records of training go: a file with a line per step, or a service."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tlprune.learning.records import Step
from tlprune.processes import processes

Report = Callable[[Step], None]


@contextmanager
def metrics_file(path: str | Path | None, *, done: int = 0) -> Iterator[Report]:
    """A report that writes one JSON object per step, as it happens; one that does nothing where there is no path.

    A run that goes on after ``done`` steps keeps that many lines of the file and drops later ones, which a process
    that was killed wrote after its last checkpoint.

    Raises:
        ValueError: the file cannot be written, or lacks lines of the steps done.
    """
    if path is None:
        yield lambda step: None
        return
    path = Path(path)
    with ExitStack() as closing:
        with _refusing(path):
            file = closing.enter_context(open(path, "r+b" if done else "wb", buffering=0))
            _check_room(file)
        if done:
            _keep(path, file, done)
        yield lambda step: _write(path, file, step)


def wandb(run: Any = None, **options: Any) -> Report:
    """A report to Weights and Biases: ``tp.fit(..., report=reports.wandb(project="circuits"))``.

    Of several processes that share a run the first reports.

    Args:
        run: a run that was started; by default a new one.
        options: of ``wandb.init`` for a new run.

    Raises:
        ValueError: a new run is asked for and wandb is not installed.
    """
    if not processes().first:
        return lambda step: None
    if run is None:
        run = _wandb().init(**options)

    def report(step: Step) -> None:
        run.log({name: value for name, value in step.as_dict().items() if value is not None}, step=step.step)

    return report


def _wandb() -> Any:
    try:
        import wandb as package
    except ImportError:
        raise ValueError(
            "Reports to Weights and Biases need the package wandb, which is not installed. Install tlprune[wandb]."
        ) from None
    return package


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"Metrics need a file that can be written, but {path} cannot be: {error.strerror}. Make its folder, free "
            "some space, give another path, or where a run goes on the file that it began."
        ) from error


def _write(path: Path, file: Any, step: Step) -> None:
    with _refusing(path):
        file.write(json.dumps(step.as_dict()).encode() + b"\n")


def _check_room(file: Any) -> None:
    """A disk may be full only once something is written."""
    end = file.seek(0, os.SEEK_END)
    file.write(b"\n")
    file.truncate(file.seek(end))


def _keep(path: Path, file: Any, done: int) -> None:
    """Leave the lines of the steps done in the file and stand behind them."""
    file.seek(0)
    lines = file.read().splitlines(keepends=True)[:done]
    if len(lines) < done or _step_of(lines[-1]) != done:
        raise ValueError(
            f"A run that goes on after step {done} needs the metrics of these steps, but {path} does not hold them. "
            "Give the file that the run began, or delete the checkpoint to start anew."
        )
    file.truncate(file.seek(sum(map(len, lines))))


def _step_of(line: bytes) -> int | None:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
