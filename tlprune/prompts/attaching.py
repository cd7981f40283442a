"""Prompts as trials: each is attached to a model in turn, or the model runs as it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tlprune.prompts.prompt import Prompt


def trials_of(prompts: Sequence[Prompt]) -> tuple[Prompt | None, ...]:
    """Each prompt is a trial; without prompts there is one, of the model as it is.

    Example:
        >>> trials_of([])
        (None,)
    """
    return tuple(prompts) or (None,)


def attached(model: Any, prompt: Prompt | None) -> AbstractContextManager[Any]:
    """The model with a prompt, or as it is where there is none."""
    return nullcontext(model) if prompt is None else prompt.attached(model)
