"""``tlprune core ablate``: what heads and MLPs are worth one at a time, and what it does to force some in or out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tyro.conf import Positional

from tlprune.circuit import Circuit
from tlprune.outcome import Outcome
from tlprune.studies.ablating import one_at_a_time
from tlprune.studies.collection import Run
from tlprune.studies.commands.measured_on import measured_on
from tlprune.studies.commands.study import Study
from tlprune.studies.commands.writing import write
from tlprune.studies.forcing import forcing

FULL = Run(0.0, None)


@dataclass(frozen=True)
class Ablate:
    """Remove each head and MLP alone and put each missing one back alone; or force some in or out with --include
    and --exclude. Accuracy on test examples, before and after.

    Attributes:
        folder: the directory that tlprune core prune wrote.
        tasks: whose test examples to look at, such as mnli and hans; by default the one that was pruned on.
        sparsity: of the subnetwork; with --include or --exclude by default all.
        seed: of the subnetwork; with --include or --exclude by default all.
        full: the full model instead of a subnetwork.
        include: names or patterns of heads and MLPs to force in, such as a3.h5 or "a3.*".
        exclude: of heads and MLPs to force out.
        units: which to look at one at a time, such as a* for heads alone.
        figure: accuracy, kl, agreement or another mean over examples.
        test_count: test examples that a task draws, where it does; by default all.
        batch_size: examples per forward pass.
        out: directory for the figures as JSON and as a page; by default the same.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    folder: Positional[Path]
    tasks: tuple[str, ...] = ()
    sparsity: float | None = None
    seed: int | None = None
    full: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    units: str = "a*|m*"
    figure: str = "accuracy"
    test_count: int | None = None
    batch_size: int = 64
    out: Path | None = None
    device: str | None = None


def ablate(settings: Ablate) -> Outcome:
    """Measure and write; what to say."""
    study = Study.open(settings.folder, device=settings.device)
    circuits = _circuits(study, settings)
    if settings.include or settings.exclude:
        return _forcing(study, settings, circuits)
    return _one_at_a_time(study, settings, circuits)


def _one_at_a_time(study: Study, settings: Ablate, circuits: Mapping[Run, Circuit]) -> Outcome:
    if len(circuits) > 1:
        raise ValueError(
            f"One at a time go the units of one subnetwork but there are {'; '.join(map(str, circuits))}. Say which "
            "with --sparsity and --seed, or take the whole model with --full."
        )
    ((run, circuit),) = circuits.items()
    found = one_at_a_time(
        study.model,
        circuit,
        measured_on(study, settings.tasks, test_count=settings.test_count),
        ablation=study.means,
        units=settings.units,
        figure=settings.figure,
        batch_size=settings.batch_size,
        tell=print,
    )
    what = "full" if run == FULL else f"{run.sparsity:g}" + ("" if run.seed is None else f"-{run.seed}")
    title = f"{'Full model' if run == FULL else run} of {settings.folder}"
    wrote = write(settings.out or settings.folder, f"ablation-{what}", found, title=title)
    return Outcome(f"{found}\n{wrote}", found.as_dict())


def _forcing(study: Study, settings: Ablate, circuits: Mapping[Run, Circuit]) -> Outcome:
    found = forcing(
        study.model,
        circuits,
        measured_on(study, settings.tasks, test_count=settings.test_count),
        include=settings.include,
        exclude=settings.exclude,
        ablation=study.means,
        figure=settings.figure,
        batch_size=settings.batch_size,
        tell=print,
    )
    title = f"Units forced in subnetworks of {settings.folder}"
    wrote = write(settings.out or settings.folder, "forcing", found, title=title)
    return Outcome(f"{found}\n{wrote}", found.as_dict())


def _circuits(study: Study, settings: Ablate) -> dict[Run, Circuit]:
    """The subnetworks that are meant, or the full model as one that nothing was removed from."""
    known = study.subnetworks
    if settings.full:
        if settings.sparsity is not None or settings.seed is not None:
            raise ValueError("The full model has no sparsity and no seed. Leave out --full, or --sparsity and --seed.")
        first = next(iter(known.values()))
        told = {key: first.provenance[key] for key in ("model", "ablation") if key in first.provenance}
        return {FULL: first.like(torch.ones_like(first.kept), told)}
    among = known.at(settings.sparsity)
    found = {run: circuit for run, circuit in among.items() if settings.seed in (None, run.seed)}
    if not found:
        raise ValueError(f"There are subnetworks {'; '.join(map(str, among))}. Give one of these seeds with --seed.")
    return found
