"""Text pairs in, a task out: a prompt, its twin, and the two next words that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tlprune.task import Task, Tokenisation
from tlprune.tasks.rows import PaddingSide, Row, task_of_rows
from tlprune.tasks.tokenising import (
    beginning,
    is_one_token,
    padding_token,
    token_bounds,
    token_ids,
    tokenizer_of,
    tokens_within,
)


@dataclass(frozen=True)
class Pair:
    """A prompt, its counterfactual twin, and the two next words that are compared.

    Attributes:
        clean: prompt whose behaviour is explained.
        corrupt: twin with as many tokens, in which the deciding information is replaced.
        answer: right continuation of ``clean``, with its leading space if it has one (``" he"``).
        foil: wrong continuation that the answer is compared with.
        label: class or number of the example.
        spans: words of ``clean`` by name: first character, and the one after the last.
    """

    clean: str
    corrupt: str
    answer: str
    foil: str
    label: int | None = None
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)


def from_pairs(
    name: str,
    model: Any,
    *,
    train: Sequence[Pair],
    validation: Sequence[Pair],
    test: Sequence[Pair],
    prepend_bos: bool | None = None,
    padding_side: PaddingSide = "right",
    options: Mapping[str, Any] | None = None,
    span_names: Sequence[str] = (),
) -> Task:
    """A task from pairs of text.

    Answers are tokenised in context: the tokens of prompt plus answer must be those of the prompt and one more. The
    prediction that is read is the one at the last real token of each prompt. Pairs may differ in length; shorter ones
    are padded.

    Args:
        name: short name of the task.
        model: a model that carries its tokenizer as ``model.tokenizer``, or a Hugging Face tokenizer.
        train: pairs that a method learns from.
        validation: pairs for thresholds and early stopping.
        test: pairs for evaluation alone.
        prepend_bos: whether exactly one beginning-of-sequence token goes first; ``None`` means wherever the tokenizer
            has one.
        padding_side: where shorter prompts are padded.
        options: how the pairs were made, as plain data, to be saved with results.
        span_names: the spans to tell apart, of those in ``Pair.spans``. ``"end"`` is the last token of a prompt and
            ``"x+1"`` the token behind the span ``x``, wherever no word of the pair is there.

    Raises:
        ValueError: if there is no tokenizer, a split is empty, the two prompts of a pair differ in their number of
            tokens, an answer or foil is not exactly one token in its context, both are the same token, or spans
            overlap or cut a token.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        >>> he = Pair("I know that John is kind, isn't", "I know that Mary is kind, isn't", " he", " she")
        >>> task = from_pairs("tag", tokenizer, train=[he], validation=[he], test=[he])
        >>> tokenizer.decode(task.test.clean.ids[0]), tokenizer.decode(task.test.answers[0])
        ("<bos> I know that John is kind , isn 't", 'he')
        >>> task.test.positions.tolist()
        [[9]]
    """
    tokenizer, names = tokenizer_of(model), tuple(span_names)
    first = beginning(tokenizer, prepend_bos)
    splits = {
        split: [_row(tokenizer, pair, first, names) for pair in pairs]
        for split, pairs in (("train", train), ("validation", validation), ("test", test))
    }
    tokenisation = Tokenisation(bool(first), padding_side)
    padding = padding_token(tokenizer)
    return task_of_rows(name, splits, tokenisation, padding=padding, options=options or {}, span_names=names)


def _row(tokenizer: Any, pair: Pair, first: list[int], span_names: tuple[str, ...]) -> Row:
    clean, corrupt = token_ids(tokenizer, pair.clean), token_ids(tokenizer, pair.corrupt)
    if len(clean) != len(corrupt):
        raise ValueError(
            f"A pair needs prompts with equally many tokens but {pair.clean!r} has {len(clean)} and {pair.corrupt!r} "
            f"has {len(corrupt)}. Replace words by others with as many tokens."
        )
    answer, foil = (_next_token(tokenizer, pair, word) for word in (pair.answer, pair.foil))
    if answer == foil:
        raise ValueError(
            f"A pair needs a foil that differs from its answer but {pair!r} has one token for both. Give another foil."
        )
    spans = [-1] * len(first) + span_numbers(tokenizer, pair, span_names) if span_names else None
    last = len(first + clean) - 1
    return Row(first + clean, first + corrupt, [last], [answer], [foil], pair.label, spans)


def _next_token(tokenizer: Any, pair: Pair, word: str) -> int:
    if not is_one_token(tokenizer, pair.clean, word):
        pieces = [
            tokenizer.convert_ids_to_tokens(token_ids(tokenizer, text)) for text in (pair.clean, pair.clean + word)
        ]
        raise ValueError(
            f"An answer or foil must add one token to its prompt but {word!r} turns {pieces[0]} into {pieces[1]} "
            f"in {pair!r}. Give a word that is a single token there, with its leading space."
        )
    return token_ids(tokenizer, pair.clean + word)[-1]


def span_numbers(tokenizer: Any, pair: Pair, names: Sequence[str]) -> list[int]:
    """For each token of the clean prompt the place of its span in ``names``, or -1.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> pair = Pair("So Mary is kind", "So John is kind", " and", " so", spans={"name": (3, 7)})
        >>> span_numbers(AutoTokenizer.from_pretrained(DIRECTORY), pair, ["name", "name+1", "end"])
        [-1, 0, 1, 2]
    """
    bounds = token_bounds(tokenizer, pair.clean)
    words = {name: tokens_within(pair.clean, bounds, *place) for name, place in pair.spans.items()}
    numbers = [-1] * len(bounds)
    for name, tokens in words.items():
        if name not in names or any(numbers[token] != -1 for token in tokens):
            raise ValueError(
                f"Spans need names among {list(names)} and words that do not overlap but {name!r} is not so in "
                f"{pair!r}. Mark each word once, and list its name in span_names."
            )
        for token in tokens:
            numbers[token] = names.index(name)
    for name in (name for name in names if name not in words):
        token = _token_beside(name, words, len(bounds))
        if token is not None and numbers[token] == -1:
            numbers[token] = names.index(name)
    return numbers


def _token_beside(name: str, words: Mapping[str, range], count: int) -> int | None:
    if name == "end":
        return count - 1
    before = words.get(name.removesuffix("+1"))
    return before.stop if before is not None and before.stop < count else None
