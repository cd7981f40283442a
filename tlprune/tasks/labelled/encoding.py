"""Sentences and pairs as the token ids that a model's own tokenizer gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tlprune.task import Tokens
from tlprune.tasks.tokenising import padding_token


@dataclass(frozen=True)
class Encoded:
    """One example before padding.

    Attributes:
        ids: token ids, with the special tokens that the tokenizer puts around sentences.
        types: which sentence each is of; ``None`` where the tokenizer does not tell them apart, as RoBERTa's.
    """

    ids: list[int]
    types: list[int] | None

    def __len__(self) -> int:
        return len(self.ids)


def encode(tokenizer: Any, prompts: Sequence[tuple[str, ...]], *, max_length: int) -> list[Encoded]:
    """Token ids of single sentences or pairs; of longer ones the end of the longer sentence is cut off.

    Raises:
        ValueError: the length leaves no room for text.
    """
    room = max_length - tokenizer.num_special_tokens_to_add(pair=len(prompts[0]) > 1)
    if room < len(prompts[0]):
        raise ValueError(f"Prompts need room for text but max_length is {max_length}. Make it longer, such as 128.")
    sides = [list(side) for side in zip(*prompts, strict=True)]
    found = tokenizer(*sides, truncation="longest_first", max_length=max_length, padding=False)
    types = found.get("token_type_ids") or [None] * len(prompts)
    return [Encoded(list(ids), own) for ids, own in zip(found["input_ids"], types, strict=True)]


def padded(rows: Sequence[Encoded], tokenizer: Any, *, width: int | None = None) -> Tokens:
    """Examples side by side, with an attention mask unless all are equally long.

    Args:
        rows: the examples.
        tokenizer: says what to pad with, and on which side.
        width: tokens per example, at least as many as the longest has; by default just these.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        >>> tokens = padded([Encoded([5, 6, 7], [0, 0, 1]), Encoded([8], [0])], tokenizer)
        >>> tokens.attention_mask.tolist(), tokens.token_types.tolist()
        ([[1, 1, 1], [1, 0, 0]], [[0, 0, 1], [0, 0, 0]])
    """
    width = width or max(map(len, rows))
    side = tokenizer.padding_side
    ids = _table([row.ids for row in rows], width, padding_token(tokenizer), side)
    types = [row.types for row in rows if row.types is not None]
    lengths = [[1] * len(row) for row in rows]
    return Tokens(
        ids,
        None if all(len(row) == width for row in rows) else _table(lengths, width, 0, side),
        _table(types, width, 0, side) if types else None,
    )


def _table(rows: Sequence[list[int]], width: int, filler: int, side: str) -> torch.Tensor:
    table = torch.full((len(rows), width), filler)
    for place, row in zip(table, rows, strict=True):
        place[slice(0, len(row)) if side == "right" else slice(width - len(row), width)] = torch.tensor(row)
    return table
