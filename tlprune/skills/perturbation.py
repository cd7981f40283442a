"""What a task loses as more of its skill neurons are perturbed, beside as many random neurons of the same layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlprune.evaluation.bench import ablation_text
from tlprune.evaluation.table import aligned, number
from tlprune.learning.bootstrap import Interval, finite
from tlprune.masking.ablation import Ablation
from tlprune.prompts.prompt import Prompt
from tlprune.scores import Scores
from tlprune.skills.accuracy import accuracy_of, is_accuracy
from tlprune.skills.choosing import count_of, layer_scores, places
from tlprune.skills.perturbing import Perturbation, Perturbing, chance_of, runs_by_figure
from tlprune.skills.plots import perturbation_chart
from tlprune.skills.resampling import Resampled, resampled
from tlprune.task import Task

FRACTIONS = tuple(percent / 100 for percent in range(21))


@dataclass(frozen=True)
class Perturbed:
    """A figure with one number of neurons per layer perturbed.

    Attributes:
        fraction: which part of each layer.
        neurons: how many of each layer.
        skill: with the neurons of the highest score perturbed, the mean over trials; its interval is over examples.
        random: with random ones, the mean over trials and draws.
        difference: the first less the second, paired over examples.
        skill_runs: each trial.
        random_runs: of each trial each draw.
    """

    fraction: float
    neurons: int
    skill: Interval
    random: Interval
    difference: Interval
    skill_runs: tuple[float, ...]
    random_runs: tuple[tuple[float, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        intervals = {name: getattr(self, name).as_dict() for name in ("skill", "random", "difference")}
        return {
            "fraction": self.fraction,
            "neurons": self.neurons,
            **intervals,
            "skill_runs": [finite(value) for value in self.skill_runs],
            "random_runs": [[finite(value) for value in runs] for runs in self.random_runs],
        }


@dataclass(frozen=True)
class PerturbationCurve:
    """Figures against the fraction of neurons that are perturbed; printing it gives a table of one of them.

    Attributes:
        task: its name.
        figure: the one that is shown if no other is asked for.
        examples: number of test examples.
        layers: those whose neurons are perturbed.
        width: neurons per layer.
        ablation: how they are perturbed in the first trial, as plain data.
        trials: number of trials: of prompts, or 1.
        random_trials: draws of random neurons in each.
        chance: accuracy of always giving the most frequent answer; ``None`` without answers.
        points: by name of the figure, then in the order of fractions.
    """

    task: str
    figure: str
    examples: int
    layers: tuple[int, ...]
    width: int
    ablation: Mapping[str, Any]
    trials: int
    random_trials: int
    chance: float | None
    points: Mapping[str, tuple[Perturbed, ...]]

    def at(self, fraction: float, figure: str | None = None) -> Perturbed:
        """One point.

        Raises:
            ValueError: the fraction or the figure was not measured.
        """
        for point in self.of(figure):
            if abs(point.fraction - fraction) < 1e-9:
                return point
        known = ", ".join(f"{point.fraction:g}" for point in self.of(figure))
        raise ValueError(
            f"Neurons were perturbed at fractions {known} but {fraction:g} was asked for. Use one of these."
        )

    def of(self, figure: str | None = None) -> tuple[Perturbed, ...]:
        """All points of one figure.

        Raises:
            ValueError: there is no such figure.
        """
        name = figure or self.figure
        if name not in self.points:
            raise ValueError(
                f"There are points of {', '.join(self.points)} but {name!r} was asked for. Name one of these."
            )
        return self.points[name]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each run: figure, fraction, neurons, trial, draw (``None`` for skill neurons), value."""
        return [
            {"figure": name, "fraction": point.fraction, "neurons": point.neurons, **run}
            for name, points in self.points.items()
            for point in points
            for run in _runs(point)
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        names = ("task", "figure", "examples", "width", "trials", "random_trials", "chance")
        told = {name: getattr(self, name) for name in names}
        points = {name: [point.as_dict() for point in points] for name, points in self.points.items()}
        return {**told, "layers": list(self.layers), "ablation": dict(self.ablation), "points": points}

    def __str__(self) -> str:
        header = ["perturbed", "per layer", "skill neurons", "95%", "random ones", "95%", "difference", "95%"]
        rows = [
            [f"{100 * point.fraction:.3g}%", f"{point.neurons:,}", *_cells(point.skill), *_cells(point.random),
             *_cells(point.difference)]
            for point in self.of()
        ]  # fmt: skip
        chance = "" if self.chance is None else f"; the most frequent answer alone gives {number(self.chance, 3)}"
        foot = (
            f"{self.figure} of {self.task}, {self.examples:,} examples, {ablation_text(self.ablation)}; means over "
            f"{_counted(self.trials, 'trial')} with {_counted(self.random_trials, 'draw')} of random neurons{chance}"
        )
        return "\n".join([*aligned(header, rows), foot])

    def plot(self, figure: str | None = None) -> Any:
        """The figure against the fraction: two lines of plotly, with bands from the worst to the best run.

        A single run has the interval over examples as its band.

        Raises:
            ModuleNotFoundError: plotly is not installed.
            ValueError: there is no such figure.
        """
        return perturbation_chart(self, figure or self.figure)


def perturbation(  # noqa: PLR0913
    model: Any,
    task: Task,
    scores: Scores,
    *,
    prompts: Sequence[Prompt] = (),
    fractions: Sequence[float] = FRACTIONS,
    ablation: Perturbation | Ablation = "gaussian",
    layers: Sequence[int] | None = None,
    random_trials: int = 5,
    figure: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> PerturbationCurve:
    """Perturb more and more of the best neurons, and as many random ones of the same layers, and measure test examples.

    At fraction ``p`` the ``int(p * d_mlp)`` neurons of the highest score in each layer are perturbed together. Random
    ones are drawn among all neurons of a layer; a draw of a larger fraction contains that of a smaller. If the skill is
    in the best neurons, their curve falls and that of random ones does not.

    ``"gaussian"`` adds noise of standard deviation 0.1, one draw for each prompt and neuron at all positions, and
    another in each trial; ``"zero"`` and ``"mean"`` set neurons to 0, or to their mean over the positions of the
    training examples under the trial's prompt.

    Source: Wang et al., "Finding Skill Neurons in Pre-trained Transformer-based Language Models" (2022), section 4.2.

    Args:
        model: a TransformerLens model with MLPs; left as it was.
        task: its test examples are measured.
        scores: of neurons, by any method that did not see them.
        prompts: each is a trial: it is attached to the model for its runs. Without any the model runs as it is.
        fractions: of the neurons of each layer, in [0, 1].
        ablation: how neurons are perturbed: by name, or any ablation, such as ``tp.GaussianNoise(0.3)``.
        layers: those whose neurons are perturbed, such as ``range(3, 12)``; by default all that have scores.
        random_trials: draws of random neurons in each trial.
        figure: the one to show; by default the task's own accuracy if it has one, else ``"accuracy"``.
        batch_size: examples per forward pass.
        seed: of the noise, the random neurons and the bootstrap.

    Raises:
        ValueError: the scores are not of this model's neurons or lack a layer, a fraction is out of range, there are
            no fractions or draws, or no such figure or perturbation.

    Example:
        >>> import torch
        >>> import tlprune as tp
        >>> planted = tp.planted("and")
        >>> sites = tp.neurons(planted.model)
        >>> weights = [block.mlp.W_out.norm(dim=1) for block in planted.model.blocks]
        >>> scores = Scores(sites, torch.cat(weights).detach())
        >>> curve = perturbation(planted.model, planted.task, scores, fractions=[0, 0.05], ablation="zero")
        >>> curve.at(0.05).neurons, curve.at(0).skill.value, curve.at(0.05).skill.value, curve.at(0.05).random.value
        (1, 1.0, 0.0, 1.0)
    """
    group, values = layer_scores(scores, layers)
    found = tuple(sorted({*fractions}))
    if not found:
        raise ValueError("A curve needs at least one fraction but got none. Leave them out for 0 to 0.20 by 0.01.")
    counts = [count_of(fraction, group.width) for fraction in found]
    perturbing = Perturbing(model, group, ablation, random_trials, batch_size, seed)
    runs = perturbing.runs(task, prompts, [places(values)], counts)
    tables = {name: resampled(own, seed=seed) for name, own in runs_by_figure(runs).items()}
    shape = (-1, 1 + random_trials, len(found))
    points = {name: _points(table.shaped(*shape), found, counts) for name, table in tables.items()}
    shown = accuracy_of(task, points, figure)
    return PerturbationCurve(
        task=task.name,
        figure=shown,
        examples=len(task.test),
        layers=group.layers,
        width=group.width,
        ablation=perturbing.ablation(task).as_dict(),
        trials=max(1, len(prompts)),
        random_trials=random_trials,
        chance=chance_of(task) if is_accuracy(shown) else None,
        points=points,
    )


def _points(table: Resampled, fractions: Sequence[float], counts: Sequence[int]) -> tuple[Perturbed, ...]:
    """From a figure by trial, order (that of scores first) and fraction."""
    every = slice(None)
    points = []
    for place, (fraction, count) in enumerate(zip(fractions, counts, strict=True)):
        skill, chance = table.at(every, 0, place), table.at(every, slice(1, None), place)
        means = skill.mean, chance.mean
        intervals = (means[0].interval, means[1].interval, means[0].less(means[1]).interval)
        each = tuple(map(tuple, chance.values.tolist()))
        points.append(Perturbed(fraction, count, *intervals, tuple(skill.values.tolist()), each))
    return tuple(points)


def _runs(point: Perturbed) -> list[dict[str, Any]]:
    skill = [{"trial": trial, "draw": None, "value": value} for trial, value in enumerate(point.skill_runs)]
    return skill + [
        {"trial": trial, "draw": draw, "value": value}
        for trial, values in enumerate(point.random_runs)
        for draw, value in enumerate(values)
    ]


def _cells(one: Interval) -> list[str]:
    return [number(one.value, 3), f"[{number(one.low, 3)}, {number(one.high, 3)}]"]


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
