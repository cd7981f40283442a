"""One prompt to be looked at: its ids and its pieces of text."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from jaxtyping import Int

from tlprune.task import Tokens

Prompt = Tokens | Int[torch.Tensor, "pos"] | str


def tokens_of(model: Any, prompt: Prompt) -> Tokens:
    """A prompt as a batch of one, without padding, on the model's device.

    Args:
        model: decides the device, and how words are tokenised: by ``model.to_tokens``, which may put a token in front.
        prompt: ids, tokens of one row, or words.

    Raises:
        ValueError: there is not just one row, or the model has no tokenizer for words.
    """
    if isinstance(prompt, str):
        if getattr(model, "tokenizer", None) is None:
            raise ValueError("Words need a model with a tokenizer but this one has none. Give ids.")
        found = Tokens(model.to_tokens(prompt))
    else:
        found = prompt if isinstance(prompt, Tokens) else Tokens(torch.atleast_2d(prompt))
    if len(found.ids) != 1:
        raise ValueError(
            f"A view is of one prompt but got {len(found.ids)}. Give one row: task.test.clean.rows(torch.tensor([0]))."
        )
    return _unpadded(found).to(next(model.parameters()).device)


def _unpadded(tokens: Tokens) -> Tokens:
    """The same without padding on either side."""
    return tokens if tokens.attention_mask is None else tokens.columns(tokens.attention_mask[0] > 0)


def pieces_of(model: Any, tokens: Tokens) -> list[str]:
    """What each token adds to the text, spaces included; its number, where the model has no tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    ids = tokens.ids[0].tolist()
    if tokenizer is None:
        return [str(number) for number in ids]
    texts = [tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)]
    pairs = zip(ids, texts, texts[1:], strict=False)
    return [text[len(before) :] if text.startswith(before) else tokenizer.decode([one]) for one, before, text in pairs]


def circuitsvis(part: str) -> Any:
    """A module of CircuitsVis.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return importlib.import_module(f"circuitsvis.{part}")
    except ImportError:
        raise ModuleNotFoundError(
            "This view needs circuitsvis, which is not installed. Run pip install circuitsvis"
        ) from None
