"""``tlprune core prune``: find a subnetwork for each sparsity and seed, by any method of heads and MLPs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes

from tlprune.choices import choice, value_of
from tlprune.evaluation.overlap import stability
from tlprune.outcome import Outcome
from tlprune.studies.commands.methods import NODE_METHODS, flags_of, method_of, told_of
from tlprune.studies.commands.study import Study
from tlprune.studies.searching import SEEDS, subnetworks


@dataclass(frozen=True)
class Prune:
    """What to prune, to which sizes, and where the result goes.

    Attributes:
        model: a local Hugging Face directory, such as one that tlprune finetune wrote, or another model that
            tlprune discover takes.
        task: mnli, mnli-subset, qqp, sst2, cola, another task of tlprune discover, or a file that ends in .jsonl.
        method: heuristic-core; or, to compare with it, random-nodes, magnitude, hisp, atp or node-patching. Each has
            settings of its own: --method hisp --help.
        sparsities: fractions of the heads and MLPs to remove.
        seeds: of the method, where chance has a part in it.
        train_count: training examples that the task draws, where it does.
        out: directory for circuits, training records and means, one for each method.
        task_seed: of the task's examples and their split.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    model: str
    task: str
    method: str = "heuristic-core"
    sparsities: tuple[float, ...] = (0.5,)
    seeds: tuple[int, ...] = SEEDS
    train_count: int | None = None
    out: Path = Path("runs/core")
    task_seed: int = 0
    device: str | None = None

    def told(self, method: Any) -> dict[str, object]:
        """What the other actions need to know."""
        options: dict[str, object] = {"seed": self.task_seed}
        if self.train_count is not None:
            options["train_count"] = self.train_count
        return {"model": self.model, "task": self.task, "task_options": options, "method": told_of(method)}


def settings_for(words: Sequence[str]) -> type:
    """The command's settings: what to prune, and the flags of the method that the words name.

    Raises:
        ValueError: there is no such method of heads and MLPs.
    """
    kind = choice("method of heads and MLPs", value_of(words, "--method", Prune.method), NODE_METHODS)
    fields = [("study", OmitArgPrefixes[Prune]), ("settings", OmitArgPrefixes[flags_of(kind)])]
    command = dataclasses.make_dataclass("Command", fields, frozen=True)
    command.__doc__ = "Prune heads and MLPs of a model to a subnetwork for each sparsity and seed. Run again to go on."
    return command


def prune(settings: Any) -> Outcome:
    """Find the subnetworks; what to say."""
    what = settings.study
    method = method_of(NODE_METHODS[what.method], settings.settings)
    study = Study(what.out, what.told(method), what.device)
    task = study.task
    study.write()
    found = subnetworks(
        study.model,
        task,
        method,
        sparsities=what.sparsities,
        seeds=what.seeds,
        out=what.out,
        tell=print,
        progress=sys.stderr.isatty(),
    )
    lines, figures = [], []
    for sparsity in found.sparsities:
        among = found.at(sparsity)
        agreeing = stability(list(among.values()), chance="uniform") if len(among) > 1 else None
        lines.append(f"{100 * sparsity:g}% removed, {len(among)} subnetworks: {len(among.core())} in all of them")
        lines += [] if agreeing is None else [str(agreeing)]
        counts = {"sparsity": sparsity, "subnetworks": len(among), "in_all": len(among.core())}
        figures.append({**counts, "stability": None if agreeing is None else agreeing.as_dict()})
    text = "\n".join([*lines, f"wrote circuits, records and means to {what.out}/"])
    return Outcome(text, {"sparsities": figures}, out=what.out)
