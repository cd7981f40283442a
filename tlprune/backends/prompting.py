"""Soft prompts: vectors that stand where the embeddings of prompt tokens would.

A model of ``V`` embedded tokens reads the id ``V + i`` as the vector ``i`` of the prompt that is attached to it. No
ordinary token can be mistaken for one, and prompts of tokens are data like any others.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module


@dataclass(frozen=True)
class _Attached:
    """How many vectors, and what says which."""

    count: int
    name: Callable[[], str]


_ATTACHED: weakref.WeakKeyDictionary[Module, _Attached] = weakref.WeakKeyDictionary()


def embedded_tokens(embedding: Module) -> int:
    """How many tokens an embedding has, which is the id of the first prompt token."""
    return _weight(embedding).shape[0]


def _weight(embedding: Module) -> Tensor:
    weight = getattr(embedding, "W_E", None)
    return embedding.weight if weight is None else weight  # pyright: ignore[reportReturnType]


def check_ids(embedding: Module, ids: Int[Tensor, "example pos"]) -> None:
    """Raise a ValueError for prompt tokens that the attached prompt does not have, or while none is attached."""
    tokens, attached = embedded_tokens(embedding), _ATTACHED.get(embedding)
    there = attached.count if attached else 0
    needed = int(ids.max()) - tokens + 1 if ids.numel() else 0
    if needed > there:
        given = f"the prompt that is attached has {there}" if there else "no prompt is attached"
        raise ValueError(
            f"These prompts need a soft prompt of at least {needed} vectors, for they hold token ids up to "
            f"{tokens + needed - 1} and the model embeds {tokens} tokens, but {given}. Run inside 'with "
            "prompt.attached(model):', with a prompt of the task's length, or take the model's own tokenizer."
        )


def attached_names(embedding: Module) -> list[str]:
    """The name of the vectors that are attached, if any are: what provenance tells of them."""
    attached = _ATTACHED.get(embedding)
    return [attached.name()] if attached else []


@contextmanager
def attached_vectors(
    embedding: Module, vectors: Float[Tensor, "prompt d_model"], *, name: Callable[[], str]
) -> Iterator[None]:
    """The embedding gives these vectors for the ids from its number of tokens on, until the block ends.

    Gradients reach the vectors, and no weight that does not collect them.

    Args:
        embedding: of the model.
        vectors: for the ids.
        name: says which vectors these are; it is called where somebody asks.

    Raises:
        ValueError: the vectors are of another width, or others are attached already.
    """
    width = _weight(embedding).shape[1]
    if vectors.shape[1] != width:
        raise ValueError(
            f"This model embeds tokens in {width} numbers but the prompt's vectors have {vectors.shape[1]}. Tune one "
            "for this model."
        )
    if already := _ATTACHED.get(embedding):
        raise ValueError(
            f"A model takes one prompt at a time but has one of {already.count} vectors. Leave its block first."
        )
    hooks = _Hooks(embedding, vectors)
    handles = [
        embedding.register_forward_pre_hook(hooks.before),
        embedding.register_forward_hook(hooks.behind, prepend=True),
    ]
    _ATTACHED[embedding] = _Attached(len(vectors), name)
    try:
        yield
    finally:
        del _ATTACHED[embedding]
        for handle in handles:
            handle.remove()


class _Hooks:
    """Shows the embedding ids that it knows, and writes the vectors over what it makes of them."""

    def __init__(self, embedding: Module, vectors: Tensor) -> None:
        self.vectors, self.tokens = vectors, embedded_tokens(embedding)
        self.ids = torch.empty(0)

    def before(self, embedding: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.ids, *rest = inputs
        check_ids(embedding, self.ids)
        return (self.ids.clamp(max=self.tokens - 1), *rest)

    def behind(self, _: Any, __: Any, embedded: Tensor) -> Tensor:
        numbers = (self.ids - self.tokens).clamp(min=0)
        return torch.where((self.ids >= self.tokens)[..., None], self.vectors.to(embedded)[numbers], embedded)
