"""How probable a masked model finds the answers of a batch, read some positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.learning.reading import MOST_LOGITS
from tlprune.masking.cache import RunCache
from tlprune.masking.masked import Masked
from tlprune.masking.unembedding import unembeds_apart, vocabulary
from tlprune.task import Batch

MOST_TOKENS = 8192  # of the prompts of one forward pass
TOPS = (1, 5, 10)


@dataclass(frozen=True)
class Answered:
    """Of each answer position there is, example after example.

    Attributes:
        example: which example it is of, ``(place,)``.
        nats: ``-log p`` of the answer, ``(place,)``.
        rank: one more than the number of tokens that are likelier than the answer, ``(place,)``.
    """

    example: Int[Tensor, "place"]
    nats: Float[Tensor, "place"]
    rank: Int[Tensor, "place"]

    def of(self, examples: Int[Tensor, "some"]) -> Answered:
        """Those of some examples, by their numbers; examples keep theirs."""
        chosen = torch.isin(self.example, examples)
        return Answered(*(getattr(self, one.name)[chosen] for one in fields(self)))

    def within(self, top: int) -> Bool[Tensor, "place"]:
        """Whether the answer is among the ``top`` likeliest tokens; of ties all count as likeliest."""
        return self.rank <= top


@torch.no_grad()
def answered(masked: Masked, kept: Bool[Tensor, "site"], batch: Batch, *, most: int = MOST_LOGITS) -> Answered:
    """Run a hard circuit on examples and look at their answers.

    Args:
        masked: the model; its own masks are not used.
        kept: 1 for a site that is kept.
        batch: the examples, numbered from 0.
        most: logits that may be alive at once, where they can be computed apart from the rest of the model.
    """
    cache, size = masked.cache(batch), max(1, MOST_TOKENS // batch.clean.ids.shape[1])
    found = [_part(masked, kept, part, cache, most) for part in batch.to(masked.backend.device).split(size)]
    return Answered(*(torch.cat([getattr(one, field.name) for one in found]) for field in fields(Answered)))


def _part(masked: Masked, kept: Tensor, part: Batch, cache: RunCache, most: int) -> Answered:
    places = part.answered.nonzero()
    rows, answers = places.unbind(1)
    wanted = part.answers[rows, answers]
    pairs = [_read(logits, own) for logits, own in _logits(masked, kept.float(), part, cache, places, wanted, most)]
    nats, ranks = (torch.cat(column).cpu() for column in zip(*pairs, strict=True))
    return Answered(part.index[rows].cpu(), nats.double(), ranks)


def _logits(
    masked: Masked, mask: Tensor, part: Batch, cache: RunCache, places: Tensor, wanted: Tensor, most: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits at some of the places, ``(place, vocab)``, with the tokens that are right there; then at the next."""
    replaced, (rows, answers) = cache.replaced(part), places.unbind(1)
    read: Callable[[Tensor], Tensor] = lambda values: values  # noqa: E731
    if masked.ends_plain and unembeds_apart(masked.backend, part):
        values = masked.stream(part, mask=mask, replaced=replaced)
        read = lambda values: masked.backend.unembed(values[:, None])[:, 0]  # noqa: E731
    else:
        values = masked(part, mask=mask, replaced=replaced)
    size = max(1, most // max(1, vocabulary(masked.backend)))
    for own, tokens in zip(values[rows, answers].split(size), wanted.split(size), strict=True):
        yield read(own), tokens


def _read(logits: Float[Tensor, "place vocab"], wanted: Int[Tensor, "place"]) -> tuple[Tensor, Tensor]:
    """``-log p`` and rank of the tokens that are right."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = exact.gather(-1, wanted[:, None])
    return exact.logsumexp(-1) - own[:, 0], 1 + (exact > own).sum(-1)
