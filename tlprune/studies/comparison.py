"""Subnetworks of several methods at equal sparsity: how well they do a task, how near they are to the full model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.evaluation.table import aligned, number
from tlprune.learning.bootstrap import Interval, interval
from tlprune.learning.figures import answered, over_answers
from tlprune.learning.objectives import divergence
from tlprune.masking.ablation import Ablation
from tlprune.studies.collection import Run, Subnetworks
from tlprune.studies.examples import measured
from tlprune.studies.predictions import Predictions, predict
from tlprune.task import Task


@dataclass(frozen=True)
class Seeds:
    """A figure over the seeds of a method: their mean, and from the least to the greatest."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Seeds:
        """Of one value for each seed."""
        return Seeds(sum(values) / len(values), min(values), max(values))


@dataclass(frozen=True)
class Placed:
    """What the subnetworks of one method and sparsity do on one task.

    Attributes:
        task: its name.
        sparsity: fraction of the heads and MLPs that is removed.
        method: its name.
        subnetworks: how many there are, one for each seed.
        accuracy: share of test examples that are answered rightly.
        agreement: share of test examples to which the answer is the full model's, right or wrong.
        kl: KL(full || subnetwork) of the classes, mean over test examples, in nats; ``None`` where tokens are
            predicted.
        better: by how much the mean accuracy over seeds lies above that of the first method; the interval is of the
            choice of examples, paired, and not of the seeds. ``None`` of the first method itself.
    """

    task: str
    sparsity: float
    method: str
    subnetworks: int
    accuracy: Seeds
    agreement: Seeds
    kl: Seeds | None
    better: Interval | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "better": None if self.better is None else self.better.as_dict()}


@dataclass(frozen=True)
class StudyComparison:
    """Subnetworks of several methods on several tasks, at the sparsities that all of the methods have.

    Attributes:
        methods: their names; the others are compared with the first.
        full: accuracy of the full model on each task.
        examples: how many test examples each task has.
        rows: by task, then sparsity, then method.
    """

    methods: tuple[str, ...]
    full: Mapping[str, float]
    examples: Mapping[str, int]
    rows: tuple[Placed, ...]

    def at(self, task: str, sparsity: float) -> dict[str, Placed]:
        """The methods at one place, by name."""
        return {row.method: row for row in self.rows if (row.task, row.sparsity) == (task, sparsity)}

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        rows = [row.as_dict() for row in self.rows]
        return {"methods": list(self.methods), "full": {**self.full}, "examples": {**self.examples}, "rows": rows}

    def __str__(self) -> str:
        header = [
            "task",
            "removed",
            "method",
            "seeds",
            "accuracy",
            "agreement",
            "KL (nats)",
            f"less {self.methods[0]} (points)",
        ]
        full = [[task, "0%", "full model", "", _percent(share), "100.0", "", ""] for task, share in self.full.items()]
        lines = []
        for own in full:
            lines += [own, *(_cells(row) for row in self.rows if row.task == own[0])]
        return "\n".join(aligned(header, lines))

    def plot(self) -> Any:
        """Accuracy against sparsity for each task, a line for each method with a band from worst to best seed."""
        from tlprune.studies.comparison_chart import comparison_chart

        return comparison_chart(self)


def compare_studies(
    studies: Mapping[str, Subnetworks],
    model: Any,
    tasks: Mapping[str, Task],
    *,
    ablation: Ablation | None = None,
    out: Mapping[str, str | Path] | None = None,
    batch_size: int = 64,
    tell: Callable[[str], None] | None = None,
) -> StudyComparison:
    """Accuracy, agreement with the full model and KL of several methods' subnetworks at equal sparsity.

    Args:
        studies: subnetworks of one model and the same sites, by the name of the method; the others are compared with
            the first.
        model: the model; left as it was.
        tasks: with classes or tokens as answers, by the name that tables give them; their test examples are used.
        ablation: what replaces what is removed, the same for all, such as the means of a study; by default that of
            each circuit's discovery, where the circuits tell it in full.
        out: a folder for each method that keeps its predictions, as for :func:`~tlprune.predict`.
        batch_size: examples per forward pass.
        tell: is called with a line for each subnetwork.

    Raises:
        ValueError: there are fewer than two methods or no tasks, or methods have other sites or no sparsity in
            common; or as :func:`~tlprune.predict` raises.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("induction")
        >>> methods = {"pruning": tp.HeuristicCore(recipe="short", steps=40), "random": tp.RandomNodes()}
        >>> studies = {
        ...     name: tp.subnetworks(planted.model, planted.task, method, sparsities=[0.8], seeds=[0, 1])
        ...     for name, method in methods.items()
        ... }
        >>> found = compare_studies(studies, planted.model, {"own": planted.task}, ablation=tp.Resample())
        >>> at = found.at("own", 0.8)
        >>> at["pruning"].accuracy.mean, at["random"].better.sign
        (1.0, -1)
    """
    sparsities = _common(studies)
    if not tasks:
        raise ValueError("A comparison needs at least one task but got none. Give some by name: {'mnli': task}.")
    options = {"ablation": measured(model, ablation), "batch_size": batch_size}
    rows, full, folders = [], {}, out or {}
    for task, own in tasks.items():
        found = {
            name: predict(model, networks, own, out=folders.get(name), tell=_telling(tell, name), **options)
            for name, networks in studies.items()
        }
        full[task] = float(next(iter(found.values())).correct().mean())
        for sparsity in sparsities:
            rows += _rows(task, sparsity, found)
    return StudyComparison((*studies,), full, {name: len(own.test) for name, own in tasks.items()}, tuple(rows))


def _telling(tell: Callable[[str], None] | None, name: str) -> Callable[[str], None] | None:
    return None if tell is None else lambda line: tell(f"{name}: {line}")


def _rows(task: str, sparsity: float, found: Mapping[str, Predictions]) -> list[Placed]:
    first = _over_seeds(next(iter(found.values())), sparsity)
    rows = []
    for name, own in found.items():
        runs = _runs(own, sparsity)
        better = interval(lambda one, other: one - other, _over_seeds(own, sparsity), first) if rows else None
        rows.append(
            Placed(
                task=task,
                sparsity=sparsity,
                method=name,
                subnetworks=len(runs),
                accuracy=Seeds.of([float(own.correct(run).mean()) for run in runs]),
                agreement=Seeds.of([float(_agrees(own, run).mean()) for run in runs]),
                kl=None if own.model.logits is None else Seeds.of([_kl(own, run) for run in runs]),
                better=better,
            )
        )
    return rows


def _runs(predictions: Predictions, sparsity: float) -> list[Run]:
    return [run for run in predictions.runs if run.sparsity == sparsity]


def _over_seeds(predictions: Predictions, sparsity: float) -> Float[Tensor, "example"]:
    """The share of seeds that answer each example rightly."""
    return torch.stack([predictions.correct(run).double() for run in _runs(predictions, sparsity)]).mean(0)


def _agrees(predictions: Predictions, run: Run) -> Float[Tensor, "example"]:
    same = (predictions.predicted(run) == predictions.predicted()).float()
    return over_answers(same, answered(predictions.batch))


def _kl(predictions: Predictions, run: Run) -> float:
    logits, full = predictions.logits[run].double(), predictions.full.double()
    return float(divergence(logits[:, None], full.log_softmax(-1)[:, None]).mean())


def _common(studies: Mapping[str, Subnetworks]) -> list[float]:
    if len(studies) < 2:
        raise ValueError(
            f"A comparison needs two methods or more but got {', '.join(studies) or 'none'}. Give subnetworks of each."
        )
    sites = {name: own.sites for name, own in studies.items()}
    first, *others = sites
    different = [name for name in others if sites[name] != sites[first]]
    if different:
        raise ValueError(
            f"Sparsity is equal over the same heads and MLPs only, but {first} has {sites[first]} and {different[0]} "
            f"has {sites[different[0]]}, by name or order. Give the methods one pattern, such as 'a*|m*'."
        )
    known = [own.sparsities for own in studies.values()]
    common = [sparsity for sparsity in known[0] if all(sparsity in others for others in known)]
    if not common:
        lists = "; ".join(f"{name} {', '.join(f'{one:g}' for one in own.sparsities)}" for name, own in studies.items())
        raise ValueError(f"The methods need a sparsity in common but have: {lists}. Prune to the same ones.")
    return common


def _cells(row: Placed) -> list[str]:
    better = "" if row.better is None else _signed(row.better)
    kl = "" if row.kl is None else _ranged(row.kl, 1, 3)
    figures = [_ranged(row.accuracy, 100, 1), _ranged(row.agreement, 100, 1), kl, better]
    return [row.task, f"{100 * row.sparsity:g}%", row.method, str(row.subnetworks), *figures]


def _ranged(figure: Seeds, scale: float, digits: int) -> str:
    mean, low, high = (number(scale * value, digits) for value in (figure.mean, figure.low, figure.high))
    return mean if low == high else f"{mean} [{low}, {high}]"


def _signed(better: Interval) -> str:
    value, low, high = (number(100 * one, 1) for one in (better.value, better.low, better.high))
    return f"{value} [{low}, {high}]"


def _percent(share: float) -> str:
    return number(100 * share, 1)
