"""``tlprune core size``: the effective size of the checkpoints of a fine-tuning, each with a study of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from tlprune.outcome import Outcome
from tlprune.studies.commands.asking import asked
from tlprune.studies.commands.study import Study
from tlprune.studies.commands.writing import write
from tlprune.studies.effective_size import MARGIN
from tlprune.studies.effective_sizes import effective_sizes
from tlprune.studies.predictions import Predictions


@dataclass(frozen=True)
class Size:
    """Find how few heads and MLPs do as well as all of them, for each checkpoint of a fine-tuning.

    Attributes:
        folders: directories that tlprune core prune wrote, each for the model of one step.
        tasks: out of domain, such as hans.
        in_domain: by default the task that was pruned on.
        subcases: patterns of sub-cases to look at where a task has some, such as "ln_*"; by default the whole task.
        steps: the step of each folder; by default that in the name of its model, such as step-141.
        margin: how much lower the accuracy of a subnetwork may be.
        test_count: test examples that a task draws, where it does; by default all.
        batch_size: examples per forward pass.
        out: directory for size.json and size.html; by default the first of the folders.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    folders: Positional[tuple[Path, ...]]
    tasks: tuple[str, ...] = ()
    in_domain: tuple[str, ...] = ()
    subcases: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    margin: float = MARGIN
    test_count: int | None = None
    batch_size: int = 64
    out: Path | None = None
    device: str | None = None


def size(settings: Size) -> Outcome:
    """Measure and write; what to say."""
    steps = _steps([Study.open(folder) for folder in settings.folders], settings.steps)
    found, inside = {}, []
    for step, folder in zip(steps, settings.folders, strict=True):
        study = Study.open(folder, device=settings.device)  # one model at a time
        inside = _asked(study, settings.in_domain, settings)
        found[step] = [*inside, *(_asked(study, settings.tasks, settings) if settings.tasks else ())]
        print(f"step {step}: {len(study.subnetworks)} subnetworks")
    options = {"in_domain": [one.task for one in inside], "subcases": settings.subcases, "margin": settings.margin}
    sizes = effective_sizes(found, **options)
    out = settings.out or settings.folders[0]
    wrote = write(out, "size", sizes, title=f"Effective size of {len(steps)} checkpoints")
    return Outcome(f"{sizes}\n{wrote}", sizes.as_dict())


def _asked(study: Study, tasks: tuple[str, ...], settings: Size) -> list[Predictions]:
    return asked(study, tasks, test_count=settings.test_count, batch_size=settings.batch_size)


def _steps(studies: list[Study], given: tuple[int, ...]) -> list[int]:
    if not studies:
        raise ValueError("Effective sizes need studies but no folder was given. Name some that core prune wrote.")
    named = [re.search(r"step-(\d+)/?$", str(study.told["model"])) for study in studies]
    steps = list(given) or [int(one[1]) for one in named if one]
    if len({*steps}) != len(studies):
        models = ", ".join(str(study.told["model"]) for study in studies)
        raise ValueError(
            f"Each of {len(studies)} studies needs a step of its own, but models are {models} and steps are "
            f"{', '.join(map(str, steps)) or 'none'}. Say them with --steps, one for each folder."
        )
    return steps
