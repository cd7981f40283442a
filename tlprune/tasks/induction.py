"""Induction: a sequence of words begins again, and what followed before follows now.

Behaviour studied in Olsson et al., "In-context Learning and Induction Heads" (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

from tlprune.task import Task
from tlprune.tasks.pairs import Pair
from tlprune.tasks.sampling import drawn_task
from tlprune.tasks.tokenising import is_one_token, token_ids, tokenizer_of
from tlprune.tasks.words import PLAIN_WORDS

_LENGTHS = (6, 7, 8)
_FEWEST_WORDS = 20
SPAN_NAMES: tuple[str, ...] = ("first", "before", "next", "again", "end")


def induction(
    model: Any,
    *,
    train: int = 200,
    validation: int = 100,
    test: int = 200,
    seed: int = 0,
    words: Sequence[str] | None = None,
) -> Task:
    """Prompts "A B C D E F ... B C", which D completes: random words, of which a stretch comes again.

    In the twin the second stretch is made of other words, so nothing is repeated. The foil is another word of the
    prompt. Words that are not one token under the tokenizer are dropped. All splits draw from the same words: what a
    prompt repeats, and where, is new in each.

    Spans: ``first``, the stretch that comes again but for its last word; ``before``, that last word; ``next``, the word
    behind it, which is the answer; ``again``, the stretch when it comes again; ``end``, its last word there.

    Args:
        model: a model with a tokenizer, or a Hugging Face tokenizer.
        train: examples to learn from.
        validation: examples for thresholds and early stopping.
        test: examples for evaluation.
        seed: fixes every draw.
        words: words to draw from.

    Raises:
        ValueError: if too few words are one token each.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> task = induction(AutoTokenizer.from_pretrained(DIRECTORY), train=8, validation=4, test=4)
        >>> bool((task.test.clean.ids == task.test.answers).any(dim=1).all())
        True
    """
    draw = partial(sample_pair, words=_usable(tokenizer_of(model), PLAIN_WORDS if words is None else tuple(words)))
    return drawn_task(
        "induction",
        model,
        discovery=draw,
        test=draw,
        rng=Random(seed),
        sizes={"train": train, "validation": validation, "test": test},
        options={"seed": seed},
        span_names=SPAN_NAMES,
    )


def sample_pair(rng: Random, *, words: Sequence[str] = PLAIN_WORDS) -> Pair:
    """One pair of different words, six to eight of them, followed by two to four of them again.

    Example:
        >>> pair = sample_pair(Random(0), words="abcdefghijklmnop")
        >>> pair
        Pair(clean='b e i h g o m e i h', corrupt='b e i h g o m f d k', answer=' g', foil=' o', label=None,
             spans={'first': (2, 5), 'before': (6, 7), 'next': (8, 9), 'again': (14, 17)})
    """
    length, repeated = rng.choice(_LENGTHS), rng.choice((2, 3, 4))
    drawn = rng.sample(words, length + repeated)
    sequence, strangers = drawn[:length], drawn[length:]
    begin = rng.randrange(length - repeated)
    again, answer = sequence[begin : begin + repeated], sequence[begin + repeated]
    foil = rng.choice([word for word in sequence if word != answer and word not in again])
    clean, corrupt = " ".join(sequence + again), " ".join(sequence + strangers)
    return Pair(clean, corrupt, f" {answer}", f" {foil}", spans=_spans(sequence + again, begin, length, repeated))


def _spans(prompt: list[str], begin: int, length: int, repeated: int) -> dict[str, tuple[int, int]]:
    """Where the stretch that comes again stands, the word behind it, and where it comes again, as characters."""
    last = begin + repeated - 1
    words = {"first": (begin, last), "before": (last, last + 1), "next": (last + 1, last + 2)}
    words["again"] = (length, len(prompt) - 1)
    starts = [len(" ".join(prompt[:place])) + bool(place) for place in range(len(prompt) + 1)]
    return {name: (starts[first], starts[end] - 1) for name, (first, end) in words.items()}


def _usable(tokenizer: Any, words: Sequence[str]) -> list[str]:
    usable = [
        word for word in words if len(token_ids(tokenizer, word)) == 1 and is_one_token(tokenizer, "and", f" {word}")
    ]
    if len(usable) < _FEWEST_WORDS:
        raise ValueError(
            f"Induction needs {_FEWEST_WORDS} words that are one token each but under this tokenizer {len(usable)} of "
            f"{len(words)} are. Give others with words=."
        )
    return usable
