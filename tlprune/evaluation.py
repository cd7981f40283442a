"""What a circuit does on test examples, beside the full model, its complement, chance and nothing at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tlprune.circuit import Circuit
from tlprune.learning.metrics import Performance, measure
from tlprune.masking.ablation import Ablation
from tlprune.masking.masked import masked_circuit
from tlprune.random_circuits import connected_random
from tlprune.task import Batch


@dataclass(frozen=True)
class Row:
    """One set of edges and its behaviour.

    Attributes:
        name: what it is.
        edges: edges kept (nominal).
        effective: kept edges on a path from the embeddings to the logits.
        performance: figures per test example.
    """

    name: str
    edges: int
    effective: int
    performance: Performance

    def as_dict(self) -> dict[str, Any]:
        """Counts and mean figures as plain data."""
        return {"name": self.name, "edges": self.edges, "effective": self.effective, **self.performance.means()}


@dataclass(frozen=True)
class Evaluation:
    """A circuit against its baselines; printing it gives a table.

    Attributes:
        rows: full model, circuit, complement, connected random circuit of equal size, empty circuit.
        total: edges in the graph.
        convention: what counts as an edge.
        ablation: what replaced ablated edges.
    """

    rows: tuple[Row, ...]
    total: int
    convention: str
    ablation: str

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def as_dict(self) -> dict[str, Any]:
        """All rows as plain data."""
        rows = [row.as_dict() for row in self.rows]
        return {"total": self.total, "convention": self.convention, "ablation": self.ablation, "rows": rows}

    def __str__(self) -> str:
        count = len(self.rows[0].performance.kl)
        lines = [
            f"{'':<16}{'edges':>8}{'effective':>11}{'accuracy':>10}{'agreement':>11}{'logit diff':>12}{'KL (nats)':>11}"
        ]
        for row in self.rows:
            means = row.performance.means()
            lines.append(
                f"{row.name:<16}{row.edges:>8,}{row.effective:>11,}{means['accuracy']:>10.3f}"
                f"{means['agreement']:>11.3f}{means['logit_difference']:>12.2f}{round(means['kl'], 4) + 0.0:>11.4f}"
            )
        lines.append(
            f"{count} test examples; {self.total:,} edges in all ({self.convention}); {self.ablation} ablation"
        )
        return "\n".join(lines)


def evaluate(
    model: Any, circuit: Circuit, batch: Batch, *, ablation: Ablation | None = None, seed: int = 0
) -> Evaluation:
    """Measure a hard circuit, without sampling, on examples that no method saw.

    Sufficiency is the circuit's row, necessity its complement's: a good circuit is close to the full model and its
    complement far from it. Agreement is with the full model's most likely token; KL is from the full model, in nats.

    Args:
        model: the model that the circuit is of.
        circuit: the edges to keep.
        batch: ``task.test``.
        ablation: what replaces ablated edges; by default :class:`~tlprune.Resample`.
        seed: of the random circuit.

    Raises:
        ValueError: the circuit belongs to another model.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> found = tp.evaluate(planted.model, planted.circuit, planted.task.test)
        >>> found["circuit"].performance.means()["accuracy"], found["empty"].performance.means()["accuracy"]
        (1.0, 0.0)
    """
    masked = masked_circuit(model, circuit, ablation)
    examples = batch_in_order(batch)
    cache = masked.cache(examples)
    rows = []
    for name, kept in _subjects(circuit, seed):
        performance = measure(masked, kept.kept, examples, cache=cache)
        rows.append(Row(name, len(kept), kept.n_effective, performance))
    graph = circuit.graph
    return Evaluation(tuple(rows), graph.n_edges, str(graph.convention), masked.ablation.as_dict()["name"])


def batch_in_order(batch: Batch) -> Batch:
    """The examples numbered from 0, as a cache of just these needs them."""
    return Batch(**{**vars(batch), "index": torch.arange(len(batch))})


def _subjects(circuit: Circuit, seed: int) -> list[tuple[str, Circuit]]:
    graph, everything = circuit.graph, torch.ones_like(circuit.kept)
    return [
        ("full model", circuit.like(everything)),
        ("circuit", circuit),
        ("complement", circuit.complement),
        ("random", connected_random(graph, len(circuit), seed=seed)),
        ("empty", circuit.like(~everything)),
    ]
