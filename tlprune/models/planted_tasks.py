"""Prompt pairs of the planted models: token ids drawn at random, no tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tlprune.models.planted_weights import CONTEXT, VOCABULARY
from tlprune.task import MAIN, Batch, Stream, Task, Tokenisation, Tokens

START, ASK = 0, 1
CONTENT = range(2, VOCABULARY)
ON, OFF = range(2, 6), range(6, 10)
YES, NO = 10, 11
GOOD, BAD = range(2, 4), range(4, 6)
TOPICS = (range(6, 8), range(8, 10))

COPIED_POSITION = 3
BIT_POSITIONS = (2, 5)
TOPIC_POSITION, WORD_POSITIONS = 1, range(2, 6)
SPLITS = {"train": 96, "validation": 32, "test": 64}


@dataclass(frozen=True)
class Pairs:
    """Clean prompts, their twins, and the token that is right for each.

    Attributes:
        clean: token ids of the prompts.
        corrupt: token ids of their twins.
        answers: right token after the clean prompt.
        foils: right token after the twin.
        spans: positions of each named span, ``(example, width)``; the last position is the span ``end``.
    """

    clean: Int[Tensor, "example pos"]
    corrupt: Int[Tensor, "example pos"]
    answers: Int[Tensor, "example"]
    foils: Int[Tensor, "example"]
    spans: Mapping[str, Int[Tensor, "example width"]] = field(default_factory=dict)

    @property
    def span_names(self) -> tuple[str, ...]:
        """Names of the spans, ``end`` among them; none where no span is named."""
        return (*self.spans, "end") if self.spans else ()

    def span_numbers(self) -> Int[Tensor, "example pos"] | None:
        """The number of each position's span in :attr:`span_names`, or -1; ``None`` where no span is named."""
        if not self.spans:
            return None
        numbers = torch.full_like(self.clean, -1)
        numbers[:, -1] = len(self.spans)
        for number, positions in enumerate(self.spans.values()):
            numbers.scatter_(1, positions, number)
        return numbers


def copy_pairs(count: int, generator: torch.Generator) -> Pairs:
    """``START c c c c c c ASK``: the answer is the third ``c``; the twin differs in every ``c``.

    Spans: ``copied``, the third ``c``, and ``end``.
    """
    clean = _integers(count, CONTEXT - 2, len(CONTENT), generator)
    shift = 1 + _integers(count, CONTEXT - 2, len(CONTENT) - 1, generator)
    clean, corrupt = (_asked(CONTENT.start + ids % len(CONTENT)) for ids in (clean, clean + shift))
    copied = torch.full((count, 1), COPIED_POSITION)
    return Pairs(clean, corrupt, clean[:, COPIED_POSITION], corrupt[:, COPIED_POSITION], {"copied": copied})


def induction_pairs(count: int, generator: torch.Generator) -> Pairs:
    """``START a A b B c C b``: the answer is ``B``.

    The three keys of the twin are those of the clean prompt, moved one place, and its three values are new. So the
    query, the keys and the values of the induction head, resampled one at a time, each lead to another token.

    Spans: ``key``, where the key that is asked for stands first, ``value`` behind it, and ``end``.
    """
    order = CONTENT.start + torch.rand(count, len(CONTENT), generator=generator).argsort(1)
    keys, values, others = order[:, :9].split(3, dim=1)
    asked = _integers(count, 1, 3, generator)
    clean, corrupt = (_keyed(*pair, asked) for pair in ((keys, values), (keys.roll(1, 1), others)))
    spans = {"key": 1 + 2 * asked, "value": 2 + 2 * asked}
    return Pairs(clean, corrupt, values.gather(1, asked)[:, 0], others.gather(1, asked)[:, 0], spans)


def gate_pairs(count: int, generator: torch.Generator) -> Pairs:
    """``START f x f f y f ASK``: both bits ``x`` and ``y`` are on in the clean prompt and off in its twin.

    Each bit is one of four tokens for on or of four for off; a filler ``f`` is any of the eight. Spans: ``x``, ``y``
    and ``end``.
    """
    bits = range(ON.start, OFF.stop)
    clean, corrupt = (_asked(bits.start + _integers(count, CONTEXT - 2, len(bits), generator)) for _ in range(2))
    for ids, tokens in ((clean, ON), (corrupt, OFF)):
        ids[:, list(BIT_POSITIONS)] = tokens.start + _integers(count, 2, len(tokens), generator)
    spans = {name: torch.full((count, 1), place) for name, place in zip("xy", BIT_POSITIONS, strict=True)}
    return Pairs(clean, corrupt, torch.full((count,), YES), torch.full((count,), NO), spans)


def sentiment_pairs(count: int, generator: torch.Generator) -> Pairs:
    """``START t f w f f f ASK``: one word ``w``, at one of four positions, is good or bad; the twin's is the other.

    All else are words of two topics, of which ``t`` tells nothing of the answer. Every second prompt is a good one.
    Spans: ``word``, which is at another place in other prompts, and ``end``.
    """
    good = torch.arange(count) % 2 == 0
    place = WORD_POSITIONS.start + _integers(count, 1, len(WORD_POSITIONS), generator)
    words = range(TOPICS[0].start, TOPICS[1].stop)
    clean, corrupt = (
        _asked(words.start + _integers(count, CONTEXT - 2, len(words), generator)).scatter(
            1, place, _words(said, generator)
        )
        for said in (good, ~good)
    )
    return Pairs(clean, corrupt, torch.where(good, YES, NO), torch.where(good, NO, YES), {"word": place})


def _words(good: Tensor, generator: torch.Generator) -> Int[Tensor, "example 1"]:
    which = _integers(len(good), 1, len(GOOD), generator)
    return torch.where(good[:, None], GOOD.start + which, BAD.start + which)


def _integers(rows: int, columns: int, end: int, generator: torch.Generator) -> Tensor:
    return torch.randint(end, (rows, columns), generator=generator)


def _asked(content: Tensor) -> Tensor:
    start, ask = (torch.full((len(content), 1), token) for token in (START, ASK))
    return torch.cat([start, content, ask], dim=1)


def _keyed(keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
    pairs = torch.stack([keys, values], dim=2).flatten(1)
    return torch.cat([torch.full((len(keys), 1), START), pairs, keys.gather(1, asked)], dim=1)


PAIRS: dict[str, Callable[[int, torch.Generator], Pairs]] = {
    "copy": copy_pairs,
    "induction": induction_pairs,
    "and": gate_pairs,
    "or": gate_pairs,
    "adder": gate_pairs,
    "sentiment": sentiment_pairs,
}


def build_task(name: str, *, seed: int = 0) -> Task:
    """The task ``planted-<name>`` with 96 train, 32 validation and 64 test examples, no clean prompt twice.

    Args:
        name: a key of :data:`PAIRS`.
        seed: seed of the prompts.

    Example:
        >>> batch = build_task("copy").test
        >>> len(batch), bool((batch.clean.ids[:, 3] == batch.answers[:, 0]).all())
        (64, True)
    """
    drawn = PAIRS[name](2 * sum(SPLITS.values()), torch.Generator().manual_seed(seed))
    return task_of_pairs(f"planted-{name}", drawn, SPLITS, options={"seed": seed, **SPLITS})


def task_of_pairs(name: str, pairs: Pairs, sizes: Mapping[str, int], *, options: Mapping[str, Any]) -> Task:
    """A task of pairs whose answer is read at the last position, without a clean prompt that comes twice.

    Args:
        name: of the task.
        pairs: more of them than are asked for, because some may be alike.
        sizes: examples under ``"train"``, ``"validation"`` and ``"test"``.
        options: how the pairs were made, as plain data.
    """
    parts = _first_of_each(pairs.clean)[: sum(sizes.values())].split(list(sizes.values()))
    stream = Stream(**{split: _batch(pairs, rows) for split, rows in zip(sizes, parts, strict=True)})
    return Task(name, {MAIN: stream}, Tokenisation(prepend_bos=True), options, pairs.span_names)


def _first_of_each(prompts: Tensor) -> Tensor:
    """Rows at which a prompt occurs for the first time."""
    first: dict[tuple[int, ...], int] = {}
    for row, prompt in enumerate(prompts.tolist()):
        first.setdefault(tuple(prompt), row)
    return torch.tensor(list(first.values()))


def _batch(pairs: Pairs, rows: Tensor) -> Batch:
    numbers = pairs.span_numbers()
    return Batch(
        index=torch.arange(len(rows)),
        clean=Tokens(pairs.clean[rows]),
        corrupt=Tokens(pairs.corrupt[rows]),
        positions=torch.full((len(rows), 1), pairs.clean.shape[1] - 1),
        answers=pairs.answers[rows, None],
        foils=pairs.foils[rows, None],
        spans=None if numbers is None else numbers[rows],
        span_names=pairs.span_names,
    )
