"""``tlprune core heads``: which heads and MLPs the subnetworks of a study share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from tlprune.outcome import Outcome
from tlprune.studies.commands.study import Study
from tlprune.studies.commands.writing import write
from tlprune.studies.core import core


@dataclass(frozen=True)
class Heads:
    """Count how many subnetworks keep each head and MLP, for each sparsity and over all, beside chance.

    Attributes:
        folder: the directory that tlprune core prune wrote.
        out: directory for core.json and core.html; by default the same.
    """

    folder: Positional[Path]
    out: Path | None = None


def heads(settings: Heads) -> Outcome:
    """Find the core and write it; what to say."""
    found = core(Study.open(settings.folder).subnetworks)
    wrote = write(settings.out or settings.folder, "core", found, title=f"Core of {settings.folder}")
    return Outcome(f"{found}\n{wrote}", found.as_dict())
