"""Methods by name, with settings: ``edge-pruning:steps=300``."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tlprune.choices import choice
from tlprune.methods import METHODS
from tlprune.methods.penalised import Penalised
from tlprune.methods.scoring import Scoring

# How a method meets a size: it ranks edges and the first are taken; it is run anew for each; or it has its own.
Mode = Literal["ranked", "one run per size", "one run, ranked", "own size"]


@dataclass(frozen=True)
class Entry:
    """A method under the name that tables call it.

    Attributes:
        label: its name in tables.
        method: the method.
    """

    label: str
    method: Any

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The ways in which it gives circuits of a size. A mask trained for one size is no ranking of the others.

        A mask trained at a price is trained the same for all sizes.
        """
        if isinstance(self.method, (Scoring, Penalised)):
            return ("ranked",)
        trained = any(field.name == "edges" for field in dataclasses.fields(self.method))
        if trained:
            return ("one run per size", "one run, ranked")
        return ("own size", "ranked") if hasattr(self.method, "score") else ("own size",)

    def with_seed(self, seed: int) -> Entry:
        """The same method with another seed."""
        return Entry(self.label, dataclasses.replace(self.method, seed=seed))

    def seeds(self, seeds: Sequence[int]) -> list[int | None]:
        """The seeds that make a difference: one run is all where nothing is left to chance."""
        return list(seeds) if hasattr(self.method, "seed") else [None]


def entries_of(methods: Sequence[str] | Mapping[str, Any]) -> list[Entry]:
    """Methods to compare.

    Args:
        methods: method objects by the name that tables call them, or words such as ``"eap"`` and
            ``"edge-pruning:steps=300,batch_size=16"``.

    Raises:
        ValueError: there is no such method or field, or one comes twice.

    Example:
        >>> [(entry.label, entry.modes) for entry in entries_of(["random"])]
        [('random', ('ranked',))]
        >>> entries_of(["edge-pruning:steps=20"])[0].method.steps
        20
    """
    if not methods:
        raise ValueError(f"A benchmark needs at least one method but got none. Choose from {', '.join(METHODS)}.")
    if isinstance(methods, Mapping):
        return [Entry(label, method) for label, method in methods.items()]
    twice = sorted({word for word in methods if list(methods).count(word) > 1})
    if twice:
        raise ValueError(f"Each method is compared once but {', '.join(twice)} comes twice. Name it once.")
    return [Entry(word, _method(word)) for word in methods]


def _method(word: str) -> Any:
    name, _, settings = word.partition(":")
    kind = choice("method", name, METHODS)
    given = dict(_setting(part, word) for part in settings.split(",") if part)
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted({*given} - {*known})
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(known)}. Use one of these.")
    return kind(**given)


def _setting(part: str, word: str) -> tuple[str, Any]:
    name, equals, value = part.partition("=")
    if not equals:
        raise ValueError(f"A setting is written name=value but {word!r} has {part!r}. Example: edge-pruning:steps=300.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
