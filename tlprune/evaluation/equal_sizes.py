"""Methods side by side at equal effective sizes: faithfulness and KL, with paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.evaluation.baselines import Row, differ, faithfulness
from tlprune.evaluation.bench import Bench, ablation_text
from tlprune.evaluation.table import aligned
from tlprune.learning.bootstrap import Interval, interval
from tlprune.learning.metrics import Performance
from tlprune.masking.ablation import Ablation
from tlprune.scores import Scores
from tlprune.selection import Pruned, Selection, Top
from tlprune.task import Batch, Task

SHARES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
SMALLEST = 0.9  # of the size asked for, that a circuit found at one size must have
Candidate = Scores | Circuit | Sequence[Circuit]
BEST = {"faithfulness": max, "kl": min}


@dataclass(frozen=True)
class Placed:
    """One method at one size.

    Attributes:
        size: effective sites asked for, of which it has this many or a little fewer.
        row: the method's name, its nominal and effective counts, and its figures.
        behind: how far it lies from what it is held against, by figure (``"faithfulness"``, ``"kl"``), with paired
            95% bootstrap intervals over examples; of undefined faithfulness there is none.
    """

    size: int
    row: Row
    behind: Mapping[str, Interval]

    def better(self, figure: str) -> bool | None:
        """Whether it is better in this than what it is held against; ``None`` unless the interval excludes zero."""
        sign = self.behind[figure].sign * (-1 if figure == "kl" else 1) if figure in self.behind else 0
        return {1: True, -1: False, 0: None}[sign]

    def as_dict(self) -> dict[str, Any]:
        """Counts, figures, intervals and differences as plain data."""
        behind = {name: {**one.as_dict(), "better": self.better(name)} for name, one in self.behind.items()}
        return {"size": self.size, **self.row.as_dict(), "behind": behind}


@dataclass(frozen=True)
class EqualSizes:
    """Methods at equal effective sizes; printing it gives a table.

    Attributes:
        rows: size after size, methods in the order in which they were given.
        against: the method that others are held against, or ``"best"``.
        examples: how many there are.
        sites: how many sites there are of each kind, and what counts as an edge.
        ablation: what replaced ablated sites, as plain data.
    """

    rows: tuple[Placed, ...]
    against: str
    examples: int
    sites: str
    ablation: Mapping[str, Any]

    def at(self, size: int) -> dict[str, Placed]:
        """The methods at one size, by name."""
        return {placed.row.name: placed for placed in self.rows if placed.size == size}

    def as_dict(self) -> dict[str, Any]:
        """All rows as plain data."""
        rows = [placed.as_dict() for placed in self.rows]
        return {"sites": self.sites, "ablation": dict(self.ablation), "against": self.against, "rows": rows}

    def __str__(self) -> str:
        header = ["size", "", "kept", "effective", "faithfulness [95%]", "KL [95%] (nats)", "behind, f", "behind, KL"]
        lines = aligned(header, [_cells(placed) for placed in self.rows])
        other = "the best of the size" if self.against == "best" else self.against
        lines.append(
            f"{self.examples} test examples; {self.sites} in all; {ablation_text(self.ablation)} ablation; behind: "
            f"less {other}, paired, * where 95% exclude 0"
        )
        return "\n".join(lines)


def _cells(placed: Placed) -> list[str]:
    row, known = placed.row, placed.row.intervals()
    figures = [str(known[name]) if name in known else "undefined" for name in BEST]
    behind = [_difference(placed, name) for name in BEST]
    return [f"{placed.size:,}", row.name, f"{row.kept:,}", f"{row.effective:,}", *figures, *behind]


def _difference(placed: Placed, figure: str) -> str:
    if figure not in placed.behind:
        return "-"
    return f"{placed.behind[figure].value:.4g}{'' if placed.better(figure) is None else '*'}"


def equal_sizes(
    model: Any,
    candidates: Mapping[str, Candidate],
    batch: Batch | Task,
    *,
    shares: Sequence[float] = SHARES,
    counts: Sequence[int] = (),
    selection: Selection = Pruned(Top(), size="effective"),  # noqa: B008
    against: str = "best",
    ablation: Ablation | None = None,
    batch_size: int = 64,
) -> EqualSizes:
    """Measure methods at equal numbers of effective edges, all on one counterfactual pass.

    Scores give a circuit of each size by the selection, which must aim at effective sizes. Circuits that were found
    each at a size of its own stand at the sizes that they fit: of a method's circuits the largest with no more
    effective edges than the size, and at least nine tenths of it; where there is none the method has no row.

    A method held against ``"best"`` is held against the one that did best on these very examples, which flatters that
    one. For a claim of one method, name it.

    Args:
        model: the model that all are of.
        candidates: by name, scores, a circuit, or several circuits of one method.
        batch: examples that no method saw, or the task.
        shares: sizes as parts of all sites, in (0, 1].
        counts: further sizes as numbers, such as that of the true circuit.
        selection: which circuit of a size is taken of scores.
        against: what others are held against: a candidate's name, or ``"best"``, figure by figure.
        ablation: what replaces ablated sites; by default what did at discovery, if it did for all.
        batch_size: pairs of circuit and example per forward pass.

    Raises:
        ValueError: there is nothing to measure, the candidates have different sites, models or ablations, or a size
            is out of range.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> ranked = Scores(planted.circuit.sites, planted.circuit.kept.float())
        >>> chance = tp.Random(edges=2).score(planted.model, planted.task)
        >>> found = equal_sizes(planted.model, {"true": ranked, "chance": chance}, planted.task, shares=(), counts=[2])
        >>> at = found.at(2)
        >>> at["true"].row.effective, at["chance"].row.effective, at["chance"].better("kl")
        (2, 2, False)
    """
    if not candidates or (against != "best" and against not in candidates):
        raise ValueError(
            f"A table needs candidates and, to hold them against, one of these or 'best', but got "
            f"{', '.join(candidates) or 'none'} and {against!r}. Name one that is there."
        )
    total = len(_sites_of(next(iter(candidates.values()))))
    sizes = _sizes(shares, counts, total)
    chosen = [
        (size, name, circuit)
        for size in sizes
        for name, candidate in candidates.items()
        if (circuit := _of_size(candidate, size, selection)) is not None
    ]
    if not chosen:
        raise ValueError(f"No candidate has a circuit of any of the sizes {sizes}. Give sizes that fit: counts=[...].")
    bench = Bench.of_all(model, [circuit for _, _, circuit in chosen], batch, ablation=ablation)
    one = chosen[0][2]
    ends = torch.stack([torch.ones_like(one.kept), torch.zeros_like(one.kept)])
    kept = torch.cat([ends, torch.stack([circuit.kept for _, _, circuit in chosen])])
    full, empty, *found = bench.measure_each(kept, batch_size=batch_size)
    rows = [
        (size, Row.of(name, circuit, own, faithfulness(own, full, empty)))
        for (size, name, circuit), own in zip(chosen, found, strict=True)
    ]
    placed = [Placed(size, row, _behind(size, row, rows, against, full, empty)) for size, row in rows]
    return EqualSizes(tuple(placed), against, len(full), str(one.sites), bench.ablation)


def _sizes(shares: Sequence[float], counts: Sequence[int], total: int) -> list[int]:
    found = sorted({*(max(1, round(share * total)) for share in shares), *counts})
    if not found or found[0] < 1 or found[-1] > total:
        raise ValueError(
            f"Sizes must lie between 1 and {total:,} but are {found or 'none'}. Give shares in (0, 1] or counts."
        )
    return found


def _sites_of(candidate: Candidate) -> Any:
    return candidate.sites if isinstance(candidate, (Scores, Circuit)) else candidate[0].sites


def _of_size(candidate: Candidate, size: int, selection: Selection) -> Circuit | None:
    if isinstance(candidate, Scores):
        return selection.select(candidate, size)
    circuits = [candidate] if isinstance(candidate, Circuit) else candidate
    fitting = [one for one in circuits if SMALLEST * size <= one.n_effective <= size]
    return max(fitting, key=lambda one: one.n_effective, default=None)


def _behind(
    size: int, row: Row, rows: Sequence[tuple[int, Row]], against: str, full: Performance, empty: Performance
) -> dict[str, Interval]:
    """Differences from what a row is held against at its size; none from itself."""
    there = [other for own, other in rows if own == size]
    found: dict[str, Interval] = {}
    for figure, best in BEST.items():
        known = [other for other in there if figure in other.means() and against in ("best", other.name)]
        other = best(known, key=lambda one: one.means()[figure], default=None)
        if other is not None and other is not row and figure in row.means():
            found[figure] = _paired(figure, row.performance, other.performance, full, empty)
    return found


def _paired(figure: str, own: Performance, other: Performance, full: Performance, empty: Performance) -> Interval:
    if figure == "kl":
        return own.less(other)["kl"]
    columns = [one.figure("logit_difference").double() for one in (own, other, full, empty)]
    assert differ(*columns[2:])
    return interval(_difference_of_shares, *columns)


def _difference_of_shares(own: Tensor, other: Tensor, full: Tensor, empty: Tensor) -> Tensor:
    return (own - other) / (full - empty)
