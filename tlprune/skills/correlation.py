"""Whether two tasks, or two trials of one, rank the neurons of a layer alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.evaluation.table import aligned, number
from tlprune.learning.bootstrap import finite
from tlprune.learning.correlations import ranks
from tlprune.scores import Scores
from tlprune.skills.choosing import layer_scores, same_neurons
from tlprune.skills.plots import layer_lines, task_map

BETWEEN = "between trials"


@dataclass(frozen=True)
class SkillCorrelation:
    """Spearman correlations of scores of neurons; printing it gives a table.

    Attributes:
        names: of the tasks.
        layers: in the order of the model.
        by_layer: between tasks within each layer; not a number where all neurons of a layer have one score.
        overall: over the neurons of all layers together.
        trials: for each task whose scores have several samples, the mean over pairs of these, by layer.
        trials_overall: the same over all layers together.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    by_layer: Float[Tensor, "layer task task"]
    overall: Float[Tensor, "task task"]
    trials: Mapping[str, Float[Tensor, "layer"]]
    trials_overall: Mapping[str, float]

    def between(self, first: str, second: str) -> float:
        """The correlation of two tasks over all layers.

        Raises:
            ValueError: there is no task of this name.
        """
        for name in (first, second):
            if name not in self.names:
                raise ValueError(
                    f"There are correlations of {', '.join(self.names)}, not of {name!r}. Name one of these."
                )
        return float(self.overall[self.names.index(first), self.names.index(second)])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each pair and layer (``None``: all): of two tasks, or of the trials of one."""
        return [
            {"first": first, "second": second, "layer": layer, "correlation": value}
            for first, second, whole, values in self._pairs()
            for layer, value in [(None, whole), *zip(self.layers, values, strict=True)]
        ]

    def _pairs(self) -> Iterator[tuple[str, str, float, list[float]]]:
        """Two tasks, or a task and ``"between trials"``: over all layers, and by layer."""
        for one, other in combinations(range(len(self.names)), 2):
            whole, values = float(self.overall[one, other]), self.by_layer[:, one, other].tolist()
            yield self.names[one], self.names[other], whole, values
        for name, values in self.trials.items():
            yield name, BETWEEN, self.trials_overall[name], values.tolist()

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        rows = [{**row, "correlation": finite(row["correlation"])} for row in self.rows]
        return {"names": list(self.names), "layers": list(self.layers), "rows": rows}

    def __str__(self) -> str:
        header = ["", *(f"layer {layer}" for layer in self.layers), "all"]
        rows = [
            [f"{first}, {second}", *(number(value, 3) for value in values), number(whole, 3)]
            for first, second, whole, values in self._pairs()
        ]
        return "\n".join([*aligned(header, rows), "Spearman correlation of the scores of neurons"])

    def plot(self) -> Any:
        """Lines of plotly: along the layers, one for each pair of tasks and one for the trials of each task.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        lines = {
            f"{first}, {second}": dict(zip(self.layers, values, strict=True))
            for first, second, _, values in self._pairs()
        }
        return layer_lines(lines, title="Do tasks rank neurons alike?", of="Spearman correlation")

    def plot_tasks(self) -> Any:
        """A heat map of plotly: tasks by tasks, over all layers together.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        table = [dict(zip(self.names, row, strict=True)) for row in self.overall.tolist()]
        values = dict(zip(self.names, table, strict=True))
        words = {name: {other: number(value, 2) for other, value in row.items()} for name, row in values.items()}
        return task_map(
            values, words, title="Spearman correlation of the scores of neurons", down="", across="",
            colours={"colorscale": "RdBu", "cmin": -1, "cmax": 1},
        )  # fmt: skip


def skill_correlation(scores: Mapping[str, Scores], *, layers: Sequence[int] | None = None) -> SkillCorrelation:
    """Spearman's correlation of the scores that neurons have for different tasks, by layer and over all.

    With ``r`` the ranks of the neurons of a layer, from 1 and with the mean rank for equal ones, it is the Pearson
    correlation of two tasks' ``r``. Where scores have samples, such as one for each prompt, the mean over pairs of them
    says how alike the trials of one task are, which bounds how alike two tasks can be.

    Source: Wang et al., "Finding Skill Neurons in Pre-trained Transformer-based Language Models" (2022), section 4.3.

    Args:
        scores: of the same neurons, by the name of the task.
        layers: those to look at; by default all that have scores.

    Raises:
        ValueError: there are no scores, they are of other sites than neurons, or of different ones.

    Example:
        >>> from tlprune.sites import Neurons, Sites
        >>> sites = Sites((Neurons((0, 1), 3),))
        >>> first = Scores(sites, torch.tensor([0.5, 0.6, 0.7, 0.5, 0.6, 0.7]))
        >>> second = Scores(sites, torch.tensor([0.5, 0.7, 0.9, 0.9, 0.8, 0.5]))
        >>> print(skill_correlation({"first": first, "second": second}))
                       layer 0  layer 1    all
        first, second    1.000   -1.000  0.000
        Spearman correlation of the scores of neurons
    """
    group, tables = same_neurons(scores, layers)
    values = torch.stack([*tables.values()])
    several = {name: _samples(one, layers) for name, one in scores.items() if one.samples is not None}
    several = {name: samples for name, samples in several.items() if len(samples) > 1}
    return SkillCorrelation(
        names=tuple(scores),
        layers=group.layers,
        by_layer=torch.stack([spearman_matrix(values[:, place]) for place in range(len(group.layers))]),
        overall=spearman_matrix(values.flatten(1)),
        trials={name: torch.stack([*map(_mean_pair, own.unbind(1))]) for name, own in several.items()},
        trials_overall={name: float(_mean_pair(own.flatten(1))) for name, own in several.items()},
    )


def spearman_matrix(values: Float[Tensor, "row neuron"]) -> Float[Tensor, "row row"]:
    """Spearman's correlation of each row with each other; not a number for a row of equal numbers.

    Example:
        >>> spearman_matrix(torch.tensor([[1.0, 2.0, 4.0], [3.0, 9.0, 0.0]]))[0, 1].item()
        -0.5
    """
    table = torch.stack([ranks(row) for row in values])
    centred = table - table.mean(1, keepdim=True)
    return (centred @ centred.T) / (centred.square().sum(1)[:, None] * centred.square().sum(1)).sqrt()


def _mean_pair(values: Float[Tensor, "row neuron"]) -> Float[Tensor, ""]:
    """The mean correlation of two different rows."""
    one, other = torch.triu_indices(len(values), len(values), offset=1)
    return spearman_matrix(values)[one, other].mean()


def _samples(scores: Scores, layers: Sequence[int] | None) -> Float[Tensor, "sample layer neuron"]:
    assert scores.samples is not None
    each = (Scores(scores.sites, sample) for sample in scores.samples)
    return torch.stack([layer_scores(one, layers)[1] for one in each])
