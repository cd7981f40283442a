"""Whose neurons a task needs: each task with the skill neurons of each other one perturbed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlprune.evaluation.bench import ablation_text
from tlprune.evaluation.table import aligned, number
from tlprune.learning.bootstrap import Interval, finite
from tlprune.masking.ablation import Ablation
from tlprune.prompts.prompt import Prompt
from tlprune.scores import Scores
from tlprune.skills.accuracy import accuracy_of
from tlprune.skills.choosing import count_of, places, same_neurons
from tlprune.skills.perturbing import Perturbation, Perturbing, runs_by_figure
from tlprune.skills.plots import task_map
from tlprune.skills.resampling import Resampled, resampled
from tlprune.studies.examples import by_name
from tlprune.task import Task

RANDOM = "random"


@dataclass(frozen=True)
class Without:
    """A task without some neurons.

    Attributes:
        value: the figure, the mean over trials; its interval is over examples.
        change: less that of the unperturbed model, paired over examples.
        runs: each trial; of random neurons each draw of each trial.
    """

    value: Interval
    change: Interval
    runs: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "value": self.value.as_dict(),
            "change": self.change.as_dict(),
            "runs": [finite(run) for run in self.runs],
        }


@dataclass(frozen=True)
class TaskSpecificity:
    """One task without the skill neurons of each task.

    Attributes:
        figure: the one that was measured.
        examples: number of test examples.
        trials: number of trials.
        plain: the figure with nothing perturbed.
        cells: by the name of the scores whose best neurons are perturbed; ``"random"``: as many at random.
    """

    figure: str
    examples: int
    trials: int
    plain: Interval
    cells: Mapping[str, Without]

    def __getitem__(self, name: str) -> Without:
        return self.cells[name]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        told = {"figure": self.figure, "examples": self.examples, "trials": self.trials, "plain": self.plain.as_dict()}
        return {**told, "cells": {name: cell.as_dict() for name, cell in self.cells.items()}}


@dataclass(frozen=True)
class SkillSpecificity:
    """Tasks without each other's skill neurons; printing it gives a table.

    Attributes:
        tasks: by name.
        fraction: which part of each layer is perturbed.
        neurons: how many of each layer.
        layers: those whose neurons are perturbed.
        random_trials: draws of random neurons in each trial.
        ablation: how they are perturbed in the first trial of the first task, as plain data.
    """

    tasks: Mapping[str, TaskSpecificity]
    fraction: float
    neurons: int
    layers: tuple[int, ...]
    random_trials: int
    ablation: Mapping[str, Any]

    def __getitem__(self, task: str) -> TaskSpecificity:
        return self.tasks[task]

    @property
    def columns(self) -> tuple[str, ...]:
        """Whose neurons are perturbed, random ones last."""
        return tuple(next(iter(self.tasks.values())).cells)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each cell: task, figure, whose neurons, and value and change with their intervals."""
        return [
            {"task": task, "figure": own.figure, "neurons_of": name, **_flat("", cell.value),
             **_flat("change_", cell.change)}
            for task, own in self.tasks.items()
            for name, cell in own.cells.items()
        ]  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        told = {"fraction": self.fraction, "neurons": self.neurons, "layers": list(self.layers)}
        told |= {"random_trials": self.random_trials, "ablation": dict(self.ablation)}
        return {**told, "tasks": {name: own.as_dict() for name, own in self.tasks.items()}}

    def __str__(self) -> str:
        header = ["", "unperturbed", *(f"neurons of {name}" for name in self.columns[:-1]), "random neurons"]
        rows = [
            [name, number(own.plain.value, 3), *(_cell(cell) for cell in own.cells.values())]
            for name, own in self.tasks.items()
        ]
        figures = " and ".join(dict.fromkeys(own.figure for own in self.tasks.values()))
        foot = (
            f"{figures} (change) with {self.neurons:,} neurons of each layer perturbed by "
            f"{ablation_text(self.ablation)}; *: the 95% interval of the change excludes 0"
        )
        return "\n".join([*aligned(header, rows), foot])

    def plot(self) -> Any:
        """A heat map of plotly: tasks down, whose neurons are perturbed across; the colour is the change.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        named = {f"{name}: {number(own.plain.value, 3)}": own.cells for name, own in self.tasks.items()}
        changes = {name: {of: cell.change.value for of, cell in own.items()} for name, own in named.items()}
        words = {name: {of: _cell(cell) for of, cell in own.items()} for name, own in named.items()}
        most = max((abs(change) for own in changes.values() for change in own.values()), default=0) or 1
        return task_map(
            changes, words, title=f"Tasks without {100 * self.fraction:g}% of the neurons", down="task, unperturbed",
            across="perturbed are the neurons of", colours={"colorscale": "RdBu", "cmin": -most, "cmax": most},
        )  # fmt: skip


def skill_specificity(  # noqa: PLR0913
    model: Any,
    tasks: Sequence[Task] | Mapping[str, Task],
    scores: Mapping[str, Scores],
    *,
    prompts: Mapping[str, Sequence[Prompt]] | None = None,
    fraction: float = 0.1,
    ablation: Perturbation | Ablation = "gaussian",
    layers: Sequence[int] | None = None,
    random_trials: int = 5,
    figure: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> SkillSpecificity:
    """Measure each task with the best neurons of each task perturbed, and with as many random ones.

    If skills are apart, a task loses by its own neurons, on the diagonal, and not by those of others.

    Source: Wang et al., "Finding Skill Neurons in Pre-trained Transformer-based Language Models" (2022), section 4.3.

    Args:
        model: a TransformerLens model with MLPs; left as it was.
        tasks: their test examples are measured.
        scores: of the same neurons, by the name of the task that they are of.
        prompts: for each task by name its own trials; a task without any is run without a prompt.
        fraction: of the neurons of each layer.
        ablation: as of :func:`~tlprune.perturbation`.
        layers: those whose neurons are perturbed; by default all that have scores.
        random_trials: draws of random neurons in each trial.
        figure: which one; by default each task's own accuracy if it has one, else ``"accuracy"``.
        batch_size: examples per forward pass.
        seed: of the noise, the random neurons and the bootstrap.
        tell: is called with a line for each task.

    Raises:
        ValueError: there are no tasks or scores, the scores are of different neurons, prompts are of no task, or what
            :func:`~tlprune.perturbation` refuses.

    Example:
        >>> import torch
        >>> import tlprune as tp
        >>> planted = tp.planted("and")
        >>> used = torch.cat([block.mlp.W_out.norm(dim=1) for block in planted.model.blocks]).detach()
        >>> sites = tp.neurons(planted.model)
        >>> scores = {"and": tp.Scores(sites, used), "nothing": tp.Scores(sites, -used)}
        >>> found = skill_specificity(planted.model, {"and": planted.task}, scores, fraction=0.1, ablation="zero")
        >>> found["and"]["and"].value.value, found["and"]["nothing"].value.value
        (0.0, 1.0)
    """
    named = {name: task for name, task in by_name(tasks).items() if isinstance(task, Task)}
    trials = dict(prompts or {})
    _check(named, scores, trials)
    group, tables = same_neurons(scores, layers)
    count = count_of(fraction, group.width)
    perturbing = Perturbing(model, group, ablation, random_trials, batch_size, seed)
    orders = [places(values) for values in tables.values()]
    found: dict[str, TaskSpecificity] = {}
    for name, task in named.items():
        figures = runs_by_figure(perturbing.runs(task, trials.get(name, ()), orders, [0, count]))
        shown = accuracy_of(task, figures, figure)
        table = resampled(figures[shown], seed=seed)
        table = table.shaped(-1, len(orders) + random_trials, 2)
        found[name] = TaskSpecificity(shown, len(task.test), len(table.values), *_cells(table, list(scores)))
        if tell is not None:
            tell(f"{name}: {shown} without the neurons of {', '.join(scores)} and without random ones")
    told = perturbing.ablation(next(iter(named.values()))).as_dict()
    return SkillSpecificity(found, fraction, count, group.layers, random_trials, told)


def _check(tasks: Mapping[str, Task], scores: Mapping[str, Scores], prompts: Mapping[str, Any]) -> None:
    if RANDOM in scores:
        raise ValueError(
            f"The column {RANDOM!r} is that of random neurons but some scores are called so. Name them otherwise."
        )
    strange = [name for name in prompts if name not in tasks]
    if strange:
        raise ValueError(
            f"Prompts belong to tasks by name, {', '.join(tasks)}, but some are of {', '.join(strange)}. Use the names "
            "of the tasks."
        )


def _cells(table: Resampled, names: Sequence[str]) -> tuple[Interval, dict[str, Without]]:
    """From a figure by trial, order and whether it is perturbed: the unperturbed figure, and those without neurons."""
    every = slice(None)
    plain = table.at(every, 0, 0).mean
    own = {name: table.at(every, place, 1) for place, name in enumerate(names)}
    runs = {**own, RANDOM: table.at(every, slice(len(names), None), 1)}
    return plain.interval, {
        name: Without(one.mean.interval, one.mean.less(plain).interval, tuple(one.values.flatten().tolist()))
        for name, one in runs.items()
    }


def _flat(prefix: str, one: Interval) -> dict[str, float]:
    return {f"{prefix}{end}": value for end, value in vars(one).items()}


def _cell(one: Without) -> str:
    mark = "*" if one.change.sign else ""
    return f"{number(one.value.value, 3)} ({one.change.value:+.3f}{mark})"
