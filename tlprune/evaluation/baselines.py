"""What a circuit does on test examples, beside the full model, its complement, chance and nothing at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.evaluation.bench import Bench, ablations_dict, ablations_text
from tlprune.evaluation.table import aligned, number
from tlprune.learning.bootstrap import Interval, finite, interval
from tlprune.learning.metrics import Performance
from tlprune.masking.ablation import Ablation
from tlprune.random_circuits import random_like
from tlprune.task import Batch, Task

ROUNDING = 1e-6  # of a float32 logit difference, relative to its size
# Columns of the table: figure, header, digits. A task's own metrics follow.
COLUMNS = (
    ("accuracy", "accuracy", 3),
    ("agreement", "agreement", 3),
    ("logit_difference", "logit diff", 2),
    ("kl", "KL (nats)", 4),
    ("squared_error", "squared error", 4),
    ("faithfulness", "faithfulness", 3),
)


@dataclass(frozen=True)
class Row:
    """One set of sites and its behaviour.

    Attributes:
        name: what it is.
        kept: sites kept (nominal).
        effective: those that can matter; of edges, those on a path from the embeddings to the logits.
        performance: figures per test example.
        faithfulness: ``(m(C) - m(empty)) / (m(full) - m(empty))`` of the mean logit difference ``m``; ``None`` where
            it is undefined: there are no foils, or full model and empty circuit do not differ.
        distinct: of sites that differ by span, those kept at some span; else ``None``.
    """

    name: str
    kept: int
    effective: int
    performance: Performance
    faithfulness: Interval | None
    distinct: int | None = None

    @staticmethod
    def of(name: str, circuit: Circuit, performance: Performance, faithfulness: Interval | None) -> Row:
        """The row of a circuit, with its counts."""
        distinct = len(circuit.without_spans()) if circuit.sites.spans else None
        return Row(name, len(circuit), circuit.n_effective, performance, faithfulness, distinct)

    def means(self) -> dict[str, float]:
        """Mean figures, faithfulness among them."""
        known = {} if self.faithfulness is None else {"faithfulness": self.faithfulness.value}
        return self.performance.means() | known

    def intervals(self) -> dict[str, Interval]:
        """The same with 95% bootstrap intervals over test examples."""
        known = {} if self.faithfulness is None else {"faithfulness": self.faithfulness}
        return self.performance.intervals() | known

    def as_dict(self) -> dict[str, Any]:
        """Counts, mean figures and intervals as plain data."""
        means = {"faithfulness": None} | {name: finite(value) for name, value in self.means().items()}
        bounds = {name: [finite(one.low), finite(one.high)] for name, one in self.intervals().items()}
        counts = {"kept": self.kept, "effective": self.effective}
        counts |= {} if self.distinct is None else {"distinct": self.distinct}
        return {"name": self.name, **counts, **means, "intervals": bounds}


@dataclass(frozen=True)
class Evaluation:
    """A circuit against its baselines; printing it gives a table.

    Attributes:
        rows: full model, circuit, complement, random circuit of equal size (connected, of edges), empty circuit.
        sites: how many sites there are of each kind, and what counts as an edge.
        ablation: what replaced ablated sites here, as plain data.
        discovery: what replaced them when the circuit was found; ``None`` where its provenance does not say.
    """

    rows: tuple[Row, ...]
    sites: str
    ablation: Mapping[str, Any]
    discovery: Mapping[str, Any] | None

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def as_dict(self) -> dict[str, Any]:
        """All rows as plain data."""
        rows = [row.as_dict() for row in self.rows]
        return {"sites": self.sites, **ablations_dict(self.ablation, self.discovery), "rows": rows}

    def __str__(self) -> str:
        lines = rows_table(self.rows, bounded=("circuit",))
        count = len(self.rows[0].performance)
        lines.append(f"{count} test examples; {self.sites} in all; {ablations_text(self.ablation, self.discovery)}")
        if self.rows[0].performance.logit_difference is not None and self.rows[0].faithfulness is None:
            lines.append("faithfulness is undefined: full model and empty circuit have one logit difference")
        return "\n".join(lines)


def rows_table(rows: tuple[Row, ...], *, bounded: tuple[str, ...]) -> list[str]:
    """Lines of a table of rows; ``bounded`` ones have both ends of their intervals below them."""
    performance, known = rows[0].performance, rows[0].means()
    own = [(name, name, 3) for name in (*performance.extra, *performance.statistics)]
    columns = [column for column in (*COLUMNS, *own) if column[0] in known]
    sizes_of = ["kept", "effective", *(["distinct"] if any(row.distinct is not None for row in rows) else [])]
    cells: list[list[str]] = []
    for row in rows:
        means, sizes = row.means(), [_size(getattr(row, name)) for name in sizes_of]
        cells.append([row.name, *sizes, *(number(means[name], digits) for name, _, digits in columns)])
        if row.name in bounded:
            found = row.intervals()
            for label, end in (("  95% from", "low"), ("  95% to", "high")):
                ends = (number(getattr(found[name], end), digits) for name, _, digits in columns)
                cells.append([label, *("" for _ in sizes), *ends])
    return aligned(["", *sizes_of, *(header for _, header, _ in columns)], cells)


def _size(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def evaluate(
    model: Any, circuit: Circuit, batch: Batch | Task, *, ablation: Ablation | None = None, seed: int = 0
) -> Evaluation:
    """Measure a hard circuit, without sampling, on examples that no method saw.

    Sufficiency is the circuit's row, necessity its complement's: a good circuit is close to the full model and its
    complement far from it. Agreement is with the full model's most likely token; KL is from the full model, in nats.
    Faithfulness is 1 for the full model and 0 for the empty circuit, whose mean logit differences it is measured by;
    it is undefined, ``None``, where these are equal up to rounding. Intervals are 95%, by the bootstrap over examples.

    Source: of faithfulness, Hanna et al., "Have Faith in Faithfulness" (2024), section 2.

    Args:
        model: the model that the circuit is of.
        circuit: what to keep.
        batch: ``task.test``; or the task itself, whose own metrics are then measured on its test examples, too.
        ablation: what replaces ablated sites; by default what did at discovery, where the circuit tells that in
            full; :class:`~tlprune.Resample` for a circuit stated by hand.
        seed: of the random circuit.

    Raises:
        ValueError: the circuit belongs to another model.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> found = tp.evaluate(planted.model, planted.circuit, planted.task)
        >>> found["circuit"].performance.means()["accuracy"], found["empty"].performance.means()["accuracy"]
        (1.0, 0.0)
        >>> print(found["circuit"].faithfulness)
        1 [1, 1]
    """
    bench = Bench.of(model, circuit, batch, ablation=ablation)
    subjects = _subjects(circuit, seed)
    performances = {name: bench.measure(subject) for name, subject in subjects.items()}
    full, empty = (performances[name] for name in ("full model", "empty"))
    rows = [
        Row.of(name, subject, performances[name], faithfulness(performances[name], full, empty))
        for name, subject in subjects.items()
    ]
    return Evaluation(tuple(rows), str(circuit.sites), bench.ablation, circuit.provenance.get("ablation"))


def faithfulness(circuit: Performance, full: Performance, empty: Performance) -> Interval | None:
    """``(m(C) - m(empty)) / (m(full) - m(empty))`` of logit differences; ``None`` where it is undefined.

    That is without foils, and where the full model and the empty circuit differ by no more than rounding.
    """
    columns = [one.logit_difference for one in (circuit, full, empty)]
    known = [column.double() for column in columns if column is not None]
    if len(known) < len(columns) or not differ(*known[1:]):
        return None
    return interval(_share, *known)


def differ(full: Float[Tensor, "example"], empty: Float[Tensor, "example"]) -> bool:
    """Whether the means of the full model and of the empty circuit differ by more than rounding."""
    scale = max(1.0, float(torch.stack([full, empty]).abs().max()))
    return float((full - empty).mean().abs()) > ROUNDING * scale


def _share(circuit: Tensor, full: Tensor, empty: Tensor) -> Tensor:
    return (circuit - empty) / (full - empty)


def _subjects(circuit: Circuit, seed: int) -> dict[str, Circuit]:
    everything = torch.ones_like(circuit.kept)
    return {
        "full model": circuit.like(everything),
        "circuit": circuit,
        "complement": circuit.complement,
        "random": random_like(circuit, seed=seed),
        "empty": circuit.like(~everything),
    }
