"""Rows of a local file, each with its place in it, so that an error names the line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlprune.tasks.labelled.known import DataSet

TABS = (".tsv", ".txt")


@dataclass(frozen=True)
class Found:
    """One row of a file or data set.

    Attributes:
        place: for errors, such as ``"train.tsv, line 3"``.
        values: by the name of the column.
    """

    place: str
    values: Mapping[str, Any]


def rows_of_file(path: Path, data: DataSet) -> Iterator[Found]:
    """The rows of a ``.tsv``, ``.csv``, ``.json``, ``.jsonl`` or ``.parquet`` file.

    In tab-separated files nothing is quoted: a quotation mark is a character like any other. A ``.json`` file holds a
    list of objects, or an object of them by number; a ``.jsonl`` file one object per line.

    Raises:
        ValueError: the file is missing, of another kind, not text, or has a row with too few or too many fields.
    """
    if not path.is_file():
        raise ValueError(f"{data.name} needs the file {path} but there is none. Give the folder that holds it.")
    try:
        yield from _reader(path)(path, data)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8 but is not: {error}. Convert it.") from None


def _reader(path: Path) -> Any:
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _table, ".parquet": _parquet}
    readers |= dict.fromkeys(TABS, _table)
    if path.suffix not in readers:
        raise ValueError(f"{path} must end in one of {', '.join(sorted(readers))} to be read. Convert or rename it.")
    return readers[path.suffix]


# ---- tables


def _table(path: Path, data: DataSet) -> Iterator[Found]:
    delimiter = "\t" if path.suffix in TABS else data.delimiter
    tabs = delimiter == "\t"
    with open(path, encoding="utf-8-sig", newline="\n" if tabs else "") as file:
        yield from _named(path, data, _lines(file) if tabs else _quoted(file, delimiter))


def _lines(file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of tab-separated text."""
    for number, line in enumerate(file, 1):
        text = line.rstrip("\r\n")
        if text:
            yield number, text.split("\t")


def _quoted(file: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num}: {error}. Close its quotation marks.") from None


def _named(path: Path, data: DataSet, rows: Iterator[tuple[int, list[str]]]) -> Iterator[Found]:
    """Fields by name: those of the first line if it is a header, else those that the data set is known to have."""
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path} must hold examples but is empty. Give another file.")
    names, least = tuple(first[1]), len(first[1])
    if not any(set(columns.names) <= {*names} for columns in data.columns):
        if not data.headerless:
            raise ValueError(_missing(path.name, data, names))
        names, least = data.headerless, len(data.headerless) - data.optional
        yield _row(path, first, names, least)
    for row in rows:
        yield _row(path, row, names, least)


def _row(path: Path, row: tuple[int, list[str]], names: tuple[str, ...], least: int) -> Found:
    number, fields = row
    if not least <= len(fields) <= len(names):
        raise ValueError(
            f"{path.name}, line {number}: a row needs {least} fields ({', '.join(names[:least])}) but has "
            f"{len(fields)}. Mend the line."
        )
    return Found(f"{path.name}, line {number}", dict(zip(names, fields, strict=False)))


def _missing(place: str, data: DataSet, names: Iterable[str]) -> str:
    wanted = " or ".join(", ".join(columns.names) for columns in data.columns)
    return f"{place}: {data.name} needs columns {wanted} but there are {', '.join(map(str, names))}. Rename them."


def check_columns(place: str, data: DataSet, names: Iterable[str]) -> None:
    """Raise a ValueError unless the columns of one of the publishers are there."""
    present = list(names)
    if not any(set(columns.names) <= {*present} for columns in data.columns):
        raise ValueError(_missing(place, data, present))


# ---- objects


def _json(path: Path, data: DataSet) -> Iterator[Found]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} must be JSON but is not: {error}. Mend it.") from None
    rows = content.items() if isinstance(content, dict) else enumerate(content, 1)
    for number, values in rows:
        yield _object(f"{path.name}, row {number}", values)


def _json_lines(path: Path, data: DataSet) -> Iterator[Found]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            place = f"{path.name}, line {number}"
            if line.strip():
                try:
                    yield _object(place, json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{place}: a line must be a JSON object but is not: {error}. Mend it.") from None


def _object(place: str, values: Any) -> Found:
    if not isinstance(values, dict):
        raise ValueError(f"{place}: a row must be a JSON object but is {values!r}. Give each value its name.")
    return Found(place, values)


def _parquet(path: Path, data: DataSet) -> Iterator[Found]:
    import datasets

    yield from rows_of_dataset(datasets.Dataset.from_parquet(str(path)), path.name)


def rows_of_dataset(dataset: Any, name: str) -> Iterator[Found]:
    """The rows of a ``datasets.Dataset``, or of any other sequence of mappings."""
    for number, values in enumerate(dataset, 1):
        yield Found(f"{name}, row {number}", values)
