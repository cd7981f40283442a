"""A recipe's settings as flags, without those that an action sets itself."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints


def without(kind: type, *names: str) -> Any:
    """A dataclass of a recipe's fields but for some.

    Example:
        >>> import tlprune as tp
        >>> chosen = without(tp.SkillNeurons, "sparsity", "neurons", "selection")
        >>> [field.name for field in dataclasses.fields(chosen)][:3], chosen().probe
        (['probe', 'aggregate', 'positions'], 'prompt')
    """
    hints = get_type_hints(kind)
    chosen = [field for field in dataclasses.fields(kind) if field.name not in names]
    listed = [(one.name, hints[one.name], _with_default(one)) for one in chosen]
    made = dataclasses.make_dataclass(f"{kind.__name__}Settings", listed, frozen=True)
    made.__doc__ = kind.__doc__
    return made


def _with_default(field: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field(default=field.default)
