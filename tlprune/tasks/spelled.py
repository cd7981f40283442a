"""Answers of one token or several: each of them is read from the token before, given the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tlprune.tasks.pairs import Pair, span_numbers
from tlprune.tasks.rows import Row
from tlprune.tasks.tokenising import token_ids


def spelled_row(tokenizer: Any, pair: Pair, first: Sequence[int], *, most: int, span_names: Sequence[str] = ()) -> Row:
    """One example whose answer may be of several tokens.

    Prompt and twin are both followed by the answer without its last token, so they differ where the pair differs and
    nowhere else. A foil's tokens stand beside the answer's; one that is over sooner is followed by the answer's own
    tokens, from which nothing differs.

    Args:
        tokenizer: a Hugging Face tokenizer.
        pair: the prompt, its twin, answer and foil.
        first: token ids in front of the prompt.
        most: tokens of the longest answer in the task; shorter ones are filled up with -100.
        span_names: as of :func:`~tlprune.tasks.from_pairs`.

    Raises:
        ValueError: prompt and twin differ in their numbers of tokens, or the answer changes tokens of the prompt.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        >>> row = spelled_row(tokenizer, Pair("John is", "Mary is", " kind and brave", " brave"), [], most=4)
        >>> tokenizer.decode(row.clean), tokenizer.decode(row.corrupt), row.positions
        ('John is kind and', 'Mary is kind and', [1, 2, 3, 3])
        >>> tokenizer.decode(row.answers[:3]), tokenizer.decode(row.foils[:3]), row.answers[3]
        ('kind and brave', 'brave and brave', -100)
    """
    clean, corrupt = token_ids(tokenizer, pair.clean), token_ids(tokenizer, pair.corrupt)
    if len(clean) != len(corrupt):
        raise ValueError(
            f"A pair needs prompts with equally many tokens but {pair.clean!r} has {len(clean)} and {pair.corrupt!r} "
            f"has {len(corrupt)}. Replace words by others with as many tokens."
        )
    answer, foil = (spelling(tokenizer, pair.clean, word) for word in (pair.answer, pair.foil))
    last, missing = len(first) + len(clean) - 1, most - len(answer)
    foil = [*foil, *answer[len(foil) :]][: len(answer)]
    spans = [-1] * len(first) + span_numbers(tokenizer, pair, span_names) if span_names else None
    return Row(
        [*first, *clean, *answer[:-1]],
        [*first, *corrupt, *answer[:-1]],
        [last + min(number, len(answer) - 1) for number in range(most)],
        answer + [-100] * missing,
        foil + [-100] * missing,
        pair.label,
        spans and spans + [-1] * (len(answer) - 1),
    )


def spelling(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """The tokens that ``word`` adds to ``prompt``.

    Raises:
        ValueError: it adds none, or changes tokens of the prompt.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        >>> tokenizer.convert_ids_to_tokens(spelling(tokenizer, "from 17", " and 32"))
        ['and', '32']
    """
    before, after = token_ids(tokenizer, prompt), token_ids(tokenizer, prompt + word)
    if len(after) <= len(before) or after[: len(before)] != before:
        pieces = [tokenizer.convert_ids_to_tokens(ids) for ids in (before, after)]
        raise ValueError(
            f"An answer adds tokens to its prompt and changes none but {word!r} turns {pieces[0]} into {pieces[1]}. "
            "Begin it, or end the prompt, where a token ends."
        )
    return after[len(before) :]
