"""Lists of what has a name, with one line each, from where it is defined."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tlprune.outcome import Outcome


@dataclass(frozen=True)
class Everything:
    """List what there is, with one line each."""


def first_line(documented: Any) -> str:
    """What something says of itself, in one line, without the marks of its markup.

    Example:
        >>> import tlprune as tp
        >>> first_line(tp.Random)
        'Edges by chance alone; the model and the examples are not looked at.'
    """
    whole = documented.func if isinstance(documented, partial) and documented.__doc__ == partial.__doc__ else documented
    return (inspect.getdoc(whole) or "").partition("\n")[0].replace("``", "")


def listed(lines: Mapping[str, str], *, more: str = "") -> Outcome:
    """Names and lines, as a table and as data.

    Args:
        lines: by name.
        more: what else to say to people.
    """
    width = max(map(len, lines))
    text = "\n".join(f"{name:{width}}  {line}" for name, line in lines.items())
    return Outcome(f"{text}\n\n{more}" if more else text, lines)
