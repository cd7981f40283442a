"""Answers that a circuit generates token by token, each the likeliest one, compared with the right ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.evaluation.bench import Bench
from tlprune.evaluation.table import aligned
from tlprune.learning.bootstrap import Interval, interval
from tlprune.masking.ablation import Ablation
from tlprune.masking.masked import Masked
from tlprune.task import Batch, Task, Tokens

Generated = Int[Tensor, "example answer"]


@dataclass(frozen=True)
class GreedyAnswers:
    """What a circuit and the full model generate; printing it gives a table.

    Attributes:
        circuit: tokens that the circuit generates, ``(example, answer)``; -100 behind the end of a shorter answer.
        full: those of the full model.
        right: the right answers.
    """

    circuit: Generated
    full: Generated
    right: Generated

    @property
    def exact(self) -> Bool[Tensor, "example"]:
        """Which of the circuit's answers are right in every token."""
        return (self.circuit == self.right).all(-1)

    @property
    def full_exact(self) -> Bool[Tensor, "example"]:
        """Which of the full model's are."""
        return (self.full == self.right).all(-1)

    @property
    def agrees(self) -> Bool[Tensor, "example"]:
        """Where the circuit generates what the full model does."""
        return (self.circuit == self.full).all(-1)

    def texts(self, tokenizer: Any) -> list[str]:
        """The circuit's answers in words."""
        return [tokenizer.decode([token for token in row if token >= 0]) for row in self.circuit.tolist()]

    def intervals(self) -> dict[str, Interval]:
        """Shares of the examples, with 95% bootstrap intervals over them."""
        known = {"exact_match": self.exact, "full_exact_match": self.full_exact, "agreement": self.agrees}
        return {name: interval(lambda mean: mean, values.double()) for name, values in known.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"examples": len(self.right), **{name: one.as_dict() for name, one in self.intervals().items()}}

    def __str__(self) -> str:
        rows = [[name.replace("_", " "), f"{one.value:.3f}", str(one)] for name, one in self.intervals().items()]
        return "\n".join([*aligned(["", "share", "95%"], rows), f"{len(self.right)} examples, decoded greedily"])


def greedy_answers(
    model: Any,
    circuit: Circuit,
    examples: Batch | Task,
    *,
    ablation: Ablation | None = None,
    batch_size: int = 64,
) -> GreedyAnswers:
    """Let a circuit answer prompts freely and compare with the right answers.

    Other figures read each token of an answer given the true ones before it; here the token before is the one that was
    generated. All answers have the length of the right ones. The twin, from which ablated activations come, goes on
    with the same generated tokens, so that it still differs just where the pair does.

    Args:
        model: the model that the circuit is of; one whose positions see only those before them.
        circuit: what to keep.
        examples: ``task.test``; or the task itself, whose test examples are taken.
        ablation: what replaces ablated sites; by default as :func:`tlprune.evaluate`.
        batch_size: examples per forward pass.

    Raises:
        ValueError: the circuit belongs to another model, the model sees later positions, or the tokens of an answer do
            not follow one another.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> found = greedy_answers(planted.model, planted.circuit, planted.task)
        >>> float(found.exact.double().mean()), float(found.agrees.double().mean())
        (1.0, 1.0)
    """
    bench = Bench.of(model, circuit, examples, ablation=ablation)
    _check(bench)
    parts = [part.to(bench.masked.backend.device) for part in bench.examples.split(batch_size)]
    kept, everything = circuit.kept, torch.ones_like(circuit.kept)
    found = [torch.cat([generated(bench.masked, part, mask) for part in parts]) for mask in (kept, everything)]
    return GreedyAnswers(found[0], found[1], bench.examples.answers.cpu())


@torch.no_grad()
def generated(masked: Masked, batch: Batch, kept: Bool[Tensor, "site"]) -> Generated:
    """The tokens that a circuit puts in the places of the answers, each likeliest given those before."""
    there, places = batch.answers >= 0, _places(batch)
    batch, rows = _lengthened(batch), torch.arange(len(batch), device=places.device)
    columns: list[Tensor] = []
    for place in places.unbind(1):
        if columns:
            _write(batch, rows, place, columns[-1])
        one = {"positions": place[:, None], "answers": batch.answers[:, :1], "foils": batch.foils[:, :1]}
        logits = masked(dataclasses.replace(batch, **one), mask=kept.float())
        columns.append(logits[:, 0].argmax(-1))
    return torch.stack(columns, 1).where(there, -100).cpu()


def _places(batch: Batch) -> Int[Tensor, "example answer"]:
    """From the end of each prompt on, one position for each token of the longest answer."""
    return batch.positions[:, :1] + torch.arange(batch.answers.shape[1], device=batch.positions.device)


def _write(batch: Batch, rows: Tensor, place: Tensor, token: Tensor) -> None:
    for tokens in (batch.clean, batch.corrupt):
        tokens.ids[rows, place] = token
        if tokens.attention_mask is not None:
            tokens.attention_mask[rows, place] = 1


def _lengthened(batch: Batch) -> Batch:
    """A copy with room behind all prompts for the longest answer; nothing there is seen before it is written."""
    more = max(0, int(_places(batch).max()) + 1 - batch.clean.ids.shape[1])
    spans = None if batch.spans is None else _filled(batch.spans, more, -1)
    clean, corrupt = (_longer(tokens, more) for tokens in (batch.clean, batch.corrupt))
    return dataclasses.replace(batch, clean=clean, corrupt=corrupt, spans=spans)


def _longer(tokens: Tokens, more: int) -> Tokens:
    types = tokens.token_types
    return Tokens(
        _filled(tokens.ids, more, 0),
        None if tokens.attention_mask is None else _filled(tokens.attention_mask, more, 0),
        None if types is None else _filled(types, more, 0),
    )


def _filled(values: Tensor, more: int, filler: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, more), value=filler)


def _check(bench: Bench) -> None:
    if bench.masked.backend.architecture.post_norm:
        raise ValueError(
            "Greedy decoding needs a model whose positions see only those before them but this is an encoder. Measure "
            "it with tp.evaluate."
        )
    batch = bench.examples
    steps = batch.positions[:, 1:] - batch.positions[:, :-1]
    if not bool((steps == 1)[batch.answers[:, 1:] >= 0].all()):
        raise ValueError(
            "Greedy decoding needs answers whose tokens follow one another but some have others between. Give a task "
            "with one answer per prompt."
        )
