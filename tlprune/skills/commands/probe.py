"""``tlprune skill probe``: how well each neuron alone tells the label."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes, Positional

from tlprune.methods.skill_neurons import SkillNeurons
from tlprune.outcome import Outcome
from tlprune.skills.commands.flags import without
from tlprune.skills.commands.study import SCORES, SkillStudy
from tlprune.skills.probed import probed
from tlprune.studies.commands.writing import write

PREDICTIVITY = "predictivity.safetensors"


@dataclass(frozen=True)
class Probe:
    """Which prompts, and where the scores go.

    Attributes:
        folder: the directory that tlprune skill tune wrote; scores.safetensors and predictivity.safetensors go there.
        top: neurons to list, with how well each alone does on the test examples.
        out: directory for probe.json and probe.html; by default the same.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    folder: Positional[Path]
    top: int = 5
    out: Path | None = None
    device: str | None = None


Settings = without(SkillNeurons, "sparsity", "neurons", "selection")
Command = dataclasses.make_dataclass(
    "Command", [("study", OmitArgPrefixes[Probe]), ("settings", OmitArgPrefixes[Settings])], frozen=True
)
Command.__doc__ = "Score every neuron by how well it alone tells the label, over the prompts of a folder."


def probe(settings: Any) -> Outcome:
    """Score the neurons and write; what to say."""
    what, method = settings.study, SkillNeurons(**vars(settings.settings))
    study = SkillStudy.open(what.folder, device=what.device)
    prompts = list(study.prompts.values())
    found = method.predictivity(study.model, study.task, prompts=prompts, progress=sys.stderr.isatty())
    scores = found.scores(aggregate=method.aggregate, positions=method.positions)
    table = probed(study.model, study.task, found, scores, prompts=prompts, top=what.top)
    found.save(what.folder / PREDICTIVITY)
    scores.save(what.folder / SCORES)
    told = write(what.out or what.folder, "probe", table, title=f"Neurons that tell the label of {study.task.name}")
    text = f"{table}\n\nwrote {SCORES} and {PREDICTIVITY} to {what.folder}/\n{told}"
    return Outcome(text, table.as_dict())
