"""What logits say of a behaviour at each answer position, and rankings."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.learning.objectives import Logits, accepted_nats, divergence, exact, logit_difference
from tlprune.task import Batch

PerAnswer = Float[Tensor, "example answer"]


def answered(batch: Batch) -> Bool[Tensor, "example answer"]:
    """Which answers there are: a negative one, such as -100, fills up an example that has fewer than others."""
    return batch.answers >= 0


def over_answers(values: PerAnswer, there: Bool[Tensor, "example answer"]) -> Float[Tensor, "example"]:
    """The mean over the answers that there are.

    Example:
        >>> over_answers(torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[True, True], [True, False]])).tolist()
        [1.5, 3.0]
    """
    return torch.where(there, values, 0).sum(-1) / there.sum(-1)


def has_foils(batch: Batch) -> bool:
    """Whether answers are compared with foils.

    Raises:
        ValueError: some answers have a foil and others none.
    """
    there = batch.foils[answered(batch)] >= 0
    if bool(there.any()) and not bool(there.all()):
        raise ValueError(
            f"Either all answers have a foil or none has, but {int(there.sum())} of {there.numel()} have one. Give the "
            "others theirs, or -100 to all."
        )
    return bool(there.any())


def figures(logits: Logits, batch: Batch, reference: Logits) -> dict[str, Float[Tensor, "example"]]:
    """The numbers of a :class:`~tlprune.learning.metrics.Performance` by attribute name.

    Without foils there are no differences from them. A regression has its two squared errors alone.
    """
    if logits.shape[-1] == 1:
        return _errors(logits, batch, reference)
    there = answered(batch)
    filled = dataclasses.replace(batch, answers=batch.answers.clamp(min=0), foils=batch.foils.clamp(min=0))
    means = {
        "correct": right(logits.argmax(-1), filled).to(exact(logits)),
        "agrees": (logits.argmax(-1) == reference.argmax(-1)).to(exact(logits)),
        "kl": divergence(logits, reference),
        "rank": answer_rank(exact(logits), filled),
    }
    if has_foils(batch):
        means["logit_difference"] = logit_difference(logits, filled)
        means["probability_difference"] = probability_difference(logits, filled)
    found = {name: over_answers(values, there) for name, values in means.items()}
    found["exact"] = ((means["correct"] > 0) | ~there).all(-1)
    found["nats"] = torch.where(there, _nats(exact(logits), filled), 0).sum(-1)
    found["tokens"] = there.sum(-1)
    return found


def _errors(logits: Logits, batch: Batch, reference: Logits) -> dict[str, Float[Tensor, "example"]]:
    """Of a regression: from the full model's output, and from the number that is right; the means over answers."""
    output, targets = exact(logits)[..., 0], targets_of(batch)
    return {
        "squared_error": (output - reference[..., 0]).square().mean(-1),
        "target_error": (output - targets.to(output).view(len(output), -1)).square().mean(-1),
    }


def targets_of(batch: Batch) -> Float[Tensor, "example *answer"]:
    """The numbers that a regression is to give.

    Raises:
        ValueError: the batch has none.
    """
    if batch.targets is None:
        raise ValueError(
            "Figures of a regression need the number of each example but this batch has no targets. Build it with "
            "targets=..., or use a model that gives classes."
        )
    return batch.targets


def right(predicted: Int[Tensor, "example answer"], batch: Batch) -> Bool[Tensor, "example answer"]:
    """Which of the predicted tokens or classes are the answer, or one of those that are accepted."""
    if batch.accepted is None:
        return predicted == batch.answers
    return batch.accepted.to(predicted.device).gather(-1, predicted)


def _nats(logits: Logits, batch: Batch) -> PerAnswer:
    if batch.accepted is None:
        return -_picked(logits.log_softmax(-1), batch.answers)
    return accepted_nats(logits, batch.accepted)


def probability_difference(logits: Logits, batch: Batch) -> PerAnswer:
    """Probability of the correct token less that of the foil, over the whole vocabulary."""
    probabilities = exact(logits).softmax(-1)
    return _picked(probabilities, batch.answers) - _picked(probabilities, batch.foils)


def answer_rank(logits: Logits, batch: Batch) -> PerAnswer:
    """One more than the number of tokens that are likelier than the correct one: 1 is best.

    Of several accepted ones the likeliest counts.
    """
    own = _picked(logits, batch.answers)
    if batch.accepted is not None:
        own = logits.masked_fill(~batch.accepted[:, None].to(logits.device), -torch.inf).amax(-1)
    above = logits > own[..., None]
    return (1 + above.sum(-1)).to(logits)


def _picked(values: Logits, tokens: Tensor) -> PerAnswer:
    return values.gather(-1, tokens[..., None]).squeeze(-1)


def kendall_tau(first: Float[Tensor, "*lead item"], second: Float[Tensor, "*lead item"]) -> Float[Tensor, "*lead"]:
    """Agreement of two rankings, from -1 (opposite) to 1 (the same); ``tau-b``, which allows for ties.

    ``sum_ij s_ij t_ij / sqrt(sum_ij s_ij^2 sum_ij t_ij^2)`` with ``s_ij = sign(x_i - x_j)`` and ``t_ij`` likewise; not
    a number if all items of one ranking are tied.

    Source: Kendall, "The treatment of ties in ranking problems" (1945).

    Example:
        >>> kendall_tau(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])).item()
        0.6666666865348816
    """
    s, t = (torch.sign(values[..., :, None] - values[..., None, :]) for values in (first, second))
    size = (s.square().sum((-2, -1)) * t.square().sum((-2, -1))).sqrt()
    return (s * t).sum((-2, -1)) / size
