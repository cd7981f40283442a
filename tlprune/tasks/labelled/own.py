"""Labelled data of your own, read in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlprune.tasks.labelled.data import Labelled, read_labelled, rows_of
from tlprune.tasks.labelled.known import Columns, DataSet, Part
from tlprune.tasks.labelled.reading import check_columns

PARTS = {"train": Part("train", ()), "test": Part("test", ())}


def labelled_data(
    name: str,
    train: Any,
    test: Any = None,
    *,
    text: str = "text",
    pair: str | None = None,
    label: str = "label",
    classes: Sequence[str] | None = None,
    first: int = 0,
    subcase: str | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, Labelled]:
    """A data set of your own, as :func:`~tlprune.tasks.classification` and its relatives take it.

    Args:
        name: for tasks and errors.
        train: a ``.csv``, ``.tsv``, ``.json``, ``.jsonl`` or ``.parquet`` file, a ``datasets.Dataset``, or any other
            sequence of mappings.
        test: the same of other examples; by default the task's test is drawn from ``train``.
        text: column of the sentence, or of the first of a pair.
        pair: column of the second sentence of a pair.
        label: column of the class, by its name or number, or of the number that a regression predicts.
        classes: names of the classes in the order of their numbers, ``()`` for a regression; by default the distinct
            labels of ``train``, numbers by size, names by the alphabet.
        first: number of the first class, in data that count classes from 1, for example.
        subcase: column of the kind of example.
        only: classes to keep, in the order of their new numbers; see :meth:`Labelled.only`.

    Returns:
        Examples under ``"train"`` and, where they were given, ``"test"``.

    Raises:
        ValueError: naming file and line, as :func:`~tlprune.tasks.read_labelled` does; there is no such file.

    Example:
        >>> rows = [{"review": "great fun", "stars": 5}, {"review": "a bore", "stars": 1}]
        >>> labelled_data("mine", rows, text="review", label="stars")["train"]
        Labelled(name='mine', texts=('great fun', 'a bore'), pairs=None, labels=(1, 0),
                 classes=('1', '5'), subcases=None)
        >>> named = labelled_data("mine", rows, text="review", label="stars", classes=("one", "two", "three", "four",
        ...     "five"), first=1, only=("one", "five"))
        >>> named["train"].labels, named["train"].classes
        ((1, 0), ('one', 'five'))
    """
    texts = (text,) if pair is None else (text, pair)
    columns = Columns(texts, label, subcase, first)
    sources = {"train": train} if test is None else {"train": train, "test": test}
    for source in sources.values():
        _check_file(name, source)
    data = DataSet(name, PARTS, (columns,), ())
    chosen = _names(data, train) if classes is None else tuple(classes)
    described = DataSet(name, PARTS, (columns,), chosen)
    return {part: read_labelled(described, part, source=source, only=only) for part, source in sources.items()}


def _check_file(name: str, source: Any) -> None:
    if isinstance(source, (str, Path)) and not Path(source).is_file():
        raise ValueError(f"{name} needs a file, or rows in memory, but there is no file {source}. Give another path.")


def _names(data: DataSet, source: Any) -> tuple[str, ...]:
    """The distinct labels, numbers by size and names by the alphabet."""
    label, found = data.columns[0].label, set[str]()
    for row in rows_of(data, "train", source):
        check_columns(row.place, data, row.values)
        found.add(str(row.values[label]).strip())
    return tuple(sorted(found, key=_order))


def _order(name: str) -> tuple[bool, float, str]:
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
