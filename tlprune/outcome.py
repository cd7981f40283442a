"""What a command of the command line has to say: the same figures for people and for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a command found.

    Attributes:
        text: for people.
        figures: the same as plain data.
        out: the folder that a run of its own was written to, where there is one; its settings go there as well.
        settings: those that reproduce the run, where they say more than what was typed.

    Example:
        >>> print(Outcome("KL inf", {"kl": float("inf")}).as_json())
        {
         "kl": null
        }
    """

    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None
    settings: Any = None

    def as_json(self) -> str:
        """The figures, and where they were written, as JSON; what is infinite or not a number is ``null``."""
        told = {**self.figures, **({} if self.out is None else {"out": str(self.out)})}
        return json.dumps(_finite(told), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
