"""Faithfulness against size: the circuits that one set of scores gives at several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tlprune.circuit import Circuit
from tlprune.evaluation.baselines import Row, faithfulness, rows_table
from tlprune.evaluation.bench import Bench, ablations_dict, ablations_text
from tlprune.learning.metrics import Performance
from tlprune.masking.ablation import Ablation
from tlprune.scores import Scores
from tlprune.task import Batch, Task


@dataclass(frozen=True)
class Curve:
    """Circuits of growing size and their behaviour; printing it gives a table.

    Attributes:
        rows: one per size, smallest first.
        sites: how many sites there are of each kind, and what counts as an edge.
        ablation: what replaced ablated sites, as plain data.
        discovery: what replaced them when the scores were made, where that is known.
    """

    rows: tuple[Row, ...]
    sites: str
    ablation: Mapping[str, Any]
    discovery: Mapping[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """All rows as plain data."""
        rows = [row.as_dict() for row in self.rows]
        return {"sites": self.sites, **ablations_dict(self.ablation, self.discovery), "rows": rows}

    def __str__(self) -> str:
        count = len(self.rows[0].performance)
        ending = f"{count} test examples; {self.sites} in all; "
        ending += ablations_text(self.ablation, self.discovery)
        return "\n".join([*rows_table(self.rows, bounded=()), ending])


def faithfulness_curve(
    model: Any,
    scores: Scores,
    batch: Batch | Task,
    *,
    counts: Sequence[int],
    ablation: Ablation | None = None,
    batch_size: int = 64,
) -> Curve:
    """Measure the sites of highest score, for several numbers of them.

    Args:
        model: the model that the scores are of.
        scores: a number for every site.
        batch: examples that no method saw, or the task.
        counts: numbers of sites to keep; each takes a run over the examples.
        ablation: what replaces ablated sites; by default what did at discovery.
        batch_size: pairs of circuit and example per forward pass.

    Raises:
        ValueError: the scores belong to another model, or a number is more than there are.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> scores = Scores(planted.circuit.sites, planted.circuit.kept.float())
        >>> curve = tp.faithfulness_curve(planted.model, scores, planted.task, counts=[0, 2, 110])
        >>> [round(row.faithfulness.value, 4) for row in curve.rows]
        [0.0, 1.0, 1.0]
    """
    if not counts:
        raise ValueError("A curve needs at least one number of sites but got none. Give counts, such as [10, 100].")
    circuits = [scores.top(count) for count in sorted({*counts})]
    bench = Bench.of(model, circuits[0], batch, ablation=ablation)
    ends = torch.stack([torch.ones_like(circuits[0].kept), torch.zeros_like(circuits[0].kept)])
    kept = torch.cat([ends, torch.stack([circuit.kept for circuit in circuits])])
    full, empty, *found = bench.measure_each(kept, batch_size=batch_size)
    rows = [_row(circuit, performance, full, empty) for circuit, performance in zip(circuits, found, strict=True)]
    return Curve(tuple(rows), str(scores.sites), bench.ablation, scores.provenance.get("ablation"))


def _row(circuit: Circuit, performance: Performance, full: Performance, empty: Performance) -> Row:
    share = faithfulness(performance, full, empty)
    return Row.of(f"top {len(circuit):,}", circuit, performance, share)
