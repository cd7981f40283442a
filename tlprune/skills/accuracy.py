"""How often a model is right on a task's examples, with a soft prompt attached or as it is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.learning.figures import over_answers, right
from tlprune.masking.cache import predictions
from tlprune.prompts.prompt import Prompt
from tlprune.statistic import Statistic
from tlprune.task import Batch, Metric

NAME = "accuracy"


def attached(model: Any, prompt: Prompt | None) -> AbstractContextManager[Any]:
    """The model with a prompt, or as it is where there is none."""
    return nullcontext(model) if prompt is None else prompt.attached(model)


@torch.no_grad()
def correct(
    model: Any, batch: Batch, metrics: Mapping[str, Metric | Statistic], *, batch_size: int = 64
) -> Float[Tensor, "example"]:
    """1 for each example that a model gets right, in their order.

    It is the task's own accuracy where there is one, such as that over a verbaliser's words alone; else whether the
    likeliest of all outputs is the answer.

    Args:
        model: a TransformerLens model.
        batch: the examples.
        metrics: the task's.
        batch_size: examples per forward pass.
    """
    order = torch.argsort(batch.clean.lengths.cpu(), stable=True)
    own = next((metric for name, metric in metrics.items() if name.endswith(NAME)), None)
    parts = batch.rows(order).to(backend_of(model).device).split(batch_size)
    return torch.cat([_correct(model, part, own) for part in parts])[order.argsort()]


def _correct(model: Any, part: Batch, metric: Metric | Statistic | None) -> Float[Tensor, "example"]:
    logits = backend_of(model).logits(part.clean.trimmed(), part.positions)
    if metric is None:
        return over_answers(right(logits.argmax(-1), part).float(), part.answers >= 0).cpu()
    assert not isinstance(metric, Statistic)
    return metric(logits, part, predictions(logits)).float().cpu()
