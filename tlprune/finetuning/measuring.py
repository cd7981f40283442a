"""Figures of a classifier or regressor on labelled examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tlprune.learning.bootstrap import Interval, interval
from tlprune.learning.correlations import confusion, f1, matthews, pearson, spearman
from tlprune.statistic import Measured, Statistic
from tlprune.tasks.labelled.data import Labelled
from tlprune.tasks.labelled.encoding import Encoded, padded
from tlprune.tasks.questions import Questions

Outputs = Float[Tensor, "example output"]


def inputs_of(rows: Sequence[Encoded], tokenizer: Any, device: torch.device) -> dict[str, Tensor]:
    """What a Hugging Face model takes: ids, a mask of padding, and sentence numbers where it tells them apart."""
    tokens = padded(rows, tokenizer).to(device)
    mask = torch.ones_like(tokens.ids) if tokens.attention_mask is None else tokens.attention_mask
    found = {"input_ids": tokens.ids, "attention_mask": mask}
    return found if tokens.token_types is None else found | {"token_type_ids": tokens.token_types}


def loss_of(outputs: Outputs, examples: Labelled | Questions) -> Float[Tensor, ""]:
    """Cross entropy of the right classes in nats, or the mean squared error of a regression."""
    if examples.regression:
        return F.mse_loss(outputs[:, 0].float(), torch.tensor(examples.labels, device=outputs.device))
    return F.cross_entropy(outputs.float(), torch.tensor(examples.labels, device=outputs.device))


@torch.no_grad()
def outputs_on(model: Any, rows: Sequence[Encoded], tokenizer: Any, *, device: torch.device) -> Outputs:
    """What the model says of each example, without dropout, in batches of about one length."""
    training = model.training
    model.eval()
    try:
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        parts = [order[start : start + 64] for start in range(0, len(order), 64)]
        found = [model(**inputs_of([rows[row] for row in part], tokenizer, device)).logits for part in parts]
    finally:
        model.train(training)
    return torch.cat(found).float().cpu()[torch.tensor(order).argsort()]


def figures_of(outputs: Outputs, examples: Labelled) -> dict[str, float]:
    """Loss and accuracy, Matthews correlation and F1; or of a regression loss, Pearson and Spearman correlation.

    Example:
        >>> pairs = Labelled("mine", ("a", "b", "c"), None, (0, 1, 1), ("no", "yes"))
        >>> figures = figures_of(torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), pairs)
        >>> {name: round(value, 3) for name, value in figures.items()}
        {'loss': 0.794, 'accuracy': 0.667, 'matthews': 0.5, 'f1': 0.667}
    """
    loss = {"loss": float(loss_of(outputs, examples))}
    return loss | {name: one.value for name, one in _measured(outputs, examples).items() if name != "loss"}


def intervals_of(outputs: Outputs, examples: Labelled) -> dict[str, Interval]:
    """The same figures, each with its bootstrap interval over the examples.

    Example:
        >>> pairs = Labelled("mine", ("a", "b", "c"), None, (0, 1, 1), ("no", "yes"))
        >>> intervals_of(torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]]), pairs)["accuracy"]
        Interval(value=1.0, low=1.0, high=1.0)
    """
    measured = _measured(outputs, examples)
    return {name: interval(one.of_means, *one.columns.unbind(-1)) for name, one in measured.items()}


def _measured(outputs: Outputs, examples: Labelled) -> dict[str, Measured]:
    """Each figure by the means that it is a function of."""
    if examples.regression:
        right = torch.tensor(examples.labels)
        columns = torch.stack([outputs[:, 0], right], -1)
        loss = _mean(F.mse_loss(outputs[:, 0].float(), right, reduction="none"))
        return {"loss": loss, "pearson": _of(pearson(), columns), "spearman": _of(spearman(), columns)}
    right, best = torch.tensor(examples.labels), outputs.argmax(-1)
    count = len(examples.classes)
    columns = confusion(right, best, count)
    loss = _mean(F.cross_entropy(outputs.float(), right, reduction="none"))
    found = {"loss": loss, "accuracy": _mean(right == best), "matthews": _of(matthews(count), columns)}
    return found | ({"f1": _of(f1(), columns)} if count == 2 else {})


def _mean(values: Tensor) -> Measured:
    return Measured(values.double()[:, None], lambda mean: mean)


def _of(statistic: Statistic, columns: Tensor) -> Measured:
    return Measured(statistic.prepared(columns), statistic.of_means)
