"""How often subnetworks predict the same as each other and as the full model, and how often they would by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.evaluation.table import aligned, number
from tlprune.learning.bootstrap import Interval, bounds, finite, resampled_means
from tlprune.learning.figures import answered
from tlprune.studies.collection import Run
from tlprune.studies.predictions import Predictions

FULL = "full model"


@dataclass(frozen=True)
class Alike:
    """How often the subnetworks of one sparsity predict the same.

    Attributes:
        sparsity: fraction removed.
        subnetworks: how many there are.
        same: mean over their pairs of the fraction of examples of which both predict the same class, with its 95%
            interval by the bootstrap over examples; ``None`` for a single subnetwork.
        kappa: mean over their pairs of Cohen's kappa; ``None`` without pairs of which it is defined.
        with_model: as ``same``, of each with the full model.
        kappa_with_model: as ``kappa``, of each with the full model.
    """

    sparsity: float
    subnetworks: int
    same: Interval | None
    kappa: float | None
    with_model: Interval
    kappa_with_model: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        intervals = {"same": self.same, "with_model": self.with_model}
        return {**vars(self), **{name: None if one is None else one.as_dict() for name, one in intervals.items()}}


@dataclass(frozen=True)
class Case:
    """Who predicts the same as whom on some examples.

    Attributes:
        task: the task that they are of.
        subcase: the kind of its examples; ``None`` for all of them.
        examples: how many there are.
        runs: who predicts: the full model, ``None``, then the subnetworks in order.
        same: fraction of examples of which two predict the same class.
        chance: what it would be if each predicted its classes as often as it does, but blindly.
        rows: one for each sparsity.
    """

    task: str
    subcase: str | None
    examples: int
    runs: tuple[Run | None, ...]
    same: Float[Tensor, "run run"]
    chance: Float[Tensor, "run run"]
    rows: tuple[Alike, ...]

    @property
    def name(self) -> str:
        """Task and sub-case."""
        return self.task if self.subcase is None else f"{self.task}: {self.subcase}"

    @property
    def kappa(self) -> Float[Tensor, "run run"]:
        """Cohen's kappa, ``(same - chance) / (1 - chance)``; not a number where both predict the same class alone."""
        return _kappa(self.same, self.chance)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "task": self.task,
            "subcase": self.subcase,
            "examples": self.examples,
            "runs": [_named(run) for run in self.runs],
            "same": self.same.tolist(),
            "kappa": [[finite(value) for value in row] for row in self.kappa.tolist()],
            "sparsities": [row.as_dict() for row in self.rows],
        }


@dataclass(frozen=True)
class Agreement:
    """Who predicts the same as whom, by task and sub-case; printing it gives a table.

    Attributes:
        cases: each task, with its sub-cases behind it.
    """

    cases: tuple[Case, ...]

    def __getitem__(self, name: str) -> Case:
        """One case by its name, such as ``"hans"``.

        Raises:
            ValueError: there is none of this name.
        """
        for case in self.cases:
            if case.name == name:
                return case
        known = ", ".join(case.name for case in self.cases)
        raise ValueError(f"There is agreement on {known} but {name!r} was asked for. Name one of these.")

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"cases": [case.as_dict() for case in self.cases]}

    def __str__(self) -> str:
        header = ["", "examples", "removed", "same", "95%", "kappa", "as the model", "95%", "kappa"]
        rows = [_cells(case, row) for case in self.cases for row in case.rows]
        return "\n".join([*aligned(header, rows), "mean over pairs of subnetworks, and of each with the full model"])

    def plot(self) -> Any:
        """Heat maps of plotly side by side: for each task who agrees with whom, then its sub-cases by sparsity.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        library = plotly()
        from plotly.subplots import make_subplots

        panels = [panel for task in dict.fromkeys(case.task for case in self.cases) for panel in self._panels(task)]
        titles = [title for title, _ in panels]
        figure = make_subplots(1, len(panels), subplot_titles=titles, horizontal_spacing=0.12 / len(panels) + 0.02)
        for column, (_, told) in enumerate(panels, start=1):
            shared = {"zmin": 0, "zmax": 1, "colorscale": "Blues", "showscale": column == len(panels)}
            figure.add_trace(library.Heatmap(**told, **shared), row=1, col=column)
        figure.update_xaxes(type="category")
        figure.update_yaxes(type="category", autorange="reversed")
        most = max(len(told["y"]) for _, told in panels)
        title = "Fraction of examples of which two predict the same class"
        return figure.update_layout(template=TEMPLATE, title=title, height=200 + 24 * most)

    def _panels(self, task: str) -> list[tuple[str, dict[str, Any]]]:
        whole, *parts = [case for case in self.cases if case.task == task]
        names = [_named(run) for run in whole.runs]
        hover = "%{y} and %{x}: %{z:.3f}, kappa %{customdata}<extra></extra>"
        kappas = [[number(value, 3) for value in row] for row in whole.kappa.tolist()]
        pairs = {"x": names, "y": names, "z": whole.same.tolist(), "customdata": kappas, "hovertemplate": hover}
        if not parts:
            return [(task, pairs)]
        columns = [f"{100 * row.sparsity:g}%" for row in whole.rows]
        means = [[None if row.same is None else row.same.value for row in case.rows] for case in parts]
        kinds = {"x": columns, "y": [case.subcase for case in parts], "z": means}
        hover = "%{y}, %{x} removed: %{z:.3f}<extra></extra>"
        return [(task, pairs), (f"{task}: mean over pairs, by sparsity", {**kinds, "hovertemplate": hover})]


def agreement(predictions: Predictions | Sequence[Predictions]) -> Agreement:
    """How often subnetworks predict the same class as each other and as the full model.

    Two that predict the majority class most of the time agree often without having anything in common; Cohen's kappa is
    what is left of agreement beyond that. Classes that a task takes for one, such as neutral and contradiction in HANS,
    count as the same; of several answers all must be. Tasks with sub-cases have them apart as well.

    Args:
        predictions: of the same subnetworks, one for each task, in and out of domain.

    Raises:
        ValueError: there are none, or several of one task.

    Source: Cohen, "A coefficient of agreement for nominal scales" (1960).

    Example:
        >>> import tlprune as tp
        >>> from tlprune.studies.collection import Run
        >>> planted = tp.planted("copy")
        >>> circuits = {Run(0.5, 0): planted.circuit, Run(0.5, 1): planted.circuit - planted.circuit}
        >>> alike = agreement(tp.predict(planted.model, circuits, planted.task)).cases[0]
        >>> alike.same[0, 1].item(), alike.kappa[0, 2].item() < 0.5  # with the full model
        (1.0, True)
    """
    given = [predictions] if isinstance(predictions, Predictions) else list(predictions)
    names = [one.task for one in given]
    if not given or len({*names}) < len(names):
        raise ValueError(
            f"Agreement needs predictions of one task or several, each once, but got {', '.join(names) or 'none'}. "
            "Give tp.predict(...) of each task."
        )
    return Agreement(tuple(case for one in given for case in _cases(one)))


def _cases(predictions: Predictions) -> list[Case]:
    codes = _codes(predictions)
    found = [_case(predictions, None, codes)]
    labels = predictions.batch.labels
    for kind, name in enumerate(predictions.label_names if labels is not None else ()):
        own = codes[:, (labels == kind).cpu()]
        if own.shape[1]:
            found.append(_case(predictions, name, own))
    return found


def _codes(predictions: Predictions) -> Int[Tensor, "run example"]:
    """A number for what each, the full model first, predicts of each example: equal where they predict the same."""
    there, accepted = answered(predictions.batch).cpu(), predictions.batch.accepted
    predicted = torch.stack([predictions.predicted(run).cpu() for run in (None, *predictions.runs)])
    if accepted is not None:
        _, meaning = accepted.cpu().int().T.unique(dim=0, return_inverse=True)
        predicted = meaning[predicted]
    rows = torch.where(there, predicted, -1).flatten(0, 1)
    return rows.unique(dim=0, return_inverse=True)[1].view(predicted.shape[:2])


def _case(predictions: Predictions, subcase: str | None, codes: Int[Tensor, "run example"]) -> Case:
    runs = (None, *predictions.runs)
    often = torch.nn.functional.one_hot(codes, int(codes.max()) + 1).double().mean(1)
    same = torch.stack([(codes == own).double().mean(1) for own in codes])
    chance = often @ often.T
    return Case(predictions.task, subcase, codes.shape[1], runs, same, chance, _rows(runs, codes, same, chance))


def _rows(
    runs: Sequence[Run | None],
    codes: Int[Tensor, "run example"],
    same: Float[Tensor, "run run"],
    chance: Float[Tensor, "run run"],
) -> tuple[Alike, ...]:
    kappa, found = _kappa(same, chance), []
    for sparsity in dict.fromkeys(run.sparsity for run in runs if run is not None):
        own = torch.tensor([place for place, run in enumerate(runs) if run is not None and run.sparsity == sparsity])
        first, second = torch.combinations(own, 2).T
        between = (codes[first] == codes[second]).double()
        with_model = (codes[own] == codes[0]).double()
        found.append(
            Alike(
                sparsity,
                len(own),
                _interval(between) if len(first) else None,
                _mean(kappa[first, second]),
                _interval(with_model),
                _mean(kappa[0, own]),
            )
        )
    return tuple(found)


def _interval(same: Float[Tensor, "pair example"]) -> Interval:
    """The mean over pairs and examples, examples drawn again."""
    values = same.mean(0)
    low, high = bounds(resampled_means(values[:, None]))
    return Interval(float(values.mean()), float(low), float(high))


def _kappa(same: Float[Tensor, "*pair"], chance: Float[Tensor, "*pair"]) -> Float[Tensor, "*pair"]:
    return torch.where(chance < 1 - 1e-12, (same - chance) / (1 - chance), torch.nan)


def _mean(kappas: Float[Tensor, "pair"]) -> float | None:
    return finite(float(kappas.nanmean()))


def _named(run: Run | None) -> str:
    return FULL if run is None else str(run)


def _cells(case: Case, row: Alike) -> list[str]:
    texts = []
    for one, kappa in ((row.same, row.kappa), (row.with_model, row.kappa_with_model)):
        told = ["", ""] if one is None else [number(one.value, 3), f"[{one.low:.3f}, {one.high:.3f}]"]
        texts += [*told, "" if one is None else number(float("nan") if kappa is None else kappa, 3)]
    return [case.name, f"{case.examples:,}", f"{100 * row.sparsity:g}%", *texts]
