"""Sentences as tokens that end with the tail, and how probable a model finds their tails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.task import Tokens
from tlprune.tasks.knowledge.facts import Fact
from tlprune.tasks.tokenising import is_one_token, padding_token, token_ids

SENTENCES_AT_ONCE = 64


class UnfitTailError(ValueError):
    """A fact that a tokenizer cannot ask for at one position."""


@dataclass(frozen=True)
class Sentence:
    """One wording of a fact.

    Attributes:
        fact: what it says.
        template: name of its template.
        ids: its tokens; the last one is the tail.
    """

    fact: Fact
    template: str
    ids: tuple[int, ...]

    @property
    def position(self) -> int:
        """Where the tail is predicted: in front of it."""
        return len(self.ids) - 2

    @property
    def tail(self) -> int:
        return self.ids[-1]


def encoded(tokenizer: Any, fact: Fact, template: str, text: str, *, first: Sequence[int]) -> Sentence:
    """A sentence behind the tokens that go first.

    Raises:
        UnfitTailError: it does not end with the tail, the tail is not one token there, or the tokenizer lacks a word.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        >>> one = encoded(tokenizer, Fact("Mary", "is", "kind"), "is", "Mary is kind", first=[1])
        >>> tokenizer.convert_ids_to_tokens(one.ids), one.position
        (['<bos>', 'Mary', 'is', 'kind'], 2)
    """
    before = text[: len(text) - len(fact.tail)].rstrip()
    if not text.endswith(fact.tail) or not before.strip():
        raise UnfitTailError(
            f"A sentence of the fact {fact} must end with its tail but is {text!r}. Put {fact.tail!r} last, behind "
            "other words."
        )
    ids = token_ids(tokenizer, text)
    if not is_one_token(tokenizer, before, text[len(before) :]):
        pieces = tokenizer.convert_ids_to_tokens(ids[len(token_ids(tokenizer, before)) :])
        raise UnfitTailError(
            f"The tail of the fact {fact} must be one token in {text!r} but is {pieces}. Choose another tail, or leave "
            'such facts out: multi_token="skip".'
        )
    _check_words(tokenizer, fact, text, ids)
    return Sentence(fact, template, (*first, *ids))


def _check_words(tokenizer: Any, fact: Fact, text: str, ids: Sequence[int]) -> None:
    """Byte pairs spell anything; a tokenizer of whole words puts one token for all that it lacks."""
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        raise UnfitTailError(
            f"The fact {fact} needs words that the tokenizer has but {text!r} holds some that it lacks. Choose other "
            'words, or leave such facts out: multi_token="skip".'
        )


@torch.no_grad()
def tail_logits(model: Any, sentences: Sequence[Sentence]) -> Float[Tensor, "sentence vocab"]:
    """Next-token logits in front of the tails, on the processor and in float32."""
    backend, tokenizer = backend_of(model), model.tokenizer
    found = []
    for start in range(0, len(sentences), SENTENCES_AT_ONCE):
        some = sentences[start : start + SENTENCES_AT_ONCE]
        positions = torch.tensor([[one.position] for one in some], device=backend.device)
        tokens = side_by_side(some, padding_token(tokenizer)).to(backend.device)
        found.append(backend.logits(tokens, positions)[:, 0].float().cpu())
    return torch.cat(found)


def tail_log_probs(model: Any, sentences: Sequence[Sentence]) -> Float[Tensor, "sentence"]:
    """Log-probabilities of the tails, in nats; the perplexity of a tail is ``exp`` of less that."""
    if not sentences:
        return torch.zeros(0)
    return -torch.nn.functional.cross_entropy(tail_logits(model, sentences), _tails(sentences), reduction="none")


def tail_ranks(model: Any, sentences: Sequence[Sentence]) -> list[int]:
    """How many tokens are at least as probable as the tail, itself among them: 1 where it is the most probable."""
    logits = tail_logits(model, sentences)
    return (logits >= logits.gather(1, _tails(sentences)[:, None])).sum(dim=1).tolist()


def side_by_side(sentences: Iterable[Sentence], padding: int) -> Tokens:
    """Token ids padded on the right, with an attention mask unless all are equally long."""
    rows = [one.ids for one in sentences]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(width) < lengths[:, None]).long()
    return Tokens(ids) if bool(mask.all()) else Tokens(ids, mask)


def _tails(sentences: Sequence[Sentence]) -> Tensor:
    return torch.tensor([one.tail for one in sentences])
