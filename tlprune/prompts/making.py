"""The vectors that a prompt starts with."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.tasks.tokenising import prompt_place, token_ids, tokenizer_of

SPREAD = 1 / 30  # standard deviation of drawn vectors, as in the authors' code
Vectors = Float[Tensor, "prompt d_model"]


def drawn(model: Any, length: int, *, seed: int) -> tuple[Vectors, int]:
    """Drawn vectors, behind [MASK] in encoders; and how many of them are not drawn.

    Raises:
        ValueError: the length is below 1.
    """
    if length < 1:
        raise ValueError(f"A prompt needs at least one vector but {length} are asked for. Ask for more, such as 16.")
    backend, first = backend_of(model), _mask(model)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(length - len(first), backend.d_model, generator=generator) * SPREAD
    return torch.cat([embedded(model, first), vectors]), len(first)


def spelt(model: Any, text: str) -> tuple[Vectors, int]:
    """The vectors of a text's tokens, behind [MASK] in encoders; and how many come before the text.

    Raises:
        ValueError: the text has no tokens or unknown ones.
    """
    tokenizer, first = tokenizer_of(model), _mask(model)
    ids = token_ids(tokenizer, text)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not ids or unknown in ids:
        given = "none" if not ids else "an unknown one"
        raise ValueError(f"A written prompt needs known tokens but {text!r} has {given}. Give other words.")
    return embedded(model, [*first, *ids]), len(first)


@torch.no_grad()
def embedded(model: Any, ids: list[int]) -> Vectors:
    """What a model's embedding gives for token ids, in float32 at least, on the CPU."""
    backend = backend_of(model)
    if not ids:
        return torch.zeros(0, backend.d_model)
    vectors = backend.embedding(torch.tensor([ids], device=backend.device))[0].cpu()
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32)).clone()


def _mask(model: Any) -> list[int]:
    """The token that an encoder predicts at; none of decoders."""
    if prompt_place(model) == "end":
        return []
    mask = getattr(tokenizer_of(model), "mask_token_id", None)
    if mask is None:
        raise ValueError(
            f"An encoder's prompt begins with [MASK] but the tokenizer of this {type(model).__name__} has no such "
            "token. Give it one (tokenizer.mask_token), or the vectors themselves: tp.Prompt(vectors, 'start')."
        )
    return [int(mask)]
