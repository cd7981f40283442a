"""From words to settings: flags, over a file of settings where one is named; complaints in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tlprune.choices import value_of
from tlprune.commands.configuration import built, read_settings

# Settings that decide which others there are.
DECIDING = ("method", "recipe_of")


@dataclass(frozen=True)
class Common:
    """What every command takes.

    Attributes:
        json: print the figures as JSON, and nothing else on standard output.
        config: a run.yaml; its settings hold where no flag says otherwise.
    """

    json: bool = False
    config: Path | None = None


def parsed(command: str, settings: Any, words: Sequence[str]) -> tuple[Any, Common]:
    """The settings of a command, and what every command takes.

    Args:
        command: its words, such as ``core prune``.
        settings: a dataclass, or what makes one of the words.
        words: what was typed behind the command.

    Raises:
        ValueError: a flag or a setting of the file is unknown or does not fit.
    """
    named = value_of(words, "--config", "")
    told = read_settings(Path(named), command) if named else {}
    deciding = [f"--{name.replace('_', '-')}={told[name]}" for name in DECIDING if isinstance(told.get(name), str)]
    asked = value_of(words, "--method", "")
    if asked != told.get("method", asked) and asked:
        told.pop("settings", None)  # they are of the file's method
    kind = settings if inspect.isclass(settings) or _is_annotated(settings) else settings([*deciding, *words])
    own = built(_bare(kind), told, Path(named)) if named else None
    found = _typed(_with_common(kind), words, prog=f"tlprune {command}", own=own)
    return found.own, found.common


def _is_annotated(settings: Any) -> bool:
    return hasattr(settings, "__metadata__")


def _bare(kind: Any) -> type:
    return kind.__origin__ if _is_annotated(kind) else kind


def _with_common(kind: Any) -> type:
    """One dataclass of a command's own settings and those of every command."""
    from tyro.conf import arg

    fields = [("own", Annotated[kind, arg(name="")]), ("common", Annotated[Common, arg(name="")])]
    made = dataclasses.make_dataclass("Settings", fields)
    made.__doc__ = (inspect.getdoc(_bare(kind)) or "").partition("\n\nAttributes:")[0]
    return made


def _typed(command: Any, words: Sequence[str], *, prog: str, own: Any) -> Any:
    """What the words say; tyro's boxed complaint becomes one line like every other error."""
    import tyro

    given: dict[str, Any] = {} if own is None else {"default": command(own=own, common=Common())}
    plain = (tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed)  # flags alone, for what is a union of parts, too
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(command, args=list(words), prog=prog, config=plain, **given)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_unboxed(complaint.getvalue())) from None


def _unboxed(complaint: str) -> str:
    """The words inside a box drawn with lines, without its title and its hint at --help."""
    lines = [re.sub(r"[\u2500-\u257f]+", " ", line).strip() for line in complaint.splitlines()[1:]]
    text = " ".join(line for line in lines if line)
    text = re.sub(r"'own\.(?:run\.|settings\.)?", "'", text)  # what the parts of our own dataclass are called
    return re.sub(r"^Error parsing settings: | Argument helptext:.*$| For full helptext.*$", "", text)
