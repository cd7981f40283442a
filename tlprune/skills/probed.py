"""What single neurons know of a label beside what the prompted model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tlprune.evaluation.table import aligned
from tlprune.learning.bootstrap import Interval, interval
from tlprune.methods.predictivity import Predictivity
from tlprune.methods.single_neurons import neuron_accuracy
from tlprune.prompts.prompt import Prompt
from tlprune.scores import Scores
from tlprune.skills.accuracy import correct
from tlprune.skills.histogram import predictivity_histogram
from tlprune.task import Task


@dataclass(frozen=True)
class ProbedNeuron:
    """One of the best neurons.

    Attributes:
        name: such as ``"m3.n120"``.
        predictivity: on validation, aggregated over trials.
        test: how often it alone is right on the test examples, for each trial; none among more than two classes.
    """

    name: str
    predictivity: float
    test: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Probed:
    """The best neurons of a task beside the accuracy of its prompts; printing it gives a table.

    Attributes:
        task: its name.
        scores: of all neurons.
        neurons: the best, from the best on.
        accuracy: of the prompted model by split, ``"validation"`` and ``"test"``: the mean over prompts, with its
            bootstrap interval over examples.
        trials: the same for each prompt.
    """

    task: str
    scores: Scores
    neurons: tuple[ProbedNeuron, ...]
    accuracy: dict[str, Interval]
    trials: dict[str, tuple[float, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "task": self.task,
            "provenance": dict(self.scores.provenance),
            "accuracy": {split: found.as_dict() for split, found in self.accuracy.items()},
            "trials": {split: list(values) for split, values in self.trials.items()},
            "neurons": [
                {"name": one.name, "predictivity": one.predictivity, "test": list(one.test)} for one in self.neurons
            ],
        }

    def plot(self) -> Any:
        """Histograms of predictivity by layer, with the prompts' accuracy on validation marked."""
        return predictivity_histogram(self.scores, marks={"prompted model": self.accuracy["validation"].value})

    def __str__(self) -> str:
        rows = [["prompted model", *(_percent(self.accuracy[split].value) for split in ("validation", "test"))]]
        for one in self.neurons:
            test = _percent(sum(one.test) / len(one.test)) if one.test else ""
            rows.append([one.name, _percent(one.predictivity), test])
        trials = len(self.trials["test"])
        lines = aligned(["accuracy", "validation", "test"], rows)
        return "\n".join(
            [*lines, f"over {trials} trial{'s' * (trials != 1)}; a neuron's validation is its predictivity"]
        )


def probed(
    model: Any,
    task: Task,
    found: Predictivity,
    scores: Scores,
    *,
    prompts: Sequence[Prompt] = (),
    top: int = 5,
    batch_size: int = 64,
) -> Probed:
    """The best neurons, alone, beside the prompted model.

    Args:
        model: the model that both are of; left as it was.
        task: of labelled examples.
        found: what :meth:`~tlprune.SkillNeurons.predictivity` measured.
        scores: of the same.
        prompts: those that it was measured with; without any the model runs as it is.
        top: how many neurons to list.
        batch_size: examples per forward pass.

    Raises:
        ValueError: ``top`` is below 1; prompts are others than those of ``found``.
    """
    if top < 1:
        raise ValueError(f"At least 1 neuron is to be listed but top is {top}. Give a larger number.")
    splits = {"validation": task.discovery.validation(), "test": task.test}
    right = {
        split: correct(model, batch, task.metrics, prompts=prompts, batch_size=batch_size)
        for split, batch in splits.items()
    }
    best = torch.argsort(scores.values, descending=True, stable=True)[:top]
    names = [scores.sites.name(site) for site in best.tolist()]
    alone: list[list[float]] = [[] for _ in names]
    if len(found.classes) == 2:
        alone = neuron_accuracy(model, task.test, found, neurons=names, prompts=prompts, batch_size=batch_size).tolist()
    return Probed(
        task=task.name,
        scores=scores,
        neurons=tuple(
            ProbedNeuron(name, value, tuple(own))
            for name, value, own in zip(names, scores.values[best].tolist(), alone, strict=True)
        ),
        accuracy={split: interval(lambda mean: mean, one.mean(0)) for split, one in right.items()},
        trials={split: tuple(one.mean(1).tolist()) for split, one in right.items()},
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
