"""Settings of a run as YAML: written beside its result, and read again to repeat it."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tlprune.choices import choice
from tlprune.files import write_whole
from tlprune.versions import versions

NAME = "run.yaml"
MOST_BYTES = 1_000_000
# Where a result goes is no part of what it is.
_NOT_TOLD = ("out",)


def write_settings(folder: Path, command: str, settings: Any) -> None:
    """Write ``run.yaml``: every setting of a run, and the versions that it ran with as a comment."""
    import yaml

    made = ", ".join(
        f"{name} {version}" for name, version in {**versions(), "python": platform.python_version()}.items()
    )
    head = f"# tlprune {command} --config {NAME} repeats this run; it was made by {made}\n"
    told = {"command": command, **told_of(settings)}
    write_whole(folder / NAME, head + yaml.safe_dump(told, sort_keys=False, allow_unicode=True))


def told_of(settings: Any) -> dict[str, Any]:
    """Settings as plain data: those of a method under ``settings``, all others side by side.

    Example:
        >>> from tlprune.commands.evaluate import Measure
        >>> told_of(Measure(Path("circuit.json"), task="ioi"))
        {'circuit': 'circuit.json', 'model': None, 'task': 'ioi', 'task_seed': None, 'device': None}
    """
    told: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "settings":
            told["settings"] = {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
        elif dataclasses.is_dataclass(value):
            told |= told_of(value)
        elif field.name not in _NOT_TOLD:
            told[field.name] = _plain(value)
    return told


def _plain(value: Any) -> Any:
    from tlprune.methods.provenance import plain

    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else plain(value)


def read_settings(path: Path, command: str) -> dict[str, Any]:
    """The settings in a file, which must be of this command.

    Raises:
        ValueError: the file is missing, too large, no YAML, or of another command.
    """
    import yaml

    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        told = yaml.safe_load(content) if len(content) <= MOST_BYTES else None
    except OSError as error:
        raise ValueError(f"Cannot read the settings {path}: {error.strerror}. Give a {NAME}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}. Give a {NAME}.") from None
    if not isinstance(told, dict) or not all(isinstance(key, str) for key in told):
        raise ValueError(f"{path} needs settings by name, such as 'task: ioi', but holds none. Give a {NAME}.")
    if told.pop("command", command) != command:
        raise ValueError(f"{path} is of another command than tlprune {command}. Its first line says of which.")
    return told


def built(kind: type, told: Mapping[str, Any], path: Path) -> Any:
    """Settings of a kind from plain data; what is not told has its default, or is left for a flag to say.

    Raises:
        ValueError: a setting is unknown, or its value is none that it takes.
    """
    left = dict(told)
    found = _built(kind, left, path)
    for name in left:
        choice(f"setting in {path}", name, dict.fromkeys(_names(kind)))
    return found


def _built(kind: type, told: dict[str, Any], path: Path) -> Any:
    """Take the settings of a kind out of plain data."""
    from tyro import MISSING

    hints, values = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if field.name == "settings":
            values["settings"] = _part(hint, told.pop("settings", {}), path, "settings")
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            values[field.name] = _built(hint, told, path)
        elif field.name in told:
            values[field.name] = _value(hint, told.pop(field.name), path, field.name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            values[field.name] = MISSING
    return kind(**values) if MISSING not in values.values() else _unfinished(kind, values)


def _unfinished(kind: type, values: Mapping[str, Any]) -> Any:
    """Settings of which flags must say the rest, and which are therefore not looked at yet."""
    found = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(found, name, value)
    return found


def _names(kind: type) -> list[str]:
    """What settings of a kind are called in a file."""
    hints, names = get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        side_by_side = isinstance(hint, type) and dataclasses.is_dataclass(hint) and field.name != "settings"
        names += _names(hint) if side_by_side else [field.name]
    return names


def _part(kind: type, told: Any, path: Path, place: str) -> Any:
    """A method or a part of one, of its own fields alone."""
    if not isinstance(told, Mapping):
        raise ValueError(f"{path} needs settings by name under {place} but has {told!r}. Write them below each other.")
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}
    for name in told:
        choice(f"setting in {path} under {place}", name, known)
    return kind(**{name: _value(known[name], value, path, f"{place}.{name}") for name, value in told.items()})


def _value(hint: Any, value: Any, path: Path, place: str) -> Any:
    """A value as what a type hint says.

    Raises:
        ValueError: it is nothing of the kind.
    """
    if isinstance(value, Mapping):
        return _named(value, path, place)
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for one in hints:
        listed = get_origin(one) is tuple or one is Any
        if listed and isinstance(value, list):
            return tuple(_value((get_args(one) or (Any,))[0], part, path, place) for part in value)
        if one is Any or _is(one, value):
            return Path(value) if one is Path else float(value) if one is float else value
    wanted = " or ".join(map(_called, hints))
    raise ValueError(f"{place} in {path} must be {wanted} but is {value!r}. Change it there.")


def _is(hint: Any, value: Any) -> bool:
    """Whether a value that is no list is of a kind."""
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint is float:
        return type(value) in (int, float) or _is_number(value)
    return isinstance(value, str) if hint is Path else type(value) is hint


def _is_number(value: Any) -> bool:
    """Whether a word is a number: YAML takes ``1e-3`` for a word."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _named(told: Mapping[str, Any], path: Path, place: str) -> Any:
    """A method or a part that its name tells."""
    from tlprune.methods.provenance import kinds

    if not isinstance(told.get("name"), str):
        raise ValueError(f"{place} in {path} needs a name, such as 'name: eap', but has {', '.join(map(str, told))}.")
    kind = choice(f"part in {path} for {place}", told["name"], kinds())
    return _part(kind, {name: value for name, value in told.items() if name != "name"}, path, place)


def _called(hint: Any) -> str:
    """A type as a person would say it."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", NoneType: "null"}
    return words.get(
        hint, "a list" if get_origin(hint) is tuple else "a name" if hint is Path else "a part with a name"
    )
