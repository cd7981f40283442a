"""The Heuristic Core on a fine-tuned classifier: subnetworks in and out of domain, their core, and baselines.

    tlprune finetune --model path/to/bert --task mnli-subset --out runs/mnli
    python -m benchmarks.heuristic_core --model runs/mnli --out runs/heuristic-core

Prunes by trained masks over seeds, and to the same sizes by chance, size of weights and head importance, each into a
directory of its own; what is there already is read. Then writes ``tables.md``: accuracy in domain and out of it, by
sub-case where a task has them, the core, and the methods at equal sparsity. Run again it goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

import tlprune as tp
from tlprune.benchmarking.report import commit
from tlprune.cli import main as tlprune
from tlprune.files import write_whole
from tlprune.studies.commands.measured_on import measured_on
from tlprune.studies.commands.study import Study
from tlprune.studies.comparison import Seeds, StudyComparison
from tlprune.studies.domains import Domain
from tlprune.studies.seed_spread import SeedSpread

CORE, BASELINES = "heuristic-core", ("random-nodes", "magnitude", "hisp")


@dataclass(frozen=True)
class Settings:
    """What to prune, how, and what to measure on.

    Attributes:
        model: a directory that tlprune finetune wrote, or another model of tlprune discover.
        out: directory for the studies and tables.md.
        task: that it was fine-tuned for.
        others: tasks out of domain.
        study: a study of trained masks that is there already; by default one is made in out.
        sparsities: fractions of the heads and MLPs to remove.
        seeds: of trained masks and chance.
        steps: of training, by the short recipe.
        batch_size: examples per training step.
        train_count: training examples that the task draws, where it does.
        test_count: test examples of each task, of sub-cases as many; by default all.
        device: where to compute.
    """

    model: str
    out: Path
    task: str = "mnli-subset"
    others: tuple[str, ...] = ("hans",)
    study: Path | None = None
    sparsities: tuple[float, ...] = (0.25, 0.5, 0.7)
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
    steps: int = 300
    batch_size: int = 128
    train_count: int | None = None
    test_count: int | None = None
    device: str | None = None


def main(words: Sequence[str] | None = None) -> None:
    settings = tyro.cli(Settings, args=words)
    studies = {method: _study(settings, method) for method in (CORE, *BASELINES)}
    first = studies[CORE]
    tasks = measured_on(first, settings.others, test_count=settings.test_count)
    found = tp.compare_studies(
        {method: study.subnetworks for method, study in studies.items()},
        first.model,
        tasks,
        ablation=first.means,
        out={method: study.folder for method, study in studies.items()},
        tell=print,
    )
    known = {"ablation": first.means, "out": first.folder, "tell": print}
    domains = tp.domains(first.model, first.subnetworks, tasks, **known)
    parts = ["## Accuracy", domain_table([domains[name] for name in domains.main], domains.sparsities)]
    for name in tasks:
        if domains.subcases(name):
            parts += [f"### {name} by sub-case", domain_table(domains.subcases(name), domains.sparsities)]
    parts += ["## Core", f"```\n{tp.core(first.subnetworks)}\n```"]
    parts += ["## Equal sparsity", equal_table(found), f"Commit {commit()}."]
    write_whole(settings.out / "tables.md", "\n\n".join(parts) + "\n")
    print(f"wrote {settings.out / 'tables.md'}")


def _study(settings: Settings, method: str) -> Study:
    """A method's study, found or gone on with where it is not given."""
    if method == CORE and settings.study is not None:
        return Study.open(settings.study, device=settings.device)
    words = ["--model", settings.model, "--task", settings.task, "--method", method]
    words += ["--sparsities", *map(str, settings.sparsities), "--seeds", *map(str, settings.seeds)]
    words += ["--out", str(settings.out / method)]
    if method == CORE:
        words += ["--recipe", "short", "--steps", str(settings.steps), "--batch-size", str(settings.batch_size)]
    for name in ("train_count", "device"):
        value = getattr(settings, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    if tlprune(["core", "prune", *words]):
        raise SystemExit(2)
    return Study.open(settings.out / method, device=settings.device)


def domain_table(domains: Sequence[Domain], sparsities: Sequence[float]) -> str:
    """Of the full model, and of trained masks over the seeds of each sparsity, in percent: a row for each domain."""
    rows = [
        [one.name, one.examples, f"{100 * one.full.value:.1f}", *(_ranged(one.spreads[level]) for level in sparsities)]
        for one in domains
    ]
    return table(["", "examples", "full model", *(f"{100 * level:g}% removed" for level in sparsities)], rows)


def equal_table(found: StudyComparison) -> str:
    """All methods: accuracy and agreement in percent, KL in nats, the paired difference in points."""
    rows = []
    for row in found.rows:
        kl = "-" if row.kl is None else f"{row.kl.mean:.3f} [{row.kl.low:.3f}, {row.kl.high:.3f}]"
        better = "-" if row.better is None else _ranged(Seeds(row.better.value, row.better.low, row.better.high))
        figures = [_ranged(row.accuracy), _ranged(row.agreement), kl, better]
        rows.append([row.task, f"{100 * row.sparsity:g}%", row.method, row.subnetworks, *figures])
    header = ["task", "removed", "method", "seeds", "accuracy", "agreement", "KL (nats)", f"less {CORE} (points)"]
    return table(header, rows)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def _ranged(figure: Seeds | SeedSpread) -> str:
    return f"{100 * figure.mean:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


if __name__ == "__main__":
    main()
