"""The folder of a run: made, and known to have room, before any work; one that was stopped is found again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tlprune.files import check_room
from tlprune.processes import processes

FILES = ("circuit.json", "metrics.jsonl", "circuit.html", "evaluation.json")
CHECKPOINT = "run.safetensors"
ROOM = 1 << 20  # bytes; what a run writes beside its checkpoint is mostly less


@contextlib.contextmanager
def run_folder(asked: Path | None, name: str) -> Iterator[Path]:
    """The folder for a run, the same in all processes; gone again if the work cannot start.

    Args:
        asked: where it is to be; by default a new one in runs/.
        name: of the new one.

    Raises:
        ValueError: it cannot be written, or holds a run that is finished.
    """
    together = processes()
    out, existed = together.from_first(lambda: _ready(asked or _fresh(Path("runs"), name)))
    try:
        yield out
    except ValueError:
        if not existed and together.first:
            with contextlib.suppress(OSError):  # training has left a record worth keeping
                out.rmdir()
        raise


def _ready(out: Path) -> tuple[Path, bool]:
    """The folder, and whether it was there before."""
    goes_on = (out / CHECKPOINT).exists()
    if not goes_on and any((out / name).exists() for name in FILES):
        raise ValueError(f"{out} already holds a run. Choose another directory with --out, or remove it.")
    existed = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        check_room(out, ROOM)  # a full disk still takes empty files
    except OSError as error:
        raise ValueError(f"Cannot write to {out}: {error.strerror}. Choose another directory with --out.") from None
    return out, existed


def _fresh(parent: Path, name: str) -> Path:
    """``parent/name``, or the first of ``name-2``, ``name-3``, ... that does not exist."""
    candidates: Iterable[Path] = (parent / (name if n == 1 else f"{name}-{n}") for n in range(1, 10**6))
    return next(path for path in candidates if not path.exists())
