"""Whether a prompt that was tuned for one task serves another: each task under the prompts of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tlprune.evaluation.table import aligned, number
from tlprune.learning.bootstrap import Interval, finite
from tlprune.masking.ablation import Zero
from tlprune.masking.sites import nodes
from tlprune.prompts.prompt import Prompt
from tlprune.skills.accuracy import accuracy_of
from tlprune.skills.perturbing import performances, runs_by_figure
from tlprune.skills.plots import task_map
from tlprune.skills.resampling import resampled
from tlprune.studies.examples import by_name
from tlprune.task import Task


@dataclass(frozen=True)
class Transferred:
    """A task under the prompts of one task.

    Attributes:
        value: the figure, the mean over prompts; its interval is over examples.
        runs: each prompt.
    """

    value: Interval
    runs: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"value": self.value.as_dict(), "runs": [finite(run) for run in self.runs]}


@dataclass(frozen=True)
class PromptTransfer:
    """Tasks under each other's prompts; printing it gives a table.

    Attributes:
        cells: by task, then by the task whose prompts are attached; ``None`` where these do not fit: the words of the
            two tasks differ, or the prompts are of another length.
        figures: for each task the figure that was measured.
    """

    cells: Mapping[str, Mapping[str, Transferred | None]]
    figures: Mapping[str, str]

    def __getitem__(self, task: str) -> Mapping[str, Transferred | None]:
        return self.cells[task]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each cell that there is: task, figure, whose prompts, value and its interval."""
        return [
            {"task": task, "figure": self.figures[task], "prompts_of": of, **vars(one.value)}
            for task, own in self.cells.items()
            for of, one in own.items()
            if one is not None
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        cells = {
            task: {of: None if one is None else one.as_dict() for of, one in own.items()}
            for task, own in self.cells.items()
        }
        return {"figures": dict(self.figures), "cells": cells}

    def __str__(self) -> str:
        names = list(next(iter(self.cells.values())))
        rows = [[task, *(_text(one) for one in own.values())] for task, own in self.cells.items()]
        figures = " and ".join(dict.fromkeys(self.figures.values()))
        foot = f"{figures} on test examples; -: the prompts are of another length, or the tasks have other words"
        return "\n".join([*aligned(["", *(f"prompts of {name}" for name in names)], rows), foot])

    def plot(self) -> Any:
        """A heat map of plotly: tasks down, whose prompts are attached across.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        values = {
            task: {of: None if one is None else one.value.value for of, one in own.items()}
            for task, own in self.cells.items()
        }
        words = {task: {of: _text(one) for of, one in own.items()} for task, own in self.cells.items()}
        return task_map(
            values, words, title="Tasks under each other's prompts", down="task", across="under the prompts of",
            colours={"colorscale": "Blues"},
        )  # fmt: skip


def prompt_transfer(
    model: Any,
    tasks: Sequence[Task] | Mapping[str, Task],
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    figure: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> PromptTransfer:
    """Measure each task's test examples with the prompts of each task attached in turn.

    A prompt says nothing of a task that answers in other words, so two tasks meet only where their words are the same.

    Source: Su et al., "On Transferability of Prompt Tuning for Natural Language Processing" (NAACL 2022).

    Args:
        model: a TransformerLens model; left as it was.
        tasks: whose test examples are measured.
        prompts: by the name of the task that they were tuned for; several of one are trials.
        figure: which one; by default each task's own accuracy if it has one, else ``"accuracy"``.
        batch_size: examples per forward pass.
        seed: of the bootstrap over examples.

    Raises:
        ValueError: there are no tasks or prompts, prompts are of no task, or the examples have no such figure.
    """
    named = {name: task for name, task in by_name(tasks).items() if isinstance(task, Task)}
    _check(named, prompts)
    cells: dict[str, dict[str, Transferred | None]] = {name: {} for name in named}
    figures: dict[str, str] = {}
    sites = nodes(model, "a0.h0")  # nothing is masked, whatever there is to mask
    kept = torch.ones(1, len(sites), dtype=torch.bool)
    for name, task in named.items():
        for of, own in prompts.items():
            if not _fit(task, named[of], own):
                cells[name][of] = None
                continue
            options = {"ablation": Zero(), "batch_size": batch_size}
            runs = [one for each in own for one in performances(model, task, sites, kept, prompt=each, **options)]
            found = runs_by_figure(runs)
            figures[name] = accuracy_of(task, found, figure)
            values = resampled(found[figures[name]], seed=seed)
            cells[name][of] = Transferred(values.mean.interval, tuple(values.values.tolist()))
    return PromptTransfer(cells, figures)


def _check(tasks: Mapping[str, Task], prompts: Mapping[str, Sequence[Prompt]]) -> None:
    strange = [name for name in prompts if name not in tasks]
    empty = [name for name, own in prompts.items() if not own]
    if strange or empty or not prompts:
        raise ValueError(
            f"A transfer needs prompts of tasks by name, {', '.join(tasks)}, some for each, but got "
            f"{', '.join(f'{len(own)} of {name}' for name, own in prompts.items()) or 'none'}. Use the names of the "
            "tasks, and leave out those without prompts."
        )


def _fit(task: Task, other: Task, prompts: Sequence[Prompt]) -> bool:
    """Whether prompts of one task can stand in another's place: the tasks' words are the same, and the length."""
    needed = task.options.get("prompt", {}).get("length")
    lengths = {*map(len, prompts)}
    return _words(task) == _words(other) and (needed is None or lengths <= {needed})


def _words(task: Task) -> set[int]:
    """The tokens that answers are among."""
    known = task.options.get("words")
    if isinstance(known, Mapping):
        return {*known.values()}
    return {*torch.cat([task.discovery.train().answers, task.test.answers]).flatten().tolist()} - {-100}


def _text(one: Transferred | None) -> str:
    return "-" if one is None else number(one.value.value, 3)
