"""Check what a built wheel and sdist hold: ``python scripts/check_distribution.py DIST``; prints what it found."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tlprune"
# Beside the package's own files.
IN_SDIST = ("CITATION.cff", "LICENSE", "README.md", "constraints.txt", "pyproject.toml", "tests/conftest.py")


def check(folder: Path) -> list[str]:
    """One line for the wheel and one for the sdist.

    Raises:
        ValueError: a file is missing, or there is one that should not be.
    """
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    own = {
        str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    packed = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in packed if ".dist-info/" in name}
    _compare(wheel.name, own, packed - metadata)
    _need(wheel.name, ("LICENSE", "METADATA", "entry_points.txt"), {Path(name).name for name in metadata})
    _need(wheel.name, ("tlprune/py.typed", "tlprune/models/testbed/model.safetensors"), packed)
    with tarfile.open(sdist) as archive:
        listed = {name.partition("/")[2] for name in archive.getnames()}
    _need(sdist.name, (*own, *IN_SDIST), listed)
    return [f"{path.name}: {path.stat().st_size / 1e6:.1f} MB" for path in (wheel, sdist)]


def _compare(name: str, wanted: set[str], found: set[str]) -> None:
    _need(name, wanted, found)
    if found - wanted:
        raise ValueError(f"{name} has what is not of the package: {', '.join(sorted(found - wanted))}.")


def _need(name: str, wanted: Iterable[str], found: set[str]) -> None:
    if missing := {*wanted} - found:
        raise ValueError(f"{name} lacks {', '.join(sorted(missing))}.")


if __name__ == "__main__":
    print("\n".join(check(Path(sys.argv[1]))))
