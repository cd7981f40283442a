"""The methods that ``tlprune core prune`` takes, and their settings as flags."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_type_hints

from tlprune.learning.objectives import KL, CrossEntropy, LogitDifference
from tlprune.methods import METHODS
from tlprune.methods.provenance import plain

# A study gives these itself, and takes what is best scored.
_OWN = ("sparsity", "nodes", "seed", "selection")
_OBJECTIVES = {"cross-entropy": CrossEntropy(), "logit-difference": LogitDifference(), "kl": KL()}
_PATTERN = "a*|m*"
NODE_METHODS = {
    name: kind
    for name, kind in METHODS.items()
    if {"sparsity", "nodes", "pattern"} <= {field.name for field in dataclasses.fields(kind)}
}


def flags_of(kind: type) -> type:
    """A dataclass of a method's settings: the patterns of all are of heads and MLPs, and objectives are words.

    Where a method has an objective, the loss of the labels is the default: it is there for any number of classes.

    Example:
        >>> import tlprune as tp
        >>> flags = flags_of(tp.HISP)
        >>> flags(batch_size=8)
        HISPSettings(pattern='a*|m*', objective='cross-entropy', normalise='layer', batch_size=8)
        >>> method_of(tp.HISP, flags(batch_size=8)).objective
        CrossEntropy(on='main', run='kept', tokens=None)
    """
    hints = get_type_hints(kind)
    listed = [_flag(field, hints[field.name]) for field in dataclasses.fields(kind) if field.name not in _OWN]
    made = dataclasses.make_dataclass(f"{kind.__name__}Settings", listed, frozen=True)
    made.__doc__ = kind.__doc__
    return made


def _flag(field: Any, hint: Any) -> tuple[str, Any, Any]:
    if field.name == "objective":
        return field.name, Literal[tuple(_OBJECTIVES)], dataclasses.field(default="cross-entropy")
    return field.name, hint, dataclasses.field(default=_PATTERN if field.name == "pattern" else field.default)


def method_of(kind: type, flags: Any) -> Any:
    """The method with these settings.

    Raises:
        ValueError: as the method raises.
    """
    given = vars(flags)
    if "objective" in given:
        given = {**given, "objective": _OBJECTIVES[given["objective"]]}
    return kind(**given)


def told_of(method: Any) -> dict[str, Any]:
    """A method as plain data, without what differs between the searches of a study."""
    return {name: value for name, value in plain(method).items() if name not in ("sparsity", "nodes", "seed")}
