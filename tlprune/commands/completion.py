"""``tlprune completion``: a script with which a shell completes commands, flags and their values.

The flags are read off the dataclasses that they fill, so no list is kept by hand; and the script has them all, so that
pressing the tab key starts no Python.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from tlprune.commands.parsing import Common
from tlprune.commands.scripts import SCRIPTS
from tlprune.commands.table import COMMANDS
from tlprune.outcome import Outcome

_POSITIONAL = get_args(Positional[int])[1]


@dataclass(frozen=True)
class Shell:
    """Write a script with which a shell completes. Save it where the shell looks, once for each version of tlprune.

    bash: tlprune completion bash > ~/.local/share/bash-completion/completions/tlprune;
    zsh: tlprune completion zsh > _tlprune in a folder of $fpath;
    fish: tlprune completion fish > ~/.config/fish/completions/tlprune.fish

    Attributes:
        shell: bash, zsh or fish.
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]


@dataclass(frozen=True)
class Flag:
    """A flag.

    Attributes:
        name: without its dashes.
        values: those that it may have, where they are known.
        switch: whether it takes no value.
    """

    name: str
    values: tuple[str, ...] = ()
    switch: bool = False


def completion(settings: Shell) -> Outcome:
    """The script."""
    return Outcome(SCRIPTS[settings.shell](flags_by_place(), _lines()), {"places": [*flags_by_place()]})


def flags_by_place() -> dict[str, list[Flag]]:
    """The flags behind each command or action, such as ``core heads``, and behind each method of a command, such as
    ``discover --method eap``."""
    found = {}
    for name, command in COMMANDS.items():
        for action, (_, settings, _) in command.actions.items():
            place = f"{name} {action}".strip()
            found |= {f"{place}{method}": flags for method, flags in _by_method(settings)}
    return found


def _by_method(settings: Any) -> Iterator[tuple[str, list[Flag]]]:
    """Of a dataclass its flags; of what makes one, those for each method that it takes."""
    if inspect.isclass(settings):
        yield "", [*_flags(settings), *_flags(Common)]
        return
    methods = _methods_of(settings)
    for method in methods:
        own = [*_flags(settings(["--method", method])), *_flags(Common)]
        flags = [dataclasses.replace(flag, values=methods) if flag.name == "method" else flag for flag in own]
        if method == methods[0]:
            yield "", flags
        yield f" --method {method}", flags


def _methods_of(settings: Any) -> tuple[str, ...]:
    """The methods that settings can be made for, the default first."""
    from tlprune.methods import METHODS

    def takes(method: str) -> bool:
        try:
            return bool(settings(["--method", method]))
        except ValueError:
            return False

    first = next(
        value.method
        for field in dataclasses.fields(settings([]))
        if hasattr(value := get_type_hints(settings([]))[field.name], "method")
    )
    return (first, *(method for method in METHODS if method != first and takes(method)))


def _flags(kind: type, prefix: str = "", default: Any = None) -> list[Flag]:
    """A dataclass's flags; parts of it that are dataclasses have flags with their name in front."""
    hints, found = get_type_hints(kind, include_extras=True), []
    for field in dataclasses.fields(kind):
        hint, value = hints[field.name], getattr(default, field.name, field.default)
        bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if get_origin(hint) is Annotated and _POSITIONAL in hint.__metadata__:
            continue
        if isinstance(bare, type) and dataclasses.is_dataclass(bare) and get_origin(hint) is Annotated:
            found += _flags(bare, prefix)
        elif dataclasses.is_dataclass(value):
            typed = type(value) in (get_args(bare) or (type(value),))  # a union of others, as of objectives, has none
            found += _flags(type(value), f"{prefix}{_dashed(field.name)}.", value) if typed else []
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for place, one in enumerate(value):
                found += _flags(type(one), f"{prefix}{_dashed(field.name)}.{place}.", one)
        else:
            found += _flag(f"{prefix}{_dashed(field.name)}", bare)
    return found


def _flag(name: str, hint: Any) -> list[Flag]:
    if hint is bool:
        parent, dot, own = name.rpartition(".")
        return [Flag(name, switch=True), Flag(f"{parent}{dot}no-{own}", switch=True)]
    return [Flag(name, _named(name) or _choices(hint))]


def _choices(hint: Any) -> tuple[str, ...]:
    """The words that a type allows."""
    if get_origin(hint) is Literal:
        return tuple(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType, tuple):
        return tuple(choice for one in get_args(hint) for choice in _choices(one))
    return ()


def _named(flag: str) -> tuple[str, ...]:
    """The names that there are for what a flag takes."""
    from tlprune.methods import METHODS
    from tlprune.models.load import NAMED
    from tlprune.tasks import TASKS

    known: Mapping[str, Mapping[str, Any]] = {"model": NAMED, "task": TASKS, "tasks": TASKS, "methods": METHODS}
    return tuple(known.get(flag, ()))


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _lines() -> dict[str, str]:
    """What each command, and each action, does."""
    found = {name: command.says for name, command in COMMANDS.items()}
    for name, command in COMMANDS.items():
        found |= {f"{name} {action}": says for action, (says, _, _) in command.actions.items() if action}
    return found


ACTIONS = {"": ("write a script for a shell", Shell, completion)}
