"""Rows of a file of prompts: JSON, keys, and splits whose test prompts are their own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

SPLITS = ("train", "validation", "test")
KEYS = ("clean", "corrupted", "split", "foil")
TAG = re.compile(r"</?predict>|<span=[^<>]+>|</span>")
SOMETHING, REST = re.compile(r"\S"), re.compile(r"[^\S\n]*[^\s]")


@dataclass(frozen=True)
class Line:
    """A row of the file.

    Attributes:
        place: file and line number, for errors.
        clean: text with tags around what is predicted, and around named spans.
        corrupted: its twin, with as many of the former.
        corrupted: its twin, with as many, or without any.
        split: train, validation or test, where the file says it.
        foils: what the answers are compared with, one for each tag; empty for the twin's own answers.
    """

    place: str
    clean: str
    corrupted: str
    split: str | None
    foils: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The clean text without its tags."""
        return TAG.sub("", self.clean)


def read_lines(path: Path) -> list[Line]:
    """The rows of a file: one JSON object after the other, each from a line of its own on, with empty lines between."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"Cannot read the prompts in {path}: {error.strerror}. Give a file of JSON lines.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text but byte {error.start} is not. Save it as UTF-8.") from None
    lines = [_line(place, row) for place, row in _objects(path, text)]
    if not lines:
        raise ValueError(f"{path} needs at least one row but is empty. Put one JSON object on each line.")
    return lines


def _objects(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """What stands where in a file; an object may go on over several lines, as in Edge Pruning's own description."""
    decoder, number, end = json.JSONDecoder(), 1, 0
    while found := SOMETHING.search(text, end):
        number += text.count("\n", end, found.start())
        place = f"{path}, line {number}"
        try:
            row, end = decoder.raw_decode(text, found.start())
            if rest := REST.match(text, end):
                raise json.JSONDecodeError("Extra data", text, rest.end() - 1)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{place}: each line must be one JSON object but this is not JSON ({error.msg} at character "
                f"{error.pos - found.start() + 1}). Check quotes, commas and braces."
            ) from None
        number += text.count("\n", found.start(), end)
        yield place, row


def _line(place: str, row: Any) -> Line:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: each line must be a JSON object but this is {str(row)[:40]!r}. Write {{...}}.")
    unknown, lacking = sorted(set(row) - set(KEYS)), [key for key in ("clean", "corrupted") if key not in row]
    if unknown or lacking:
        raise ValueError(
            f"{place}: a row needs 'clean' and 'corrupted' and may have 'split' and 'foil' but lacks {lacking} "
            f"and has also {unknown}. Spell them so."
        )
    split, foil = row.get("split"), row.get("foil")
    foils = foil if isinstance(foil, list) else [] if foil is None else [foil]
    if not all(isinstance(value, str) for value in (row["clean"], row["corrupted"], *foils)):
        raise ValueError(
            f"{place}: 'clean', 'corrupted' and 'foil' must be text but are not all so. Put them in quotes."
        )
    if split is not None and split not in SPLITS:
        raise ValueError(f"{place}: 'split' must be one of {', '.join(SPLITS)} but is {split!r}. Use one of these.")
    return Line(place, row["clean"], row["corrupted"], split, tuple(foils))


def split_lines(
    path: Path, test: Path | None, *, held_out: float, seed: int
) -> tuple[dict[str, list[Line]], dict[str, Any]]:
    """Lines by split, and where they come from, as plain data.

    Args:
        path: the file.
        test: a second file for the test.
        held_out: share of the training prompts that becomes the test where nothing else does.
        seed: of that draw.

    Raises:
        ValueError: as for :func:`~tlprune.tasks.jsonl`.
    """
    lines = read_lines(path)
    splits = _marked(path, lines)
    if test is not None and splits["test"]:
        raise ValueError(f"Test rows must come from one place but {path} has some and {test} is given. Drop either.")
    if test is not None:
        splits["test"], source = _test_lines(test), {"from": "file", **_record(test)}
    elif splits["test"]:
        source = {"from": "split"}
    else:
        splits, source = _held_out(path, splits, held_out, seed), {"from": "held_out", "share": held_out, "seed": seed}
    for split in SPLITS:
        if not splits[split]:
            raise ValueError(
                f"{path} needs rows of every split but {split} is empty. Mark some rows with "
                f'"split": "{split}", or leave "split" out of all of them.'
            )
    refuse_leaks(splits)
    return splits, {"file": _record(path), "test": source}


def _marked(path: Path, lines: Sequence[Line]) -> dict[str, list[Line]]:
    bare = [line for line in lines if line.split is None]
    if len(bare) == len(lines):
        return {"train": bare, "validation": bare, "test": []}
    if bare:
        raise ValueError(
            f"{bare[0].place}: 'split' must be in all rows of {path} or in none but this one has none. Add it."
        )
    return {split: [line for line in lines if line.split == split] for split in SPLITS}


def _test_lines(path: Path) -> list[Line]:
    lines = read_lines(path)
    for line in lines:
        if line.split not in (None, "test"):
            raise ValueError(f"{line.place}: rows of the test file are test rows but this is {line.split!r}. Move it.")
    return lines


def _held_out(path: Path, splits: dict[str, list[Line]], share: float, seed: int) -> dict[str, list[Line]]:
    """Rows of some training prompts become the test; equal prompts stay together."""
    prompts = sorted({line.prompt for line in splits["train"]})
    count = max(1, round(share * len(prompts)))
    if not 0 < share < 1 or (prompts and count >= len(prompts)):
        raise ValueError(
            f"{path} marks no test rows, so a share of its {len(prompts)} training prompts is held out, but {share} of "
            'them leaves none to learn from, or none to test. Add rows, mark some "test", or give test= or held_out=.'
        )
    chosen = set(Random(seed).sample(prompts, min(count, len(prompts))))
    kept = {split: [line for line in splits[split] if line.prompt not in chosen] for split in ("train", "validation")}
    return {**kept, "test": [line for line in splits["train"] if line.prompt in chosen]}


def refuse_leaks(splits: dict[str, list[Line]]) -> None:
    """Raise a ValueError for a test prompt that is also one of training or validation."""
    seen = {line.prompt: line.place for split in ("train", "validation") for line in splits[split]}
    for line in splits["test"]:
        if line.prompt in seen:
            raise ValueError(
                f"{line.place}: test prompts must be ones that no method sees but this is also at {seen[line.prompt]}. "
                "Remove one of the two."
            )


def _record(path: Path) -> dict[str, str]:
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
