"""``tlprune core agreement``: how often the subnetworks of a study predict the same, on any tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from tlprune.outcome import Outcome
from tlprune.studies.agreement import agreement
from tlprune.studies.commands.asking import asked
from tlprune.studies.commands.study import Study
from tlprune.studies.commands.writing import write


@dataclass(frozen=True)
class Agree:
    """Measure how often subnetworks predict the same as each other and as the full model, beside chance.

    Attributes:
        folder: the directory that tlprune core prune wrote.
        tasks: on whose test examples, such as the one that was pruned on, and hans; by default the former.
        test_count: test examples that a task draws, where it does; by default all.
        batch_size: examples per forward pass.
        out: directory for agreement.json and agreement.html; by default the same.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    folder: Positional[Path]
    tasks: tuple[str, ...] = ()
    test_count: int | None = None
    batch_size: int = 64
    out: Path | None = None
    device: str | None = None


def agree(settings: Agree) -> Outcome:
    """Measure and write; what to say."""
    study = Study.open(settings.folder, device=settings.device)
    found = agreement(asked(study, settings.tasks, test_count=settings.test_count, batch_size=settings.batch_size))
    wrote = write(settings.out or settings.folder, "agreement", found, title=f"Agreement in {settings.folder}")
    return Outcome(f"{found}\n{wrote}", found.as_dict())
