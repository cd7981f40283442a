"""Whether two runs of ``tlprune discover`` found one circuit and print one table, up to rounding.

    python scripts/compare_runs.py runs/first runs/second

Rounding may exchange edges whose gates are level, so nine in ten must be shared, and figures may differ by a fiftieth.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tlprune as tp

SHARED, NOISE = 0.9, 0.02
FIGURES = ("accuracy", "agreement", "kl", "faithfulness")


def differences(first: Path, second: Path) -> Iterator[str]:
    """What differs by more than rounding explains."""
    one, two = (tp.Circuit.load(directory / "circuit.json") for directory in (first, second))
    if one.iou(two) < SHARED:
        yield f"the circuits share {one.iou(two):.2f} of their edges"
    for row, other in zip(*(rows(directory) for directory in (first, second)), strict=True):
        for figure in FIGURES:
            if abs(row[figure] - other[figure]) > NOISE * max(1.0, abs(row[figure])):
                yield f"{figure} of {row['name']}: {row[figure]:.4f} and {other[figure]:.4f}"


def rows(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's table that depend on the circuit alone: the random one is drawn beside it."""
    table = json.loads((directory / "evaluation.json").read_text())["rows"]
    return [row for row in table if row["name"] != "random"]


def main() -> int:
    """0 where the runs agree."""
    first, second = map(Path, sys.argv[1:3])
    found = list(differences(first, second))
    print("\n".join(found) or f"{first.name} and {second.name}: the same circuit and figures")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
