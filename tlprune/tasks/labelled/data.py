"""Labelled sentences and pairs, checked, and where they are read from."""

from __future__ import annotations

import ast
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tlprune.tasks.folders import data_folder
from tlprune.tasks.labelled.known import KNOWN, Columns, DataSet, Part
from tlprune.tasks.labelled.reading import Found, check_columns, rows_of_dataset, rows_of_file


@dataclass(frozen=True)
class Labelled:
    """Sentences, or pairs of them, with what is to be said of each.

    Attributes:
        name: of the data set.
        texts: the sentence, or the first of a pair, stripped of spaces around it.
        pairs: the second sentence of each pair; ``None`` for single sentences.
        labels: number of the class, or the number itself of a regression.
        classes: their names; empty for a regression.
        subcases: the kind of each example, such as HANS' 30; ``None`` where none are told apart.

    Example:
        >>> fun = Labelled("mine", ("great fun", "a bore"), None, (1, 0), ("negative", "positive"))
        >>> len(fun), fun.rows([1]).texts, fun.fingerprint
        (2, ('a bore',), 'd8e1137b54a4f8f0')
    """

    name: str
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[int, ...] | tuple[float, ...]
    classes: tuple[str, ...]
    subcases: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        columns = {"labels": self.labels, "pairs": self.pairs, "subcases": self.subcases}
        for name, column in columns.items():
            if column is not None and len(column) != len(self.texts):
                raise ValueError(
                    f"{self.name} has {len(self.texts)} texts and so needs as many {name}, but there are "
                    f"{len(column)}. Give each text its own."
                )

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def regression(self) -> bool:
        """Whether labels are numbers to be predicted instead of classes."""
        return not self.classes

    def rows(self, index: Sequence[int]) -> Labelled:
        """The examples at ``index``, in that order."""
        names = ("texts", "pairs", "labels", "subcases")
        columns = {name: column for name in names if (column := getattr(self, name)) is not None}
        return replace(self, **{name: tuple(column[row] for row in index) for name, column in columns.items()})

    def only(self, classes: Sequence[str]) -> Labelled:
        """The examples of some classes, which are numbered in the order given; those of others are left out.

        Raises:
            ValueError: there are fewer than two classes, one is given twice, none of the data, or without examples.

        Example:
            >>> pairs = Labelled("nli", ("a", "b", "c"), ("x", "y", "z"), (0, 1, 2), ("entailment", "neutral", "other"))
            >>> pairs.only(("other", "entailment"))
            Labelled(name='nli', texts=('a', 'c'), pairs=('x', 'z'), labels=(1, 0),
                     classes=('other', 'entailment'), subcases=None)
        """
        if len(classes) < 2 or len({*classes}) < len(classes) or not {*classes} <= {*self.classes}:
            own = ", ".join(self.classes) or "a regression, which has none"
            raise ValueError(
                f"At least two of the classes of {self.name}, {own}, are needed, each once, but "
                f"{', '.join(classes) or 'none'} are to be kept. Name some of these."
            )
        numbers = [self.classes.index(name) for name in classes]
        kept = self.rows([row for row, label in enumerate(self.labels) if label in numbers])
        if missing := [name for name, number in zip(classes, numbers, strict=True) if number not in kept.labels]:
            raise ValueError(
                f"{self.name} must have examples of each class that is kept but has none of {', '.join(missing)}. Keep "
                "others, or give more data."
            )
        labels = tuple(numbers.index(int(label)) for label in kept.labels)
        return replace(kept, labels=labels, classes=tuple(classes))

    def prompts(self) -> list[tuple[str, ...]]:
        """Each example's text or texts."""
        return list(zip(self.texts, *(() if self.pairs is None else (self.pairs,)), strict=True))

    @property
    def fingerprint(self) -> str:
        """Hash of texts, labels, classes and sub-cases, in their order."""
        content = [self.texts, self.pairs, self.labels, self.classes, self.subcases]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_labelled(
    data: str | DataSet, part: str = "train", *, source: Any = None, only: Sequence[str] | None = None
) -> Labelled:
    """Examples of a data set that is known by name, or of one described by a :class:`DataSet`.

    For one of your own :func:`~tlprune.tasks.labelled_data` is shorter.

    Args:
        data: ``"sst2"``, ``"cola"``, ``"stsb"``, ``"mnli"``, ``"mnli-subset"``, ``"qqp"``, ``"qnli"``, ``"imdb"``,
            ``"tweet-sentiment"``, ``"ag-news"``, ``"dbpedia"``, ``"hans"``, ``"paws"``, ``"paws-qqp"``, or a
            description of another.
        part: ``"train"``, ``"dev"``, or another of its parts. GLUE publishes no labels of its test sets.
        source: a folder of its files, one file, a folder that ``datasets`` saved, a ``datasets.Dataset`` or another
            sequence of mappings, or a mapping of parts to such; by default the folder of this name in
            ``$TLPRUNE_DATA`` or ``$TLPRUNE_DATA/data``, and where there is none the Hugging Face hub.
        only: classes to keep, in the order of their new numbers; all by default. See :meth:`Labelled.only`.

    Raises:
        ValueError: naming file and line, if a column is missing, a label unknown, a text empty, or a row has too few
            fields; if there is no such data set, part, file or class.

    Example:
        >>> rows = [{"sentence": " great fun ", "label": 1}, {"sentence": "a bore", "label": "negative"}]
        >>> read_labelled("sst2", source=rows)
        Labelled(name='sst2', texts=('great fun', 'a bore'), pairs=None, labels=(1, 0),
                 classes=('negative', 'positive'), subcases=None)
    """
    known = described(data)
    if part not in known.parts:
        raise ValueError(f"{known.name} has the parts {', '.join(known.parts)} but {part!r} was asked for. Name one.")
    found = _labelled(known, rows_of(known, part, source))
    return found if only is None else found.only(only)


def described(data: str | DataSet) -> DataSet:
    """How a data set is read, by its name."""
    if isinstance(data, DataSet):
        return data
    if data not in KNOWN:
        raise ValueError(f"There is no data set {data!r}; there are {', '.join(KNOWN)}. Describe others: DataSet(...).")
    return KNOWN[data]


# ---- where rows come from


def rows_of(data: DataSet, part: str, source: Any) -> Iterable[Found]:
    """The rows of one part: of the source, of the folder of this name in ``$TLPRUNE_DATA``, or of the hub."""
    if isinstance(source, Mapping):
        return rows_of(data, part, _part_of(source, data.parts[part], part))
    if source is not None and not isinstance(source, (str, Path)):
        return rows_of_dataset(source, f"{data.name} {part}")
    folder = Path(source) if source is not None else data_folder(data.name)
    if folder is None:
        return rows_of_dataset(_from_hub(data, data.parts[part]), f"{data.name} {part}")
    if folder.is_file():
        return rows_of_file(folder, data)
    if any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
        return rows_of_dataset(_from_disk(folder, data.parts[part]), f"{folder.name} {part}")
    return rows_of_file(_file_in(folder, data, part), data)


def _part_of(source: Mapping[str, Any], part: Part, name: str) -> Any:
    for key in (name, part.hub):
        if key is not None and key in source:
            return source[key]
    raise ValueError(f"The part {name!r} is wanted but there are {', '.join(source)}. Name one of these.")


def _file_in(folder: Path, data: DataSet, part: str) -> Path:
    names = data.parts[part].files
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"{data.name} {part} needs one of {', '.join(names)} in {folder} but none is there. Give another folder, "
            "or the file itself."
        )
    return found


def _from_disk(folder: Path, part: Part) -> Any:
    import datasets

    saved: Any = datasets.load_from_disk(str(folder))
    return _part_of(saved, part, part.hub or "") if isinstance(saved, Mapping) else saved


def _from_hub(data: DataSet, part: Part) -> Any:
    import datasets

    if data.hub is None or part.hub is None:
        raise ValueError(
            f"{data.name} is not on the hub and so needs a folder of its files, {' or '.join(part.files)}, but none "
            f"was given. Give one, or put it into $TLPRUNE_DATA/{data.name}."
        )
    try:
        return datasets.load_dataset(*data.hub, split=part.hub)
    except Exception as error:  # the hub's errors are of many kinds, and each means that it is not to be had
        raise ValueError(
            f"{data.name} cannot be read from the hub ({data.hub[0]}): {error}. Give a folder of its files, or put it "
            f"into $TLPRUNE_DATA/{data.name}."
        ) from error


# ---- what rows say


def _labelled(data: DataSet, rows: Iterable[Found]) -> Labelled:
    found = [example for row in rows if (example := _example(data, row)) is not None]
    if not found:
        raise ValueError(f"{data.name} must have examples but there are none. Give another file.")
    texts, labels, subcases = zip(*found, strict=True)
    sides = list(zip(*texts, strict=True))
    return Labelled(
        name=data.name,
        texts=sides[0],
        pairs=sides[1] if len(sides) > 1 else None,
        labels=labels,
        classes=data.classes,
        subcases=None if subcases[0] is None else subcases,
    )


def _example(data: DataSet, row: Found) -> tuple[tuple[str, ...], float, str | None] | None:
    """Texts, label and sub-case; ``None`` for what the data set leaves out."""
    columns = _columns(data, row)
    value = row.values[columns.label]
    if data.no_label is not None and value == data.no_label:
        return None
    texts = tuple(_text(data, row, name) for name in columns.texts)
    if not all(texts):
        if data.drop_empty:
            return None
        raise ValueError(f"{row.place}: an example needs text but {columns.texts[texts.index('')]} is empty. Add it.")
    subcase = str(row.values[columns.subcase]) if columns.subcase else None
    return texts, _class(data, row, value, columns.first) if data.classes else _target(row, value), subcase


def _columns(data: DataSet, row: Found) -> Columns:
    check_columns(row.place, data, row.values)
    return next(columns for columns in data.columns if set(columns.names) <= {*row.values})


def _text(data: DataSet, row: Found, name: str) -> str:
    text = row.values[name]
    if not isinstance(text, str):
        raise ValueError(f"{row.place}: {name} must be text but is {text!r}. Mend the row.")
    if data.spelling == "bytes" and text[:2] in ("b'", 'b"'):
        text = _from_bytes(row, name, text)
    return text.strip()


def _from_bytes(row: Found, name: str, text: str) -> str:
    try:
        return ast.literal_eval(text).decode()
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{row.place}: {name} should spell bytes but is {text!r}: {error}. Mend the row.") from None


def _class(data: DataSet, row: Found, value: Any, first: int) -> int:
    spelt, last = str(value).strip(), first + len(data.classes) - 1
    if spelt in data.classes:
        return data.classes.index(spelt)
    if spelt.isdecimal() and first <= int(spelt) <= last:
        return int(spelt) - first
    hidden = spelt in ("-1", "", "None")
    raise ValueError(
        f"{row.place}: a label must be one of {', '.join(data.classes)}, or a number from {first} to {last}, but is "
        f"{value!r}. " + ("Labels of this part are not published: use another." if hidden else "Mend the row.")
    )


def _target(row: Found, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{row.place}: a label must be a number but is {value!r}. Mend the row.")
    return number
