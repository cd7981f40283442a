"""``tlprune core prune``: find a subnetwork for each sparsity and seed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tlprune.evaluation.overlap import stability
from tlprune.methods.heuristic_core import HeuristicCore
from tlprune.studies.commands.study import Study
from tlprune.studies.searching import SEEDS, subnetworks


@dataclass(frozen=True)
class Prune:
    """Prune heads and MLPs of a model to a subnetwork for each sparsity and seed. Run it again to go on.

    Attributes:
        model: a local Hugging Face directory, such as one that tlprune finetune wrote, or another model that
            tlprune discover takes.
        task: mnli, mnli-subset, qqp, sst2, cola, another task of tlprune discover, or a file that ends in .jsonl.
        sparsities: fractions of the heads and MLPs to remove.
        seeds: of mask samples and example order.
        recipe: paper, for models of BERT's size, or short.
        steps: training steps of each subnetwork; by default the recipe's.
        batch_size: examples per step.
        samples: mask samples per step, each for an equal part of the batch.
        pattern: names of what may go, such as a* for heads alone.
        train_count: training examples that the task draws, where it does.
        out: directory for circuits, training records and means.
        task_seed: of the task's examples and their split.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    model: str
    task: str
    sparsities: tuple[float, ...] = (0.5,)
    seeds: tuple[int, ...] = SEEDS
    recipe: Literal["paper", "short"] = "paper"
    steps: int | None = None
    batch_size: int = 128
    samples: int = 4
    pattern: str = "a*|m*"
    train_count: int | None = None
    out: Path = Path("runs/core")
    task_seed: int = 0
    device: str | None = None

    def method(self) -> HeuristicCore:
        return HeuristicCore(
            pattern=self.pattern,
            recipe=self.recipe,
            steps=self.steps,
            batch_size=self.batch_size,
            samples=self.samples,
        )

    def told(self) -> dict[str, object]:
        """What the other actions need to know."""
        options: dict[str, object] = {"seed": self.task_seed}
        if self.train_count is not None:
            options["train_count"] = self.train_count
        return {"model": self.model, "task": self.task, "task_options": options}


def prune(settings: Prune) -> str:
    """Find the subnetworks; what to print."""
    study = Study(settings.out, settings.told(), settings.device)
    task, method = study.task, settings.method()
    study.write()
    found = subnetworks(
        study.model,
        task,
        method,
        sparsities=settings.sparsities,
        seeds=settings.seeds,
        out=settings.out,
        tell=print,
        progress=sys.stderr.isatty(),
    )
    lines = []
    for sparsity in found.sparsities:
        among = found.at(sparsity)
        lines.append(f"{100 * sparsity:g}% removed, {len(among)} subnetworks: {len(among.core())} in all of them")
        if len(among) > 1:
            lines.append(str(stability(list(among.values()), chance="uniform")))
    return "\n".join([*lines, f"wrote circuits, records and means to {settings.out}/"])
