"""What an import costs, in CPU seconds of processes of its own, in turn: TransformerLens alone, tlprune, and both.

python -m benchmarks.importing --rounds 5
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass

import tyro

WHAT = {
    "transformer_lens": "import transformer_lens",
    "tlprune": "import tlprune",
    "tlprune, and load and EdgePruning of it": "import tlprune; tlprune.load; tlprune.EdgePruning",
    "tlprune, and every public name": "import tlprune; [getattr(tlprune, name) for name in tlprune.__all__]",
}
# A load of a model imports TransformerLens, so that it is part of what the last two are for.
FIRST = {name: f"import transformer_lens; {code}" for name, code in [*WHAT.items()][2:]}


@dataclass(frozen=True)
class Rounds:
    """How often.

    Attributes:
        rounds: processes of each kind.
    """

    rounds: int = 5


def seconds(code: str) -> float:
    """CPU seconds of a process that does this, without what starting Python takes."""
    timed = f"import json, time; begun = time.process_time(); {code}; print(json.dumps(time.process_time() - begun))"
    found = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def main(settings: Rounds) -> None:
    """Print the median of each, and how it stands to TransformerLens alone."""
    codes = {**WHAT, **{f"transformer_lens, then {name}": code for name, code in FIRST.items()}}
    taken: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(settings.rounds):
        for name, code in codes.items():
            taken[name].append(seconds(code))
    base = statistics.median(taken["transformer_lens"])
    for name, values in taken.items():
        middle = statistics.median(values)
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:66} {middle:6.2f} s ({spread}), {middle / base:5.2f} of TransformerLens alone")


if __name__ == "__main__":
    main(tyro.cli(Rounds))
