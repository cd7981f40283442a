"""Token ids of single examples in, a task out: padding, positions and splits that all text tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tlprune.task import MAIN, Batch, Stream, Task, Tokenisation, Tokens

PaddingSide = Literal["left", "right"]
NONE = -100  # in place of an answer or foil


@dataclass(frozen=True)
class Row:
    """One example before padding.

    Attributes:
        clean: token ids of the prompt.
        corrupt: token ids of its twin, as many.
        positions: where predictions are read, within this prompt.
        answers: right token at each of them.
        foils: the wrong token it is compared with, -100 where there is none.
        label: class or number of the example.
        spans: number of the span that each token belongs to, or -1.
    """

    clean: list[int]
    corrupt: list[int]
    positions: list[int]
    answers: list[int]
    foils: list[int]
    label: int | None = None
    spans: list[int] | None = None


def task_of_rows(
    name: str,
    splits: Mapping[str, Sequence[Row]],
    tokenisation: Tokenisation,
    *,
    padding: int,
    options: Mapping[str, Any],
    span_names: tuple[str, ...] = (),
) -> Task:
    """A task of one stream.

    Args:
        name: short name of the task.
        splits: examples under ``"train"``, ``"validation"`` and ``"test"``; those with fewer answers than others are
            filled up as :class:`~tlprune.Batch` says.
        tokenisation: fixes the side on which shorter prompts are padded.
        padding: token id to pad with.
        options: how the examples were made, as plain data.
        span_names: what the numbers in ``Row.spans`` stand for.

    Raises:
        ValueError: if a split is empty, or only some of its examples have a label.

    Example:
        >>> rows = [Row([5, 6, 7], [5, 8, 7], [2], [1], [2]), Row([5, 6], [5, 9], [1], [3], [4])]
        >>> splits = {"train": rows, "validation": rows, "test": rows}
        >>> task = task_of_rows("mine", splits, Tokenisation(True, "left"), padding=0, options={})
        >>> task.test.clean.ids.tolist(), task.test.positions.tolist()
        ([[5, 6, 7], [0, 5, 6]], [[2], [2]])
    """
    side = tokenisation.padding_side
    batches = {split: _batch(name, rows, padding, side, span_names) for split, rows in splits.items()}
    return Task(name, {MAIN: Stream(**batches)}, tokenisation, dict(options), span_names)


def _batch(name: str, rows: Sequence[Row], padding: int, side: PaddingSide, span_names: tuple[str, ...]) -> Batch:
    if not rows:
        raise ValueError(f"Task {name!r} needs at least one pair in each split but one is empty. Give it more pairs.")
    width, most = max(len(row.clean) for row in rows), max(len(row.positions) for row in rows)
    before = [width - len(row.clean) if side == "left" else 0 for row in rows]
    return Batch(
        index=torch.arange(len(rows)),
        clean=_padded([row.clean for row in rows], width, padding, side),
        corrupt=_padded([row.corrupt for row in rows], width, padding, side),
        positions=torch.tensor([_fill(row.positions, most, row.positions[-1]) for row in rows])
        + torch.tensor(before)[:, None],
        answers=torch.tensor([_fill(row.answers, most, NONE) for row in rows]),
        foils=torch.tensor([_fill(row.foils, most, NONE) for row in rows]),
        labels=_labels(name, rows),
        spans=_spans(rows, width, side),
        span_names=span_names,
    )


def _labels(name: str, rows: Sequence[Row]) -> torch.Tensor | None:
    labels = [row.label for row in rows if row.label is not None]
    if len(labels) not in (0, len(rows)):
        raise ValueError(
            f"Task {name!r} needs labels on all examples or none but {len(labels)} of {len(rows)} have one. "
            "Give the others theirs."
        )
    return torch.tensor(labels) if labels else None


def _spans(rows: Sequence[Row], width: int, side: PaddingSide) -> torch.Tensor | None:
    spans = [row.spans for row in rows if row.spans is not None]
    return torch.tensor([_fill(numbers, width, -1, side) for numbers in spans]) if spans else None


def _padded(prompts: list[list[int]], width: int, padding: int, side: PaddingSide) -> Tokens:
    ids = torch.tensor([_fill(prompt, width, padding, side) for prompt in prompts])
    if all(len(prompt) == width for prompt in prompts):
        return Tokens(ids)
    return Tokens(ids, torch.tensor([_fill([1] * len(prompt), width, 0, side) for prompt in prompts]))


def _fill(values: list[int], width: int, filler: int, side: PaddingSide = "right") -> list[int]:
    missing = [filler] * (width - len(values))
    return values + missing if side == "right" else missing + values
