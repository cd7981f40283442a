"""``tlprune models``: every model that ``--model`` may name without a path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlprune.commands.listing import listed
from tlprune.models.load import NAMED
from tlprune.models.transformer_lens import official_names
from tlprune.outcome import Outcome


@dataclass(frozen=True)
class Models:
    """List the models that have a name, with one line each.

    Attributes:
        all: also those that TransformerLens downloads.
    """

    all: bool = False


def models(settings: Models) -> Outcome:
    """Those of the package, and TransformerLens' own."""
    own = {name: one.says for name, one in NAMED.items()}
    others = official_names()
    if settings.all:
        return listed({**own, **{name: _downloaded(also) for name, also in others.items()}})
    more = f"A Hugging Face directory is a model, too, and so are {len(others)} names that TransformerLens downloads: "
    return listed(own, more=more + "tlprune models --all")


def _downloaded(also: Sequence[str]) -> str:
    return "downloaded by TransformerLens" + (f"; also called {', '.join(also)}" if also else "")


ACTIONS = {"": ("list the models", Models, models)}
