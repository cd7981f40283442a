"""Objectives: what training lowers, from the masked model's logits at the answer positions.

They scale and add: ``1.5 * Uniform(on="target") + KL(on="control", run="complement")``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.masking.masked import Masked
from tlprune.masking.unembedding import vocabulary
from tlprune.task import MAIN, Batch

Logits = Float[Tensor, "example answer vocab"]
Run = Literal["kept", "complement"]


@runtime_checkable
class Objective(Protocol):
    """A number to lower, of one stream of examples and one run of the mask.

    Attributes:
        name: how records call it.
        on: the stream whose examples it is of.
        run: ``"kept"``: the model is run with the mask ``m``; ``"complement"``: with ``1 - m``, so that what the mask
            keeps is removed.
    """

    @property
    def name(self) -> str: ...

    @property
    def on(self) -> str: ...

    @property
    def run(self) -> Run: ...

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Float[Tensor, ""]:
        """The mean over examples and answer positions, each that is answered (``Batch.answered``) weighing the same.

        ``reference`` is the full model's log-probabilities, or a regression's output.
        """
        ...


class Summable:
    """What can be scaled and added to a :class:`Sum`."""

    def __rmul__(self, weight: float) -> Sum:
        return Sum(tuple((weight * own, objective) for own, objective in weighted(self)))

    def __add__(self, other: Objective | Sum) -> Sum:
        if not isinstance(other, (Objective, Sum)):
            return NotImplemented
        return Sum(weighted(self) + weighted(other))


@dataclass(frozen=True)
class Sum(Summable):
    """Objectives with weights; each is evaluated on its own stream with a mask sample of its own.

    Attributes:
        terms: pairs of a weight and an objective.

    Example:
        >>> total = 2 * (KL() + 1.5 * Uniform(on="target", run="complement"))
        >>> [(weight, label) for (weight, _), label in zip(total.terms, total.labels)]
        [(2.0, 'kl'), (3.0, 'uniform_target_complement')]
    """

    terms: tuple[tuple[float, Any], ...]

    def __post_init__(self) -> None:
        for weight, objective in self.terms:
            if not math.isfinite(weight):
                raise ValueError(
                    f"An objective needs a finite weight but {objective.name} has {weight}. Scale it by a number."
                )

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each term in records: of the objective, its stream, its run; numbered where these are the same."""
        names = [_label(objective) for _, objective in self.terms]
        seen: Counter[str] = Counter()
        for place, name in enumerate(names):
            seen[name] += 1
            names[place] = name if seen[name] == 1 else f"{name}_{seen[name]}"
        return tuple(names)


def weighted(objective: Any) -> tuple[tuple[float, Any], ...]:
    """The terms of a sum; an objective by itself is a sum of one."""
    return objective.terms if isinstance(objective, Sum) else ((1.0, objective),)


def _label(objective: Objective) -> str:
    stream = "" if objective.on == MAIN else f"_{objective.on}"
    return f"{objective.name}{stream}" + ("" if objective.run == "kept" else f"_{objective.run}")


@dataclass(frozen=True, kw_only=True)
class _Addressed(Summable):
    on: str = MAIN
    run: Run = "kept"

    def __post_init__(self) -> None:
        if self.run not in get_args(Run):
            raise ValueError(f"run must be one of {', '.join(get_args(Run))} but is {self.run!r}. Choose one of these.")


@dataclass(frozen=True, kw_only=True)
class KL(_Addressed):
    """Divergence of the masked model from the full one, ``sum_v p(v) (log p(v) - log q(v))``, in nats.

    ``p`` is the full model and ``q`` the masked one, over the whole vocabulary.

    Attributes:
        on: the stream whose examples it is of.
        run: which run of the mask it is of, ``"kept"`` or ``"complement"``.
        tokens: ids over which both distributions are renormalised and compared; the whole vocabulary by default.

    Raises:
        ValueError: ``tokens`` has fewer than two ids or one twice; the model has one output.

    Example:
        >>> import tlprune as tp
        >>> batch = tp.planted("copy").task.test.rows(torch.tensor([0]))
        >>> reference = torch.tensor([[[0.25, 0.25, 0.5]]]).log()
        >>> logits = torch.tensor([[[0.09, 0.01, 0.9]]]).log()
        >>> [round(float(kl(logits, batch, reference)), 4) for kl in (KL(), KL(tokens=(0, 1)))]
        [0.7662, 0.5108]
    """

    tokens: tuple[int, ...] | None = None

    name = "kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tokens(self.tokens, "KL")

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Float[Tensor, ""]:
        refuse_one_output(logits, type(self).__name__)
        if self.tokens is not None:
            logits, reference = (chosen(one, self.tokens, "KL") for one in (logits, reference))
            reference = reference.log_softmax(-1)
        return mean_answered(divergence(logits, reference), batch)


@dataclass(frozen=True, kw_only=True)
class Uniform(_Addressed):
    """Divergence of the masked model from knowing nothing, ``sum_v (1/V) (log(1/V) - log q(v))``, in nats.

    Lowering it suppresses whatever the model would say. It is summed over the vocabulary of ``V`` tokens.

    Attributes:
        on: the stream whose examples it is of.
        run: which run of the mask it is of, ``"kept"`` or ``"complement"``.

    Source: Bayazit et al., "Discovering Knowledge-Critical Subnetworks in Pretrained Language Models" (2024).
    """

    name = "uniform"

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Float[Tensor, ""]:
        refuse_one_output(logits, type(self).__name__)
        surprise = -exact(logits).log_softmax(-1).mean(-1)
        return mean_answered(surprise - math.log(logits.shape[-1]), batch)


@dataclass(frozen=True, kw_only=True)
class LogitDifference(_Addressed):
    """How far the foil's logit stands above the answer's: the negative logit difference, so lower is better.

    Attributes:
        on: the stream whose examples it is of.
        run: which run of the mask it is of, ``"kept"`` or ``"complement"``.

    Raises:
        ValueError: an example has no foil.
    """

    name = "negative_logit_difference"

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Float[Tensor, ""]:
        if bool((batch.foils < 0)[batch.answered].any()):
            raise ValueError(
                "A logit difference needs a foil for each answer but some examples have none, as among three classes. "
                "Give objective=tp.CrossEntropy(), or tp.KL() to what need not have a gradient at the full model."
            )
        return -mean_answered(logit_difference(logits, batch), batch)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(_Addressed):
    """Negative log-probability of the correct answer, in nats; of the accepted ones together, where there are several.

    Attributes:
        on: the stream whose examples it is of.
        run: which run of the mask it is of, ``"kept"`` or ``"complement"``.
        tokens: ids among which the model chooses, such as a verbaliser's words; the whole vocabulary by default.

    Raises:
        ValueError: ``tokens`` has fewer than two ids or one twice, or lacks an answer; the model has one output.

    Example:
        >>> import tlprune as tp
        >>> batch = tp.planted("copy").task.test.rows(torch.tensor([0]))
        >>> answer, logits = int(batch.answers), torch.zeros(1, 1, 30)
        >>> nats = [CrossEntropy(tokens=ids)(logits, batch, logits) for ids in (None, (answer, answer + 1))]
        >>> [round(float(one.exp()), 3) for one in nats]
        [30.0, 2.0]
    """

    tokens: tuple[int, ...] | None = None

    name = "cross_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tokens(self.tokens, "CrossEntropy")

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Float[Tensor, ""]:
        refuse_one_output(logits, type(self).__name__)
        if batch.accepted is not None and self.tokens is None:
            return accepted_nats(logits, batch.accepted).mean()
        logits, answers = self._among(logits, batch)
        return F.cross_entropy(exact(logits).flatten(0, 1), answers.flatten())

    def nats(self, logits: Logits, batch: Batch) -> Float[Tensor, "example answer"]:
        """At each answer position; 0 where there is no answer (-100).

        Raises:
            ValueError: an answer is none of ``tokens``.
        """
        if batch.accepted is not None and self.tokens is None:
            return accepted_nats(logits, batch.accepted)
        logits, answers = self._among(logits, batch)
        flat = F.cross_entropy(exact(logits).flatten(0, 1), answers.flatten(), reduction="none")
        return flat.view(answers.shape)

    def _among(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Int[Tensor, "example answer"]]:
        """Logits and answers, of and among the tokens."""
        answers = batch.answers.to(logits.device)
        if self.tokens is None:
            return logits, answers
        return chosen(logits, self.tokens, "CrossEntropy"), self._numbered(answers)

    def _numbered(self, answers: Int[Tensor, "example answer"]) -> Int[Tensor, "example answer"]:
        """Each answer's place among the tokens."""
        same = answers[..., None] == torch.tensor(self.tokens, device=answers.device)
        strangers = answers[~same.any(-1) & (answers >= 0)]
        if len(strangers):
            raise ValueError(
                f"CrossEntropy over some tokens needs answers among them but token {int(strangers[0])} is an answer "
                f"and none of {self.tokens}. Name all answers, or leave tokens out."
            )
        return same.int().argmax(-1).masked_fill(answers < 0, -100)


@dataclass(frozen=True, kw_only=True)
class SquaredError(_Addressed):
    """Squared difference of a regression's output from the full model's, in the units of its target, squared.

    It is to a model with one output what :class:`KL` is to others, whose log-probability of one class is always 0.

    Attributes:
        on: the stream whose examples it is of.
        run: which run of the mask it is of, ``"kept"`` or ``"complement"``.

    Raises:
        ValueError: the model has more than one output.

    Example:
        >>> import tlprune as tp
        >>> batch = tp.planted("copy").task.test.rows(torch.tensor([0, 1]))
        >>> float(SquaredError()(torch.tensor([[[1.0]], [[5.0]]]), batch, torch.tensor([[[2.0]], [[2.0]]])))
        5.0
    """

    name = "squared_error"

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Float[Tensor, ""]:
        if logits.shape[-1] != 1:
            raise ValueError(
                f"SquaredError compares the outputs of a regression but this model has {logits.shape[-1]} classes or "
                "tokens. Use KL."
            )
        return (exact(logits) - reference).square().mean()


def _check_tokens(tokens: tuple[int, ...] | None, name: str) -> None:
    if tokens is not None and (len(tokens) < 2 or len(set(tokens)) < len(tokens)):
        raise ValueError(
            f"{name} over some tokens needs at least two different ids but got {len(tokens)}, "
            f"{len(set(tokens))} of them different. Name each token once, or leave tokens out."
        )


def chosen(logits: Logits, tokens: tuple[int, ...], name: str) -> Float[Tensor, "example answer chosen"]:
    """Logits of some tokens.

    Raises:
        ValueError: the logits are over fewer tokens.
    """
    if not 0 <= min(tokens) <= max(tokens) < logits.shape[-1]:
        raise ValueError(
            f"{name} needs token ids from 0 to {logits.shape[-1] - 1} but got {min(tokens)} to {max(tokens)}. Take "
            "them from the tokenizer of this model."
        )
    return logits[..., torch.tensor(tokens, device=logits.device)]


def mean_answered(values: Float[Tensor, "example answer"], batch: Batch) -> Float[Tensor, ""]:
    """The mean over the answer positions, without those that fill up examples with fewer answers than others."""
    answered = batch.answered
    return values.mean() if bool(answered.all()) else values[answered.to(values.device)].mean()


def refuse_one_output(logits: Logits, name: str) -> None:
    """Raise a ValueError for a regression: the log-probability of the only class is 0, whatever the model does."""
    if logits.shape[-1] == 1:
        raise ValueError(
            f"{name} needs logits of several classes or tokens but this model has one output, a regression. Use "
            "SquaredError."
        )


def accepted_nats(logits: Logits, accepted: Bool[Tensor, "example vocab"]) -> Float[Tensor, "example answer"]:
    """Negative log of the probability of all accepted classes together."""
    others = ~accepted[:, None].to(logits.device)
    return -exact(logits).log_softmax(-1).masked_fill(others, -math.inf).logsumexp(-1)


def exact(logits: Tensor) -> Tensor:
    """In at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def divergence(logits: Logits, reference: Logits) -> Float[Tensor, "example answer"]:
    """KL(reference || logits) at each answer position, in nats."""
    return (reference.exp() * (reference - exact(logits).log_softmax(-1))).sum(-1)


def logit_difference(logits: Logits, batch: Batch) -> Float[Tensor, "example answer"]:
    """Logit of the correct token less that of the foil; of any two where an example is filled up."""
    pick = torch.stack([batch.answers, batch.foils], -1).clamp(min=0).to(logits.device)
    answer, foil = exact(logits).gather(-1, pick).unbind(-1)
    return answer - foil


def faithful(masked: Masked) -> Objective:
    """What is small where a masked model does as the full one: of numbers their squared difference, else the KL.

    Example:
        >>> import tlprune as tp
        >>> [faithful(tp.Masked(one.model, one.circuit)).name for one in (tp.planted("copy"), tp.tracr("xproportion"))]
        ['kl', 'squared_error']
    """
    return SquaredError() if vocabulary(masked.backend) == 1 else KL()
