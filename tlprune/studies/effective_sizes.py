"""Effective sizes over the checkpoints of a fine-tuning, in and out of domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.evaluation.table import aligned, number
from tlprune.studies.collection import Run
from tlprune.studies.effective_size import MARGIN, EffectiveSize, effective_size
from tlprune.studies.predictions import Predictions

IN, OUT, BOTH = "in domain", "out of domain", "both"
_COLOURS = {IN: "#1f77b4", OUT: "#d62728", BOTH: "#7f7f7f"}


@dataclass(frozen=True)
class EffectiveSizes:
    """How large a model needs to be, by step of its fine-tuning and by domain; printing it gives a table.

    Attributes:
        cases: by domain: the tasks, or sub-cases of tasks, whose accuracies are averaged, each weighing the same.
        sizes: by step, in order, then by domain; each has the accuracy of the full model, too.
        seeds: by step: the seeds that all of its sparsities have, which alone are used.
    """

    cases: Mapping[str, tuple[str, ...]]
    sizes: Mapping[int, Mapping[str, EffectiveSize]]
    seeds: Mapping[int, tuple[int | None, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        steps = [
            {
                "step": step,
                "seeds": list(self.seeds[step]),
                "domains": {name: one.as_dict() for name, one in own.items()},
            }
            for step, own in self.sizes.items()
        ]
        return {"cases": {name: list(cases) for name, cases in self.cases.items()}, "steps": steps}

    def __str__(self) -> str:
        header = ["step", "domain", "accuracy", "seeds", "effective size", "95%", "mean of each seed's"]
        rows = [_cells(step, name, one) for step, own in self.sizes.items() for name, one in own.items()]
        told = [f"{name}: {', '.join(cases)}" for name, cases in self.cases.items() if name != BOTH]
        return "\n".join([*aligned(header, rows), *told])

    def plot(self) -> Any:
        """Lines of plotly over steps: effective size with its intervals, and the full model's accuracy (dashed).

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        library = plotly()
        figure, steps = library.Figure(), [*self.sizes]
        for name in self.cases:
            own = [self.sizes[step][name] for step in steps]
            look = {"x": steps, "legendgroup": name, "mode": "lines+markers"}
            line = {"color": _COLOURS[name]}
            size = {"y": [one.percent for one in own], "error_y": _bars(own), "name": f"effective size, {name}"}
            figure.add_trace(library.Scatter(**look, **size, line=line))
            accuracy = {"y": [100 * one.full for one in own], "name": f"accuracy of the full model, {name}"}
            figure.add_trace(library.Scatter(**look, **accuracy, line={**line, "dash": "dash"}))
        title = "Effective size and accuracy over fine-tuning"
        figure.update_layout(template=TEMPLATE, title=title, xaxis_title="fine-tuning step", yaxis_title="%")
        return figure.update_yaxes(range=[0, 103])


def effective_sizes(
    checkpoints: Mapping[int, Sequence[Predictions]],
    *,
    in_domain: Sequence[str],
    subcases: Sequence[str] = (),
    margin: float = MARGIN,
) -> EffectiveSizes:
    """The effective size of each checkpoint in domain, out of domain, and of both together.

    The accuracy of a domain is the mean over its tasks, each weighing the same. Out of domain a model often begins with
    the majority class, which a small part of it can do; its effective size there grows as it learns to generalise.

    Args:
        checkpoints: by step of the fine-tuning: what the model of this step and its subnetworks predict on each task.
        in_domain: names of the tasks that are in domain; all others are out of domain.
        subcases: patterns of the sub-cases to look at where a task has some, such as ``"ln_*"`` of HANS; each then
            weighs as much as a task. Without, a task counts as a whole.
        margin: of :func:`effective_size`.

    Raises:
        ValueError: there are no checkpoints, they are of different tasks, no task is in domain, no sub-case has such a
            name, or no seed is there at all sparsities.

    Source: Bhaskar, Friedman, Chen, "The Heuristic Core" (ACL 2024), section 6. It uses four sub-cases of HANS and the
    pairs of PAWS-QQP that are no paraphrases.

    Example:
        >>> import tlprune as tp
        >>> from tlprune.studies.collection import Run
        >>> planted = tp.planted("copy")
        >>> circuits = {Run(0.9, 0): planted.circuit, Run(0.95, 0): planted.circuit - planted.circuit}
        >>> told = tp.predict(planted.model, circuits, planted.task)
        >>> found = effective_sizes({141: [told]}, in_domain=[told.task])
        >>> found.sizes[141]["in domain"].percent
        10.0
    """
    steps = sorted(checkpoints)
    tables = {step: _Accuracies.of(checkpoints[step], subcases) for step in steps}
    cases = _domains(tables, in_domain)
    sizes = {step: {name: tables[step].size(own, margin) for name, own in cases.items()} for step in steps}
    named = {name: tuple(f"{task}: {kind}" if kind else task for task, kind in own) for name, own in cases.items()}
    return EffectiveSizes(named, sizes, {step: tables[step].seeds for step in steps})


Key = tuple[str, str | None]


@dataclass(frozen=True)
class _Accuracies:
    """Accuracies by case, then by run; ``None`` is the full model."""

    values: Mapping[Key, Mapping[Run | None, float]]

    @staticmethod
    def of(given: Sequence[Predictions], subcases: Sequence[str]) -> _Accuracies:
        return _Accuracies({key: own for one in given for key, own in _measured(one, subcases)})

    @property
    def runs(self) -> set[Run]:
        return set.intersection(*({run for run in own if run is not None} for own in self.values.values()))

    @property
    def seeds(self) -> tuple[int | None, ...]:
        by_sparsity: dict[float, set[int | None]] = {}
        for run in self.runs:
            by_sparsity.setdefault(run.sparsity, set()).add(run.seed)
        common = set.intersection(*by_sparsity.values()) if by_sparsity else set()
        return tuple(sorted(common, key=lambda seed: -1 if seed is None else seed))

    def size(self, cases: Sequence[Key], margin: float) -> EffectiveSize:
        sparsities = sorted({run.sparsity for run in self.runs})
        found = {one: [self._mean(cases, Run(one, seed)) for seed in self.seeds] for one in sparsities}
        return effective_size(found, self._mean(cases, None), margin=margin)

    def _mean(self, cases: Sequence[Key], run: Run | None) -> float:
        return sum(self.values[case][run] for case in cases) / len(cases)


def _measured(one: Predictions, patterns: Sequence[str]) -> Iterator[tuple[Key, dict[Run | None, float]]]:
    correct = {run: one.correct(run).double().cpu() for run in (None, *one.runs)}
    labels = one.batch.labels
    if not patterns or labels is None or not one.label_names:
        yield (one.task, None), {run: float(values.mean()) for run, values in correct.items()}
        return
    named = [(kind, name) for kind, name in enumerate(one.label_names) if bool((labels == kind).any())]
    chosen = [(kind, name) for kind, name in named if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not chosen:
        known = ", ".join(name for _, name in named)
        raise ValueError(f"No sub-case of {one.task} is called {' or '.join(patterns)}. There are {known}. Use these.")
    for kind, name in chosen:
        rows = (labels == kind).cpu()
        yield (one.task, name), {run: _mean_of(values, rows) for run, values in correct.items()}


def _mean_of(values: Float[Tensor, "example"], rows: Tensor) -> float:
    return float(values[rows].mean())


def _domains(tables: Mapping[int, _Accuracies], in_domain: Sequence[str]) -> dict[str, list[Key]]:
    kinds = {tuple(table.values) for table in tables.values()}
    if len(kinds) != 1 or () in kinds:
        given = "; ".join(f"{step}: {', '.join(task for task, _ in table.values)}" for step, table in tables.items())
        raise ValueError(
            f"Effective sizes need the same tasks at each checkpoint but got {given or 'no checkpoint'}. Give "
            "predictions of each task at each step."
        )
    (cases,) = kinds
    inside, outside = ([key for key in cases if (key[0] in in_domain) == wanted] for wanted in (True, False))
    if not inside:
        known = ", ".join(dict.fromkeys(task for task, _ in cases))
        raise ValueError(
            f"Tasks are {known} but in domain should be {', '.join(in_domain) or 'none'}. Name some of these."
        )
    return {IN: inside, OUT: outside, BOTH: [*cases]} if outside else {IN: inside}


def _cells(step: int, name: str, one: EffectiveSize) -> list[str]:
    interval = "" if one.interval is None else f"[{one.interval.low:g}, {one.interval.high:g}]"
    sizes = [f"{one.percent:g}%", interval, f"{number(one.mean_each, 1)}%"]
    return [str(step), name, number(one.full, 3), str(len(one.each)), *sizes]


def _bars(sizes: Sequence[EffectiveSize]) -> dict[str, Any]:
    intervals = [(one.percent, one.percent if one.interval is None else one.interval.low,
                  one.percent if one.interval is None else one.interval.high) for one in sizes]  # fmt: skip
    high, low = [high - value for value, _, high in intervals], [value - low for value, low, _ in intervals]
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low}
