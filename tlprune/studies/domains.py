"""Accuracy of a model and its subnetworks in the domain that they were found in, and out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.learning.bootstrap import RESAMPLES, Interval, bounds, resampled_means
from tlprune.masking.ablation import Ablation
from tlprune.studies.collection import Run
from tlprune.studies.domain_plots import bars_of_seeds, lines_by_sparsity, violins_of_seeds
from tlprune.studies.domain_tables import accuracy_table, spread_sentences, spread_table
from tlprune.studies.examples import measured
from tlprune.studies.parts import Part, parts_of, subcases_of
from tlprune.studies.predictions import Predictions, predict
from tlprune.studies.seed_spread import SeedSpread, seed_spread
from tlprune.task import Task


@dataclass(frozen=True)
class Domain:
    """Accuracy on one set of test examples.

    Attributes:
        task: what the task of these examples is called.
        part: which of its examples these are; ``None`` for all.
        subcase: whether the part is a sub-case of the task.
        examples: how many there are.
        full: of the full model, with a 95% bootstrap interval over examples.
        subnetworks: of each subnetwork, likewise.
        spreads: over the seeds of each sparsity.
    """

    task: str
    part: str | None
    subcase: bool
    examples: int
    full: Interval
    subnetworks: Mapping[Run, Interval]
    spreads: Mapping[float, SeedSpread]

    @property
    def name(self) -> str:
        """Such as ``hans`` or ``hans: non-entailment``."""
        return self.task if self.part is None else f"{self.task}: {self.part}"

    def at(self, sparsity: float) -> dict[Run, Interval]:
        """The subnetworks of one sparsity."""
        return {run: one for run, one in self.subnetworks.items() if run.sparsity == sparsity}

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        runs = [{**run._asdict(), **one.as_dict()} for run, one in self.subnetworks.items()]
        spreads = [{"sparsity": sparsity, **one.as_dict()} for sparsity, one in self.spreads.items()]
        told = {"task": self.task, "part": self.part, "subcase": self.subcase, "examples": self.examples}
        return {**told, "full": self.full.as_dict(), "subnetworks": runs, "by_sparsity": spreads}


@dataclass(frozen=True)
class Domains:
    """Accuracy of a model and its subnetworks by domain; printing it gives tables.

    Attributes:
        within: the task that the subnetworks were found on, or that stands for it.
        domains: by name, in order: each task, then its parts, then its sub-cases.
        ablation: what replaced what was removed, as plain data; ``None`` for that of each circuit's discovery.
    """

    within: str
    domains: Mapping[str, Domain]
    ablation: Mapping[str, Any] | None = None

    def __getitem__(self, name: str) -> Domain:
        if name not in self.domains:
            raise ValueError(
                f"There are domains {', '.join(self.domains)} but {name!r} was asked for. Choose one of these."
            )
        return self.domains[name]

    @property
    def main(self) -> list[str]:
        """Names of all but the sub-cases."""
        return [name for name, one in self.domains.items() if not one.subcase]

    @property
    def sparsities(self) -> tuple[float, ...]:
        """The sparsities, lowest first."""
        return tuple(self.domains[self.within].spreads)

    def subcases(self, task: str) -> list[Domain]:
        """The sub-cases of one task."""
        return [one for one in self.domains.values() if one.task == task and one.subcase]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        found = {name: one.as_dict() for name, one in self.domains.items()}
        return {"within": self.within, "ablation": self.ablation and dict(self.ablation), "domains": found}

    def __str__(self) -> str:
        return "\n\n".join([accuracy_table(self), spread_table(self), spread_sentences(self)])

    def plot(self, names: list[str] | None = None) -> Any:
        """Accuracy against sparsity, the full model at 0: mean over seeds, with all of them as a band.

        Args:
            names: domains to show; by default all but the sub-cases.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        return lines_by_sparsity(self, [self[name] for name in names or self.main])

    def plot_spread(self, names: list[str] | None = None) -> Any:
        """A violin over the seeds of each domain and sparsity; arguments are those of :meth:`plot`."""
        return violins_of_seeds(self, [self[name] for name in names or self.main])

    def plot_seeds(self, sparsity: float, names: list[str] | None = None) -> Any:
        """A bar for each seed of one sparsity, with its interval over examples; names are those of :meth:`plot`."""
        if sparsity not in self.sparsities:
            known = ", ".join(f"{one:g}" for one in self.sparsities)
            raise ValueError(f"There are sparsities {known} but {sparsity:g} was asked for. Choose one of these.")
        return bars_of_seeds([self[name] for name in names or self.main], sparsity)


def domains(
    model: Any,
    subnetworks: Mapping[Run, Circuit],
    tasks: Mapping[str, Task],
    *,
    ablation: Ablation | None = None,
    within: str | None = None,
    parts: Mapping[str, Mapping[str, Part]] | None = None,
    out: str | Path | None = None,
    batch_size: int = 64,
    resamples: int = RESAMPLES,
    tell: Callable[[str], None] | None = None,
) -> Domains:
    """Accuracy of a model and its subnetworks on the test examples of several tasks, in and out of domain.

    Subnetworks of several seeds that are alike in domain may differ widely out of it. How much of that the choice of
    test examples alone would give is told beside it, for few examples put equal networks apart, too.

    Args:
        model: a TransformerLens model.
        subnetworks: such as :func:`tlprune.subnetworks` gives.
        tasks: by the name that tables give them.
        ablation: what replaces what is removed; as for :func:`tlprune.predict`.
        within: the name of the task in whose domain the subnetworks were found; by default the first.
        parts: by name of a task, parts of it by name, and their classes: ``{"pairs": {"adversarial": "no"}}``. Of
            HANS and PAWS-QQP those of their authors are taken where none are given. Sub-cases that a task tells apart
            are always looked at.
        out: a folder that keeps the predictions; as for :func:`tlprune.predict`.
        batch_size: examples per forward pass.
        resamples: of the bootstrap over examples.
        tell: is called with a line for each subnetwork and task.

    Raises:
        ValueError: there are no tasks, one that is named is not there, or as :func:`tlprune.predict`.

    Source: Bhaskar, Friedman, Chen, "The Heuristic Core" (ACL 2024), section 4.

    Example:
        >>> import tlprune as tp
        >>> from tlprune.studies.collection import Run
        >>> planted = tp.planted("copy")
        >>> found = domains(planted.model, {Run(0.5, 0): planted.circuit}, {"copy": planted.task})
        >>> print(found["copy"].full, found["copy"].at(0.5)[0.5, 0])
        1 [1, 1] 1 [1, 1]
    """
    within = _checked(tasks, within, parts or {})
    ablation = measured(model, ablation)
    options = {"ablation": ablation, "out": out, "batch_size": batch_size, "tell": tell}
    found: dict[str, Domain] = {}
    for name, task in tasks.items():
        rows = _rows(task, (parts or {}).get(name))  # what cannot be told apart is said before anything is computed
        predictions = predict(model, subnetworks, task, **options)
        for part, (subcase, own) in rows.items():
            domain = _domain(name, part, subcase, predictions, own, resamples)
            found[domain.name] = domain
    return Domains(within, found, None if ablation is None else ablation.as_dict())


def _checked(tasks: Mapping[str, Task], within: str | None, parts: Mapping[str, Any]) -> str:
    """The name of the task in domain."""
    if not tasks:
        raise ValueError("Domains need at least one task but got none. Give some by name: {'mnli': task}.")
    within = next(iter(tasks)) if within is None else within
    strangers = sorted({within, *parts} - {*tasks})
    if strangers:
        raise ValueError(f"The tasks are {', '.join(tasks)} but {', '.join(strangers)} was named. Use their names.")
    return within


def _rows(task: Task, parts: Mapping[str, Part] | None) -> dict[str | None, tuple[bool, Bool[Tensor, "example"]]]:
    """All test examples, those of each part, and those of each sub-case, which may not be called alike."""
    own, kinds = parts_of(task, parts), subcases_of(task)
    if both := sorted({*own} & {*kinds}):
        raise ValueError(f"Task {task.name!r} has sub-cases {', '.join(both)} already. Call the parts otherwise.")
    everything = torch.ones(len(task.test), dtype=torch.bool)
    found: dict[str | None, tuple[bool, Tensor]] = {None: (False, everything)}
    found |= {name: (False, rows) for name, rows in own.items()}
    return found | {name: (True, rows) for name, rows in kinds.items()}


def _domain(
    name: str, part: str | None, subcase: bool, predictions: Predictions, rows: Tensor, resamples: int
) -> Domain:
    columns = [predictions.correct(run)[rows] for run in (None, *predictions.runs)]
    table = torch.stack(columns, -1).double()
    drawn = resampled_means(table, resamples=resamples)
    full, *others = _intervals(table, drawn)
    sparsities = sorted({run.sparsity for run in predictions.runs})
    spreads = {
        sparsity: seed_spread(table[:, own], drawn[:, own])
        for sparsity in sparsities
        for own in [[1 + place for place, run in enumerate(predictions.runs) if run.sparsity == sparsity]]
    }
    found = dict(zip(predictions.runs, others, strict=True))
    return Domain(name, part, subcase, len(table), full, found, spreads)


def _intervals(table: Float[Tensor, "example run"], drawn: Float[Tensor, "resample run"]) -> list[Interval]:
    low, high = bounds(drawn)
    columns = zip(table.mean(0).tolist(), low.tolist(), high.tolist(), strict=True)
    return [Interval(*column) for column in columns]
