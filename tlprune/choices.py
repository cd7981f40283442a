"""Things that words on a command line name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any


def choice(kind: str, name: str, choices: Mapping[str, Any]) -> Any:
    """What a word names.

    Raises:
        ValueError: it names nothing; the message lists what there is and says what is nearest.

    Example:
        >>> choice("size", "smal", {"small": 1, "large": 2})
        Traceback (most recent call last):
            ...
        ValueError: There is no size 'smal'; there are small, large. Did you mean small?
    """
    if name not in choices:
        near = difflib.get_close_matches(name, choices, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"There is no {kind} {name!r}; there are {', '.join(choices)}.{hint}")
    return choices[name]


def value_of(words: Sequence[str], flag: str, default: str) -> str:
    """The value that a flag has among words, before they are parsed; the last one, where it is there again.

    Example:
        >>> value_of(["--method", "acdc", "--steps", "3", "--method=eap"], "--method", "random")
        'eap'
    """
    found = default
    for index, word in enumerate(words):
        if word.startswith(f"{flag}="):
            found = word.partition("=")[2]
        if word == flag and index + 1 < len(words):
            found = words[index + 1]
    return found
