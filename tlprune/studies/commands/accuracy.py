"""``tlprune core accuracy``: accuracy of a study's subnetworks in the domain of their task, and out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from tlprune.outcome import Outcome
from tlprune.studies.commands.measured_on import measured_on, seen_in_pruning
from tlprune.studies.commands.study import Study
from tlprune.studies.commands.writing import write
from tlprune.studies.domains import Domains, domains


@dataclass(frozen=True)
class Accuracy:
    """Measure the full model and each subnetwork on test examples of its task and of others. Run it again to go on.

    Attributes:
        folder: the directory that tlprune core prune wrote.
        tasks: other tasks, such as hans, paws-qqp or mnli:mismatched (another part of the data); the one that was
            pruned on always comes first.
        test_count: test examples of each task, of sub-cases as many, all where there are not more; by default all.
        classes: names of the model's outputs in their order, if they are not those of the data.
        batch_size: examples per forward pass.
        out: directory for accuracy.json and accuracy.html; by default the same.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    folder: Positional[Path]
    tasks: tuple[str, ...] = ()
    test_count: int | None = None
    classes: tuple[str, ...] = ()
    batch_size: int = 64
    out: Path | None = None
    device: str | None = None


def accuracy(settings: Accuracy) -> Outcome:
    """Measure, write accuracy.json and accuracy.html; what to say."""
    study = Study.open(settings.folder, device=settings.device)
    names = (study.told["task"], *settings.tasks)
    tasks = measured_on(study, names, test_count=settings.test_count, classes=settings.classes)
    found = domains(
        study.model,
        study.subnetworks,
        tasks,
        ablation=study.means,
        out=settings.folder,
        batch_size=settings.batch_size,
        tell=print,
    )
    folder, title = settings.out or settings.folder, f"Accuracy of {settings.folder}"
    wrote = write(folder, "accuracy", found, title=title, more=_plots(found))
    seen = [_seen(name, count) for name, task in tasks.items() if (count := seen_in_pruning(study, task))]
    return Outcome("\n".join(["", str(found), "", *seen, wrote]), found.as_dict())


def _plots(found: Domains) -> list[Callable[[], Any]]:
    """Violins, bars of each sparsity, and the violins of sub-cases."""
    several = [found.subcases(name) for name in found.main if found[name].part is None]
    return [
        found.plot_spread,
        *(lambda sparsity=sparsity: found.plot_seeds(sparsity) for sparsity in found.sparsities),
        *(lambda kinds=kinds: found.plot_spread([one.name for one in kinds]) for kinds in several if kinds),
    ]


def _seen(name: str, count: int) -> str:
    return f"note: {count:,} test examples of {name} are among those that the subnetworks were found on"
