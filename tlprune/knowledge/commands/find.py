"""``tlprune knowledge find``: a knowledge-critical subnetwork for each seed."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes

from tlprune.knowledge.finding import SEEDS, knowledge_subnetworks
from tlprune.methods.knowledge import KnowledgeSubnetwork
from tlprune.outcome import Outcome
from tlprune.studies.commands.methods import flags_of, method_of, told_of
from tlprune.studies.commands.study import Study
from tlprune.tasks.knowledge.building import Wordings


@dataclass(frozen=True)
class Find:
    """What to forget, and where the result goes.

    Attributes:
        model: world, the model of the invented world; or gpt2 and others that tlprune discover takes.
        task: world, or knowledge-wordnet-building and the like.
        target: what the task is to forget, where it can be told: of the world a region or a relation.
        wordings: best or all: the training templates in which a target fact is trained on, where that can be told.
        text_blocks: blocks of text to train on, where the task can be told.
        seeds: of the method, one subnetwork for each; by default the source's.
        out: directory for seed-84.safetensors and the like, and their training records.
        task_seed: of the task's split of control facts.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    model: str = "world"
    task: str = "world"
    target: str | None = None
    wordings: Wordings | None = None
    text_blocks: int | None = None
    seeds: tuple[int, ...] = SEEDS
    out: Path = Path("runs/knowledge")
    task_seed: int = 0
    device: str | None = None

    def told(self, method: KnowledgeSubnetwork) -> dict[str, object]:
        """What the other actions need to know."""
        given = {
            "target": self.target,
            "wordings": self.wordings,
            "text_blocks": self.text_blocks,
            "seed": self.task_seed,
        }
        options = {name: value for name, value in given.items() if value is not None}
        return {"model": self.model, "task": self.task, "task_options": options, "method": told_of(method)}


Flags = flags_of(KnowledgeSubnetwork)
Command = dataclasses.make_dataclass(
    "Command", [("study", OmitArgPrefixes[Find]), ("settings", OmitArgPrefixes[Flags])], frozen=True
)
Command.__doc__ = "Find the weights whose removal erases facts and nothing else, for each seed. Run again to go on."


def find(settings: Any) -> Outcome:
    """Find the subnetworks; what to say."""
    what = settings.study
    method = method_of(KnowledgeSubnetwork, settings.settings)
    study = Study(what.out, what.told(method), what.device)
    task = study.task
    study.write()
    command = {"model": what.model, "task": what.task, "task_seed": what.task_seed}
    found = knowledge_subnetworks(
        study.model,
        task,
        method,
        seeds=what.seeds,
        out=what.out,
        command=command,
        tell=print,
        progress=sys.stderr.isatty(),
    )
    sparsities = {seed: 1 - len(one) / len(one.sites) for seed, one in found.items()}
    shown = ", ".join(f"{100 * share:.2f}%" for share in sparsities.values())
    text = f"sparsity {shown}\nwrote circuits and records to {what.out}/"
    return Outcome(text, {"sparsity_by_seed": sparsities}, out=what.out)
