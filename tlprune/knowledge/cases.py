"""The cases in which a knowledge-critical subnetwork is looked at: streams, splits and templates of its task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from tlprune.task import MAIN, Batch, Task

CONTROL, TEXT = "control", "text"
NAMES = {MAIN: "target", CONTROL: "control", TEXT: "text"}
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Case:
    """Examples that figures are of.

    Attributes:
        stream: ``"main"``: the facts that are to be forgotten; ``"control"``: other facts; ``"text"``.
        split: ``"train"``: what the method saw; else what is held out, of the target other paraphrases and of the
            control other facts.
        template: those in one template alone; ``None`` for all.
    """

    stream: str
    split: str
    template: str | None = None

    def __str__(self) -> str:
        seen = {"train": "in training"}.get(self.split, "held out" if self.split == "test" else "validation")
        name = f"{NAMES[self.stream]}, {seen}"
        return name if self.template is None else f"{name}: {self.template}"


def batch_of(task: Task, case: Case) -> Batch:
    """The stream and split that a case is of, numbered from 0; the examples of a template are some of them."""
    batch = getattr(task.streams[case.stream], case.split)
    return replace(batch, index=torch.arange(len(batch)))


def cases_of(task: Task, held_out: Split) -> list[Case]:
    """Target and control in training and held out, and held-out text; each with those of its templates.

    Raises:
        ValueError: the task has no such streams.
    """
    lacking = [name for name in NAMES if name not in task.streams]
    if lacking:
        raise ValueError(
            f"Figures of knowledge need the streams 'main', 'control' and 'text' but task {task.name!r} has no "
            f"{' and no '.join(map(repr, lacking))}. Build it with tp.tasks.knowledge, or give it these streams."
        )
    whole = [Case(MAIN, "train"), Case(MAIN, held_out), Case(CONTROL, "train"), Case(CONTROL, held_out)]
    return [case for one in (*whole, Case(TEXT, held_out)) for case in (one, *_templates(task, one))]


def _templates(task: Task, case: Case) -> Iterator[Case]:
    labels = batch_of(task, case).labels
    if labels is None or not task.label_names:
        return
    for label in labels.unique().tolist():
        yield replace(case, template=task.label_names[label])


def examples_of(task: Task, case: Case) -> Int[Tensor, "some"]:
    """Numbers of the examples of a case within its split."""
    batch = batch_of(task, case)
    if case.template is None:
        return batch.index
    assert batch.labels is not None
    return (batch.labels == task.label_names.index(case.template)).nonzero().flatten()
