"""Accuracy, or another figure, apart for each kind of example, such as the 30 sub-cases of HANS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from tlprune.evaluation.baselines import Evaluation
from tlprune.evaluation.table import aligned, number
from tlprune.learning.bootstrap import Interval, interval
from tlprune.task import Task


@dataclass(frozen=True)
class Subcases:
    """One figure by kind of example and by set of sites; printing it gives a table.

    Attributes:
        figure: which one.
        counts: examples of each kind.
        intervals: by kind, then by row of the evaluation: full model, circuit and so on.
    """

    figure: str
    counts: Mapping[str, int]
    intervals: Mapping[str, Mapping[str, Interval]]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        kinds = {
            kind: {"examples": self.counts[kind]} | {name: one.as_dict() for name, one in found.items()}
            for kind, found in self.intervals.items()
        }
        return {"figure": self.figure, "kinds": kinds}

    def __str__(self) -> str:
        names = [*next(iter(self.intervals.values()))]
        rows = [
            [kind, f"{self.counts[kind]:,}", *(number(found[name].value, 3) for name in names)]
            for kind, found in self.intervals.items()
        ]
        return "\n".join([*aligned(["", "examples", *names], rows), f"{self.figure} on the test examples of each kind"])


def subcases(evaluation: Evaluation, task: Task, *, figure: str = "accuracy") -> Subcases:
    """A figure of an evaluation for each kind of test example, with 95% bootstrap intervals over these.

    Args:
        evaluation: of this task's test examples, all of them in their order.
        task: says which kind each is of.
        figure: one that is a mean over examples.

    Raises:
        ValueError: the task tells no kinds apart, or the evaluation is of other examples.

    Example:
        >>> import dataclasses
        >>> import torch
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> stream = planted.task.streams["main"]
        >>> kinds = torch.arange(len(stream.test)) % 2
        >>> test = dataclasses.replace(stream.test, labels=kinds)
        >>> task = dataclasses.replace(
        ...     planted.task,
        ...     streams={"main": dataclasses.replace(stream, test=test)},
        ...     label_names=("even", "odd"),
        ... )
        >>> found = tp.subcases(tp.evaluate(planted.model, planted.circuit, task), task)
        >>> found.counts, found.intervals["odd"]["circuit"].value
        ({'even': 32, 'odd': 32}, 1.0)
    """
    labels = task.test.labels
    if labels is None or not task.label_names:
        raise ValueError(f"Task {task.name!r} tells no kinds of examples apart. Use one that does, such as hans.")
    if len(labels) != len(evaluation.rows[0].performance):
        raise ValueError(
            f"The evaluation is of {len(evaluation.rows[0].performance)} examples but task {task.name!r} has "
            f"{len(labels)}. Evaluate on this task."
        )
    rows = {name: _rows_of(labels, kind) for kind, name in enumerate(task.label_names)}
    rows = {name: index for name, index in rows.items() if len(index)}
    found = {name: _intervals(evaluation, index, figure) for name, index in rows.items()}
    return Subcases(figure, {name: len(index) for name, index in rows.items()}, found)


def _rows_of(labels: Int[Tensor, "example"], kind: int) -> Int[Tensor, "_"]:
    return (labels == kind).nonzero().flatten()


def _intervals(evaluation: Evaluation, index: Int[Tensor, "_"], figure: str) -> dict[str, Interval]:
    values = {row.name: row.performance.figure(figure)[index] for row in evaluation.rows}
    return {name: interval(_mean, own) for name, own in values.items()}


def _mean(mean: Tensor) -> Tensor:
    return mean
