"""``tlprune core compare``: the subnetworks of several studies at equal sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from tlprune.outcome import Outcome
from tlprune.studies.commands.measured_on import measured_on
from tlprune.studies.commands.study import Study
from tlprune.studies.commands.writing import write
from tlprune.studies.comparison import compare_studies


@dataclass(frozen=True)
class Compare:
    """Compare studies of one model at equal sparsity: accuracy, agreement with the full model, KL, paired differences.

    Attributes:
        folders: directories that tlprune core prune wrote, each by another method; the others are compared with the
            first. Their names are those of the directories.
        tasks: other tasks, such as hans or mnli:mismatched; the one that was pruned on always comes first.
        test_count: test examples of each task, of sub-cases as many; by default all.
        batch_size: examples per forward pass.
        out: directory for comparison.json and comparison.html; by default that of the first study.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    folders: Positional[tuple[Path, ...]]
    tasks: tuple[str, ...] = ()
    test_count: int | None = None
    batch_size: int = 64
    out: Path | None = None
    device: str | None = None


def compare(settings: Compare) -> Outcome:
    """Compare the studies and write what was found; what to say."""
    studies = {folder.resolve().name: Study.open(folder, device=settings.device) for folder in settings.folders}
    _check(settings, studies)
    first = next(iter(studies.values()))
    found = compare_studies(
        {name: study.subnetworks for name, study in studies.items()},
        first.model,
        measured_on(first, settings.tasks, test_count=settings.test_count),
        ablation=first.means,
        out={name: study.folder for name, study in studies.items()},
        batch_size=settings.batch_size,
        tell=print,
    )
    title = f"{' and '.join(studies)} at equal sparsity"
    wrote = write(settings.out or first.folder, "comparison", found, title=title)
    return Outcome(f"{found}\n{wrote}", found.as_dict())


def _check(settings: Compare, studies: dict[str, Study]) -> None:
    if len(studies) < max(2, len(settings.folders)):
        given = ", ".join(map(str, settings.folders)) or "none"
        raise ValueError(
            f"A comparison needs two studies or more, in directories of different names, but got {given}. Give one for "
            "each method."
        )
    for what in ("model", "task", "task_options"):
        told = {name: str(study.told[what]) for name, study in studies.items()}
        if len({*told.values()}) > 1:
            lists = ", ".join(f"{name} {one}" for name, one in told.items())
            raise ValueError(
                f"Studies of one model and the same examples are compared, but their {what} differs: {lists}. Prune by "
                "each method with the same --model, --task, --task-seed and --train-count."
            )
