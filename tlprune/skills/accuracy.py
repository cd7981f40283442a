"""How often a model is right on a task's examples, with soft prompts attached or as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.learning.figures import over_answers, right
from tlprune.masking.cache import predictions
from tlprune.prompts.attaching import attached, trials_of
from tlprune.prompts.prompt import Prompt
from tlprune.statistic import Statistic
from tlprune.task import Batch, Metric, Task

ACCURACY = "accuracy"


def is_accuracy(figure: str) -> bool:
    """Whether a figure is a share of right answers: ``"accuracy"``, or a task's own such as ``"word_accuracy"``."""
    return figure.endswith(ACCURACY)


def own_accuracy(metrics: Mapping[str, Metric | Statistic]) -> str | None:
    """A task's own accuracy by name, such as that over a verbaliser's words alone; ``None`` where it has none."""
    return next(filter(is_accuracy, metrics), None)


def accuracy_of(task: Task, names: Mapping[str, Any], figure: str | None) -> str:
    """The figure that is looked at: the one that is asked for, else the task's own accuracy, else ``"accuracy"``.

    Raises:
        ValueError: the examples have no such figure.
    """
    chosen = figure or own_accuracy(task.metrics) or ACCURACY
    if chosen not in names:
        raise ValueError(
            f"Task {task.name!r} has the figures {', '.join(names)} but {chosen!r} was asked for. Name one of these by "
            "figure=."
        )
    return chosen


@torch.no_grad()
def correct(
    model: Any,
    batch: Batch,
    metrics: Mapping[str, Metric | Statistic],
    *,
    prompts: Sequence[Prompt] = (),
    batch_size: int = 64,
) -> Float[Tensor, "trial example"]:
    """1 for each example that a model gets right, in their order, under each prompt.

    It is the task's own accuracy where there is one, such as that over a verbaliser's words alone; else whether the
    likeliest of all outputs is the answer.

    Args:
        model: a TransformerLens model.
        batch: the examples.
        metrics: the task's.
        prompts: attached in turn, each a trial; without any the model runs as it is.
        batch_size: examples per forward pass.
    """
    order = torch.argsort(batch.clean.lengths.cpu(), stable=True)
    own = metrics.get(own_accuracy(metrics) or "")
    parts = tuple(batch.rows(order).to(backend_of(model).device).split(batch_size))
    found = []
    for prompt in trials_of(prompts):
        with attached(model, prompt):
            found.append(torch.cat([_correct(model, part, own) for part in parts]))
    return torch.stack(found)[:, order.argsort()]


def _correct(model: Any, part: Batch, metric: Metric | Statistic | None) -> Float[Tensor, "example"]:
    logits = backend_of(model).logits(part.clean.trimmed(), part.positions)
    if metric is None:
        return over_answers(right(logits.argmax(-1), part).float(), part.answers >= 0).cpu()
    assert not isinstance(metric, Statistic)
    return metric(logits, part, predictions(logits)).float().cpu()
