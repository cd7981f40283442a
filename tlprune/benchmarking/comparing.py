"""Which rows are better than others: figures of every example, averaged over seeds, compared pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.benchmarking.rows import MEASURED, Store
from tlprune.learning.bootstrap import Interval, interval

Row = Mapping[str, Any]
# A line of a table: the method, and how it met the sizes.
Line = tuple[str, str]


@dataclass(frozen=True)
class Cell:
    """What a method did at one size, over its seeds.

    Attributes:
        kl: mean over seeds and examples, in nats, with a 95% bootstrap interval over examples.
        by_seed: the mean of each seed.
        faithfulness: the mean over seeds of ``f``, ``None`` where it is not defined.
        target: the size that was asked for, in effective edges.
        effective: edges, of each seed.
        tied: whether its KL cannot be told from the best one's at this size: the interval of their paired difference
            holds zero. Of the best itself, ``True``.
    """

    kl: Interval
    by_seed: tuple[float, ...]
    faithfulness: float | None
    target: int
    effective: tuple[int, ...]
    tied: bool


def compared(store: Store, rows: Sequence[Row]) -> dict[int, dict[Line, Cell]]:
    """By size in edges, each method's cell."""
    found: dict[int, dict[Line, list[Row]]] = {}
    for row in rows:
        if row["status"] == MEASURED and row.get("target") is not None:
            line = (row["method"], row["mode"])
            found.setdefault(row["target"], {}).setdefault(line, []).append(row)
    return {size: _cells(store, lines) for size, lines in sorted(found.items())}


def _cells(store: Store, lines: Mapping[Line, Sequence[Row]]) -> dict[Line, Cell]:
    columns = {line: torch.stack([_column(store, row) for row in rows]) for line, rows in lines.items()}
    best = min(columns.values(), key=lambda column: float(column.mean())).mean(0)
    return {line: _cell(rows, columns[line], best) for line, rows in lines.items()}


def _cell(rows: Sequence[Row], column: Float[Tensor, "seed example"], best: Float[Tensor, "example"]) -> Cell:
    mean = column.mean(0)
    shares = [row["faithfulness"] for row in rows if row.get("faithfulness") is not None]
    return Cell(
        interval(lambda value: value, mean),
        tuple(column.mean(1).tolist()),
        sum(shares) / len(shares) if shares else None,
        rows[0]["target"],
        tuple(row["effective"] for row in rows),
        interval(lambda own, other: own - other, mean, best).sign == 0,
    )


def _column(store: Store, row: Row) -> Float[Tensor, "example"]:
    """KL of every example."""
    place = [other.get("target") for other in store.of(row["cell"])].index(row["target"])
    return store.examples(row["cell"])["kl"][place]
