"""Facts and templates from files: tables of triplets, and the files of LAMA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tlprune.tasks.knowledge.facts import HEAD, TAIL, Fact
from tlprune.tasks.labelled.known import Columns, DataSet
from tlprune.tasks.labelled.reading import Found, check_columns, rows_of_file

TRIPLETS = DataSet(
    "facts",
    {},
    (
        Columns(("head", "tail"), "relation"),
        Columns(("subject", "object"), "relation"),
        Columns(("sub_label", "obj_label"), "predicate_id"),
        Columns(("sub_label", "obj_label"), "pred"),
    ),
    (),
)
TEMPLATES = DataSet("templates", {}, (Columns(("template",), "relation"),), ())


def read_facts(path: str | Path) -> list[Fact]:
    """Facts from a ``.csv``, ``.tsv``, ``.json``, ``.jsonl`` or ``.parquet`` file, in its order.

    Columns are ``head``, ``relation``, ``tail``; or ``subject``, ``relation``, ``object``; or LAMA's ``sub_label``,
    ``predicate_id`` (Google-RE: ``pred``), ``obj_label``. Others are ignored, and a fact that comes again is read once.

    Raises:
        ValueError: there is no such file, it is of another kind, has no facts, lacks a column, or a value is empty.

    Source of the LAMA format: Petroni et al. 2019, "Language Models as Knowledge Bases?".
    """
    facts = list(dict.fromkeys(_fact(row) for row in _checked(Path(path), TRIPLETS)))
    if not facts:
        raise ValueError(f"{path} must hold facts but there are none. Give another file.")
    return facts


def read_templates(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Templates by relation, in the order of the file: its columns are ``relation`` and ``template``.

    Slots are ``{head}`` and ``{tail}``, or LAMA's ``[X]`` and ``[Y]``. LAMA's ``relations.jsonl`` has one template for
    each relation; a relation may come again with another. For :func:`~tlprune.tasks.worded`.

    Raises:
        ValueError: as of :func:`read_facts`; or a template lacks a slot.
    """
    found: dict[str, tuple[str, ...]] = {}
    for row in _checked(Path(path), TEMPLATES):
        text = _text(row, "template").replace("[X]", HEAD).replace("[Y]", TAIL)
        if HEAD not in text or TAIL not in text:
            raise ValueError(f"{row.place}: a template needs [X] and [Y] but is {text!r}. Put both slots in.")
        relation = _text(row, "relation")
        found[relation] = (*found.get(relation, ()), text)
    if not found:
        raise ValueError(f"{path} must hold templates but there are none. Give another file.")
    return found


def _checked(path: Path, data: DataSet) -> Iterator[Found]:
    for row in rows_of_file(path, data):
        check_columns(row.place, data, row.values)
        yield row


def _fact(row: Found) -> Fact:
    columns = next(columns for columns in TRIPLETS.columns if {*columns.names} <= {*row.values})
    head, tail = columns.texts
    return Fact(_text(row, head), _text(row, columns.label), _text(row, tail))


def _text(row: Found, column: str) -> str:
    value = row.values[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{row.place}: {column} must be a text but is {value!r}. Fill it in, or remove the row.")
    return value.strip()
