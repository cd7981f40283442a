"""A task as JSON lines of tagged text, as Edge Pruning's code and :func:`~tlprune.tasks.jsonl` read them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tlprune.files import write_whole
from tlprune.task import MAIN, Batch, Task, Tokens
from tlprune.tasks.jsonl import row_of_line
from tlprune.tasks.lines import SPLITS, Line, refuse_leaks
from tlprune.tasks.rows import NONE, Row
from tlprune.tasks.tokenising import beginning, token_bounds, token_ids, tokenizer_of


def to_jsonl(task: Task, model: Any, path: str | Path, *, test: str | Path | None = None) -> None:
    """Write a task's prompts as JSON lines: the way back from :func:`~tlprune.tasks.jsonl`, token for token.

    Answers stand between ``<predict>`` tags where they are predicted, foils at the same place of the corrupted text, or
    under ``"foil"`` where the twin goes on otherwise; without foils the twin has no tags. Every row has its
    ``"split"``, unless training and validation are the same rows and the test has a file of its own. Each row is read
    again before anything is written, so that what stands in the file is the task.

    Edge Pruning's code knows the splits ``"train"`` and ``"validation"`` alone, and as released it trains on all rows
    of a file, whatever they say. So give ``test=`` to keep test rows from it.

    A file has prompts, answers and splits. Spans, labels and a task's own metrics are not in it, nor what follows the
    last answer. Read it with the ``prepend_bos`` and ``padding_side`` of the task for the same tokens.

    Args:
        task: prompt pairs of tokens.
        model: its model with a tokenizer, or the tokenizer.
        path: the file; an existing one is replaced only once the new one is whole.
        test: another file, for test rows.

    Raises:
        ValueError: the task has several streams, classes or numbers instead of tokens, or answers that do not go on as
            the prompt does; its tokens are not those of their text; a test prompt is also one of training.

    Source: the custom data sets of Edge Pruning (Bhaskar et al., NeurIPS 2024).

    Example:
        >>> import tempfile
        >>> import tlprune as tp
        >>> model = tp.load("testbed")
        >>> task = tp.tasks.gendered_pronoun(model, train=4, validation=4, test=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "pronouns.jsonl")
        ...     to_jsonl(task, model, file)
        ...     print(file.read_text().partition("corrupted")[0])
        ...     again = tp.tasks.jsonl(model, file)
        {"clean": "I heard that Rebecca will be loyal tomorrow , won 't <predict>she</predict>", "
        >>> bool((again.test.clean.ids == task.test.clean.ids).all())
        True
    """
    tokenizer = tokenizer_of(model)
    first = beginning(tokenizer, task.tokenisation.prepend_bos)
    _check_sayable(task)
    rows = {split: list(_rows(getattr(task.streams[MAIN], split))) for split in SPLITS}
    lines = {split: _lines(tokenizer, split, rows[split], first) for split in SPLITS}
    refuse_leaks(lines)
    marks = dict(zip(SPLITS, SPLITS, strict=True)) if test is None else {"train": "train", "validation": "validation"}
    if test is not None:
        write_whole(Path(test), _text(lines["test"], None))
        marks = {"train": None} if rows["train"] == rows["validation"] else marks
    write_whole(Path(path), "".join(_text(lines[split], mark) for split, mark in marks.items()))


def _check_sayable(task: Task) -> None:
    batch = task.streams[MAIN].train if MAIN in task.streams else None
    if batch is None or len(task.streams) > 1:
        raise ValueError(
            f"A file of prompts holds one set of examples but task {task.name!r} has the streams "
            f"{', '.join(task.streams)}. Write a task of each: tp.tasks.from_pairs(...)."
        )
    wanted = {"classes": batch.accepted, "numbers": batch.targets, "token types": batch.clean.token_types}
    beyond = [name for name, value in wanted.items() if value is not None]
    if task.tokenisation.predicted == "prompt" or beyond:
        raise ValueError(
            f"A file of prompts holds text of which tokens are predicted but task {task.name!r} is about "
            f"{', '.join(beyond) or 'a class or number of each prompt'}. Write its examples yourself."
        )


def _rows(batch: Batch) -> Iterator[Row]:
    """Examples without padding, and without what follows the last position that is read."""
    clean, corrupt = _bounds(batch.clean), _bounds(batch.corrupt)
    for row, ((start, ids), (_, twin)) in enumerate(zip(clean, corrupt, strict=True)):
        there = batch.answers[row] >= 0
        positions = (batch.positions[row][there] - start).tolist()
        if not positions:
            raise ValueError(f"Each example needs an answer but example {row} of {batch} has none. Leave it out.")
        width = positions[-1] + 1
        answers, foils = (values[row][there].tolist() for values in (batch.answers, batch.foils))
        yield Row(ids[:width], twin[:width], positions, answers, foils)


def _bounds(tokens: Tokens) -> Iterator[tuple[int, list[int]]]:
    """Of each prompt where it starts, and its tokens without padding."""
    for row, ids in enumerate(tokens.ids.tolist()):
        real = [True] * len(ids) if tokens.attention_mask is None else tokens.attention_mask[row].bool().tolist()
        yield real.index(True), [one for one, there in zip(ids, real, strict=True) if there]


def _lines(tokenizer: Any, split: str, rows: Sequence[Row], first: list[int]) -> list[Line]:
    return [_line(tokenizer, row, first, f"{split} example {number}") for number, row in enumerate(rows)]


def _line(tokenizer: Any, row: Row, first: list[int], place: str) -> Line:
    """The line whose tokens are those of the row.

    Raises:
        ValueError: there is none.
    """
    try:
        line = _said(tokenizer, row, len(first), place)
        same = row_of_line(tokenizer, line, first) == row
    except ValueError as error:
        raise ValueError(f"{place}, {tokenizer.decode(row.clean)!r}, has no tagged text: {error}") from None
    if not same:
        raise ValueError(
            f"{place} needs a text that gives its tokens again but {line.clean!r} gives others. Make the task from "
            "text: tp.tasks.from_pairs(...)."
        )
    return line


def _said(tokenizer: Any, row: Row, before: int, place: str) -> Line:
    clean, twin = [*row.clean[before:], row.answers[-1]], row.corrupt[before:]
    answers = [position + 1 - before for position in row.positions]
    if [clean[token] for token in answers] != row.answers:
        raise ValueError("a row's answers must be what its prompt goes on with. Read the last position alone")
    if NONE in row.foils:
        return Line(place, _tagged(tokenizer, clean, answers), _plain(tokenizer, twin), None, ())
    twin = [*twin, row.foils[-1]]
    stated = () if [twin[token] for token in answers] == row.foils else tuple(_foil_texts(tokenizer, row, answers))
    return Line(place, _tagged(tokenizer, clean, answers), _tagged(tokenizer, twin, answers), None, stated)


def _runs(tokens: Sequence[int]) -> list[list[int]]:
    """Neighbouring tokens together."""
    numbered = itertools.groupby(enumerate(tokens), key=lambda pair: pair[1] - pair[0])
    return [[token for _, token in run] for _, run in numbered]


def _tagged(tokenizer: Any, ids: list[int], answers: Sequence[int]) -> str:
    """The text of tokens with tags around the answers."""
    text = _plain(tokenizer, ids)
    bounds = token_bounds(tokenizer, text)
    for run in reversed(_runs(answers)):
        begin, end = bounds[run[0]][0], bounds[run[-1]][1]
        begin += len(text[begin:end]) - len(text[begin:end].lstrip())
        text = f"{text[:begin]}<predict>{text[begin:end]}</predict>{text[end:]}"
    return text


def _foil_texts(tokenizer: Any, row: Row, answers: Sequence[int]) -> Iterator[str]:
    foils = dict(zip(answers, row.foils, strict=True))
    return (tokenizer.decode([foils[token] for token in run]).strip() for run in _runs(answers))


def _plain(tokenizer: Any, ids: list[int]) -> str:
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if token_ids(tokenizer, text) != ids:
        raise ValueError(f"{text!r} is the text of other tokens. Make the task from text: tp.tasks.from_pairs(...)")
    return text


def _text(lines: Sequence[Line], split: str | None) -> str:
    marked: Mapping[str, str] = {} if split is None else {"split": split}
    return "".join(json.dumps({**_data(line), **marked}, ensure_ascii=False) + "\n" for line in lines)


def _data(line: Line) -> dict[str, Any]:
    foil = {"foil": list(line.foils)} if line.foils else {}
    return {"clean": line.clean, "corrupted": line.corrupted, **foil}
