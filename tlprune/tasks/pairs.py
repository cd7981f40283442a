"""Text pairs in, a task out: the tokenisation that every prompt-pair task shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tlprune.task import MAIN, Batch, Stream, Task, Tokenisation, Tokens

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class Pair:
    """A prompt, its counterfactual twin, and the two next words that are compared.

    Attributes:
        clean: prompt whose behaviour is explained.
        corrupt: twin with as many tokens, in which the deciding information is replaced.
        answer: right continuation of ``clean``, with its leading space if it has one (``" he"``).
        foil: wrong continuation that the answer is compared with.
    """

    clean: str
    corrupt: str
    answer: str
    foil: str


@dataclass(frozen=True)
class _Row:
    clean: list[int]
    corrupt: list[int]
    answer: int
    foil: int


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
) -> Task:
    """A task from pairs of text.

    Answers are tokenised in context: the tokens of prompt plus answer must be those of the prompt and one more. The
    prediction that is read is the one at the last real token of each prompt.

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

    Raises:
        ValueError: if there is no tokenizer, a split is empty, the two prompts of a pair differ in their number of
            tokens, or an answer or foil is not exactly one token in its context, or both are the same token.

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
    tokenizer = tokenizer_of(model)
    if prepend_bos is None:
        prepend_bos = tokenizer.bos_token_id is not None
    first = [_bos(tokenizer)] if prepend_bos else []
    splits = (
        _batch(name, [_row(tokenizer, pair, first) for pair in pairs], _padding(tokenizer), padding_side)
        for pairs in (train, validation, test)
    )
    return Task(name, {MAIN: Stream(*splits)}, Tokenisation(prepend_bos, padding_side), dict(options or {}))


def tokenizer_of(model: Any) -> Any:
    """The tokenizer that a model carries, or the argument itself where it is one.

    Raises:
        ValueError: if neither is the case.
    """
    tokenizer = getattr(model, "tokenizer", model)
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise ValueError(
            f"A text task needs a tokenizer but {type(model).__name__} carries none. "
            "Set model.tokenizer, or give a Hugging Face tokenizer in place of the model."
        )
    return tokenizer


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of the text alone, without the special tokens that some tokenizers add."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def is_one_token(tokenizer: Any, prompt: str, word: str) -> bool:
    """Whether ``word`` adds exactly one token to ``prompt`` and leaves the prompt's own tokens as they are."""
    before, after = token_ids(tokenizer, prompt), token_ids(tokenizer, prompt + word)
    return len(after) == len(before) + 1 and after[:-1] == before


def _bos(tokenizer: Any) -> int:
    if tokenizer.bos_token_id is None:
        raise ValueError(
            "prepend_bos=True needs a beginning-of-sequence token but this tokenizer has none. "
            "Set tokenizer.bos_token, or give prepend_bos=False."
        )
    return int(tokenizer.bos_token_id)


def _padding(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    return 0


def _row(tokenizer: Any, pair: Pair, first: list[int]) -> _Row:
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
    return _Row(first + clean, first + corrupt, answer, foil)


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


def _batch(name: str, rows: list[_Row], padding: int, side: PaddingSide) -> Batch:
    if not rows:
        raise ValueError(f"Task {name!r} needs at least one pair in each split but one is empty. Give it more pairs.")
    lengths = torch.tensor([len(row.clean) for row in rows])
    width = int(lengths.max())
    last = lengths - 1 if side == "right" else torch.full_like(lengths, width - 1)
    return Batch(
        index=torch.arange(len(rows)),
        clean=_padded([row.clean for row in rows], width, padding, side),
        corrupt=_padded([row.corrupt for row in rows], width, padding, side),
        positions=last[:, None],
        answers=torch.tensor([[row.answer] for row in rows]),
        foils=torch.tensor([[row.foil] for row in rows]),
    )


def _padded(prompts: list[list[int]], width: int, padding: int, side: PaddingSide) -> Tokens:
    ids = torch.tensor([_fill(prompt, width, padding, side) for prompt in prompts])
    if all(len(prompt) == width for prompt in prompts):
        return Tokens(ids)
    return Tokens(ids, torch.tensor([_fill([1] * len(prompt), width, 0, side) for prompt in prompts]))


def _fill(values: list[int], width: int, filler: int, side: PaddingSide) -> list[int]:
    missing = [filler] * (width - len(values))
    return values + missing if side == "right" else missing + values
