"""What finding a circuit cost: runs of the model, seconds, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tlprune.backends import backend_of
from tlprune.backends.passes import counted

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Of one search; all numbers are 0 or ``None`` until it is over.

    Attributes:
        forward_equivalents: forward runs of one prompt, a backward run counting as one more; see
            :class:`~tlprune.backends.passes.Passes`.
        seconds: of wall time.
        cpu_seconds: of all threads of the process together.
        peak_bytes: most memory above what was there before, of the GPU if the model is on one; ``None`` where the
            system does not tell.
    """

    forward_equivalents: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int | None = None


@contextmanager
def measured(model: Any) -> Iterator[Cost]:
    """Measure what happens until the block ends.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> with measured(planted.model) as cost:
        ...     circuit = tp.EdgePruning(edges=2, steps=2).find(planted.model, planted.task)
        >>> cost.forward_equivalents > 0 and cost.seconds > 0
        True
    """
    device, cost = backend_of(model).device, Cost()
    before = _reset_peak(device)
    start, cpu = time.perf_counter(), time.process_time()
    try:
        with counted(model) as passes:
            yield cost
            _wait_for(device)
    finally:
        cost.seconds, cost.cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        cost.forward_equivalents = passes.forward_equivalents
        cost.peak_bytes = None if before is None else max(0, _peak(device) - before)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> int | None:
    """What is in use now; from here on the peak is new."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return None
    try:
        _FORGET.write_text("5")
    except OSError:  # some containers forbid it
        return None
    return _of_process("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _of_process("VmHWM")


def _of_process(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
