"""What benchmarks share that stand beside the table of speed: interleaved times, and how results are printed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.speed import Work, cpu_seconds, setting


def medians(works: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """CPU seconds of each kind of work, all kinds in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(cpu_seconds(work))
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(result: Mapping[str, Any], settings: Any) -> None:
    """Print a result with what it was measured on, as lines or as one JSON object."""
    where = {name: value for name, value in setting().items() if name in ("threads", "device", "commit", "torch")}
    whole = {**result, "setting": where | asdict(settings)}
    print(json.dumps(whole, indent=1) if settings.json else "\n".join(f"{k}: {v}" for k, v in whole.items()))
