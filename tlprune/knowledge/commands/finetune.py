"""``tlprune knowledge finetune``: multiple choice after the subnetwork was removed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from tlprune.circuit import Circuit
from tlprune.knowledge.commands.saved import circuit_in, model_of
from tlprune.knowledge.downstream import downstream
from tlprune.knowledge.downstream_plan import DownstreamPlan
from tlprune.outcome import Outcome
from tlprune.studies.commands.writing import write
from tlprune.tasks.knowledge.world_questions import world_questions
from tlprune.tasks.questions import Questions, read_questions

WORLD = Path("world")


@dataclass(frozen=True)
class Finetune:
    """Fine-tune the model on multiple choice whole, without the subnetwork and without a random one, and compare.

    Attributes:
        folder: a directory with circuit.safetensors or circuit.json, or the file.
        questions: a file of questions, choices and answers; by default CommonsenseQA's development set in
            TLPRUNE_DATA. world: of a subnetwork for a region of the invented world, who lives in the other regions,
            and for the test who lives in this one.
        test: a file of other questions for the test, such as those about the erased facts; by default some of the
            questions are held out.
        model: by default the one that the subnetwork was found on.
        out: directory for the runs, downstream.json and downstream.html; by default downstream in the folder. The
            same command goes on where it was stopped.
        plan: settings of the fine-tuning.
    """

    folder: Positional[Path]
    questions: Path | None = None
    test: Path | None = None
    model: str | None = None
    out: Path | None = None
    plan: OmitArgPrefixes[DownstreamPlan] = dataclasses.field(default_factory=DownstreamPlan)


def finetune(settings: Finetune) -> Outcome:
    """Do it and write the comparison; what to say."""
    folder = settings.folder
    circuit = circuit_in(folder)
    questions, test = _asked(settings, circuit)
    model = model_of(circuit, settings.model, "cpu" if settings.plan.device == "cpu" else None)
    out = settings.out or (folder.parent if folder.is_file() else folder) / "downstream"
    found = downstream(model, circuit, questions, settings.plan, out=out, test=test)
    wrote = write(out, "downstream", found, title=f"Multiple choice without {folder}")
    return Outcome(f"{found}\n\n{wrote}", found.as_dict())


def _asked(settings: Finetune, circuit: Circuit) -> tuple[Questions, Questions | None]:
    """Questions to learn from, and those of the test where they are others."""
    test = read_questions(settings.test) if settings.test else None
    if settings.questions != WORLD:
        return read_questions(settings.questions), test
    region = circuit.provenance.get("task", {}).get("options", {}).get("group")
    if region is None:
        raise ValueError(
            f"Questions on the invented world are for a subnetwork of its task, but {settings.folder} is of another. "
            "Give a file of questions."
        )
    learnt, asked = world_questions(region)
    return learnt, test or asked
