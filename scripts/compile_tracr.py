"""Compile the programs whose weights the package carries; needs ``pip install 'tlprune[tracr]'``.

Run from the repository root:

    python scripts/compile_tracr.py --out tlprune/models/tracr/weights
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tlprune.models.tracr.compiler import known_program
from tlprune.models.tracr.program import SHIPPED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    folder = parser.parse_args().out
    for name in SHIPPED:
        program = known_program(name)
        program.save(folder / name)
        print(f"{name}: {program.shape}, {len(program.sequences)} inputs")


if __name__ == "__main__":
    main()
