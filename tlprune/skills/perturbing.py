"""A model run on test examples with chosen neurons perturbed, once for each prompt that is put in front of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.evaluation.bench import in_order
from tlprune.learning.metrics import Performance, measure_each
from tlprune.masking.ablation import Ablation, GaussianNoise, Zero
from tlprune.masking.masked import Masked
from tlprune.masking.means import Mean
from tlprune.prompts.attaching import attached, trials_of
from tlprune.prompts.prompt import Prompt
from tlprune.sites import Neurons, Sites
from tlprune.skills.choosing import random_places, without
from tlprune.statistic import Measured
from tlprune.task import Task

SCALE = 0.1  # of the noise, in the unit of an activation
Perturbation = Literal["gaussian", "zero", "mean"]


def ablation_of(perturbation: Perturbation | Ablation, task: Task, trial: int, *, seed: int) -> Ablation:
    """What is done to a perturbed neuron in one trial: noise is drawn anew for each, means are of its own prompt.

    Raises:
        ValueError: there is no perturbation of this name.
    """
    if isinstance(perturbation, GaussianNoise):
        return dataclasses.replace(perturbation, seed=perturbation.seed + trial)
    if not isinstance(perturbation, str):
        return perturbation
    if perturbation not in get_args(Perturbation):
        raise ValueError(
            f"Neurons are perturbed by {', '.join(map(repr, get_args(Perturbation)))} or an ablation but got "
            f"{perturbation!r}. Choose one of these, or give tp.GaussianNoise(0.3)."
        )
    if perturbation == "gaussian":
        return GaussianNoise(SCALE, seed=seed + trial)
    return Zero() if perturbation == "zero" else Mean(task.discovery.train().clean)


@dataclass(frozen=True)
class Perturbing:
    """How tasks are run with neurons perturbed.

    Attributes:
        model: left as it was.
        group: the neurons of the layers in question.
        perturbation: what is done to them.
        random_trials: draws of random neurons in each trial.
        batch_size: examples per forward pass.
        seed: of noise and draws.
    """

    model: Any
    group: Neurons
    perturbation: Perturbation | Ablation
    random_trials: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.random_trials < 1:
            raise ValueError(
                f"Skill neurons are held against random ones, so at least one draw is needed but random_trials is "
                f"{self.random_trials}. Leave it out for 5."
            )

    def runs(
        self,
        task: Task,
        prompts: Sequence[Prompt],
        orders: Sequence[Int[Tensor, "layer neuron"]],
        counts: Sequence[int],
    ) -> list[Performance]:
        """A task's test examples in each trial, for each order and each draw of a random one, at each count.

        Trials come one after the other, in each the orders, of each the counts. A prompt is a trial; without prompts
        there is one, of the model as it is.
        """
        found: list[Performance] = []
        for trial, prompt in enumerate(trials_of(prompts)):
            drawn = [random_places(self.group, f"{self.seed}/{trial}/{draw}") for draw in range(self.random_trials)]
            ablation = self.ablation(task, trial)
            kept = without([*orders, *drawn], counts)
            found += performances(
                self.model, task, Sites((self.group,)), kept, prompt=prompt, ablation=ablation,
                batch_size=self.batch_size,
            )  # fmt: skip
        return found

    def ablation(self, task: Task, trial: int = 0) -> Ablation:
        """What is done in one trial."""
        return ablation_of(self.perturbation, task, trial, seed=self.seed)


def performances(
    model: Any,
    task: Task,
    sites: Sites,
    kept: Bool[Tensor, "circuit site"],
    *,
    prompt: Prompt | None,
    ablation: Ablation,
    batch_size: int,
) -> list[Performance]:
    """Figures on a task's test examples of several circuits, under one prompt.

    What the circuits share, the unmasked model's predictions and the noise, is computed once, and equal ones are run
    once.
    """
    different, places = kept.unique(dim=0, return_inverse=True)
    with attached(model, prompt):
        masked = Masked(model, Circuit(sites, torch.ones(len(sites), dtype=torch.bool)), ablation)
        found = measure_each(masked, different, in_order(task.test), batch_size=batch_size, metrics=task.metrics)
    return [found[place] for place in places.tolist()]


def figures_of(performance: Performance) -> dict[str, Measured]:
    """Every figure by name, as a function of means over examples."""
    means = {name: Measured(values.double()[:, None], _itself) for name, values in performance.per_example().items()}
    return {**means, **performance.statistics}


def _itself(mean: Tensor) -> Tensor:
    return mean


def chance_of(task: Task) -> float | None:
    """The accuracy of always giving the most frequent answer of the test examples; ``None`` without answers.

    Example:
        >>> import tlprune as tp
        >>> chance_of(tp.planted("copy").task)
        0.171875
    """
    answers = task.test.answers[:, 0]
    counts = answers[answers >= 0].unique(return_counts=True)[1]
    return float(counts.max() / counts.sum()) if len(counts) else None


def runs_by_figure(found: Sequence[Performance]) -> dict[str, list[Measured]]:
    """For each figure all runs, in order."""
    runs = [figures_of(one) for one in found]
    return {name: [own[name] for own in runs] for name in runs[0]}
