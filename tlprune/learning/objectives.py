"""Objectives: what training lowers, from the masked model's logits at the answer positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tlprune.task import Batch

Logits = Float[Tensor, "example answer vocab"]


@runtime_checkable
class Objective(Protocol):
    """A number to lower.

    Attributes:
        name: how records call it.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Float[Tensor, ""]:
        """The mean over examples and answer positions; ``reference`` is the full model's log-probabilities."""
        ...


@dataclass(frozen=True)
class KL:
    """Divergence of the masked model from the full one, ``sum_v p(v) (log p(v) - log q(v))``, in nats.

    ``p`` is the full model and ``q`` the masked one, over the whole vocabulary.

    Example:
        >>> import tlprune as tp
        >>> batch = tp.planted("copy").task.test.rows(torch.tensor([0]))
        >>> reference = torch.tensor([[[0.5, 0.5]]]).log()
        >>> round(float(KL()(torch.tensor([[[0.9, 0.1]]]).log(), batch, reference)), 4)
        0.5108
    """

    name = "kl"

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Float[Tensor, ""]:
        return divergence(logits, reference).mean()


@dataclass(frozen=True)
class LogitDifference:
    """How far the foil's logit stands above the answer's: the negative logit difference, so lower is better."""

    name = "negative_logit_difference"

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Float[Tensor, ""]:
        return -logit_difference(logits, batch).mean()


@dataclass(frozen=True)
class CrossEntropy:
    """Negative log-probability of the correct answer, in nats."""

    name = "cross_entropy"

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Float[Tensor, ""]:
        return F.cross_entropy(exact(logits).flatten(0, 1), batch.answers.flatten().to(logits.device))


def exact(logits: Tensor) -> Tensor:
    """In at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def divergence(logits: Logits, reference: Logits) -> Float[Tensor, "example answer"]:
    """KL(reference || logits) at each answer position, in nats."""
    return (reference.exp() * (reference - exact(logits).log_softmax(-1))).sum(-1)


def logit_difference(logits: Logits, batch: Batch) -> Float[Tensor, "example answer"]:
    """Logit of the correct token less that of the foil."""
    pick = torch.stack([batch.answers, batch.foils], -1).to(logits.device)
    answer, foil = exact(logits).gather(-1, pick).unbind(-1)
    return answer - foil
