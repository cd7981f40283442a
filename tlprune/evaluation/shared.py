"""What two circuits share and what each has alone, and how much of each behaviour that carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tlprune.circuit import Circuit
from tlprune.evaluation.baselines import Row, faithfulness
from tlprune.evaluation.bench import Bench, ablation_text
from tlprune.evaluation.overlap import Overlap, overlap
from tlprune.evaluation.table import aligned
from tlprune.masking.ablation import Ablation
from tlprune.task import Batch, Task

FIGURES = ("faithfulness", "kl")


@dataclass(frozen=True)
class SharedParts:
    """Two circuits, what they share, what each has alone and both together, on each task; printing it gives a table.

    Attributes:
        overlap: of the two, beside chance.
        circuits: by name: both by the names given, and ``"both"``, ``"NAME alone"`` of each, ``"either"``.
        rows: by name of the circuit and of the task.
        ablation: what replaced ablated sites, as plain data.
    """

    overlap: Overlap
    circuits: Mapping[str, Circuit]
    rows: Mapping[tuple[str, str], Row]
    ablation: Mapping[str, Any]

    def __getitem__(self, pair: tuple[str, str]) -> Row:
        """A circuit's row on a task."""
        return self.rows[pair]

    def as_dict(self) -> dict[str, Any]:
        """All rows as plain data."""
        rows = [{"circuit": name, "task": task, **row.as_dict()} for (name, task), row in self.rows.items()]
        return {"overlap": self.overlap.as_dict(), "ablation": dict(self.ablation), "rows": rows}

    def __str__(self) -> str:
        tasks = list(dict.fromkeys(task for _, task in self.rows))
        headers = [f"{figure}, {task} [95%]" for task in tasks for figure in ("faithfulness", "KL (nats)")]
        lines = aligned(["", "kept", "effective", *headers], [self._cells(name, tasks) for name in self.circuits])
        return "\n".join([*lines, f"{self.overlap}; {ablation_text(self.ablation)} ablation"])

    def _cells(self, name: str, tasks: list[str]) -> list[str]:
        circuit = self.circuits[name]
        known = [self.rows[name, task].intervals() for task in tasks]
        figures = [str(one[figure]) if figure in one else "undefined" for one in known for figure in FIGURES]
        return [name, f"{len(circuit):,}", f"{circuit.n_effective:,}", *figures]


def shared_parts(
    model: Any,
    circuits: Mapping[str, Circuit],
    tasks: Mapping[str, Batch | Task],
    *,
    ablation: Ablation | None = None,
    batch_size: int = 64,
) -> SharedParts:
    """Measure two circuits, their intersection, both differences and their union on each of some tasks.

    So if the circuits of two wordings of one behaviour, few-shot and instruction, share a mechanism, their intersection
    is faithful on both. A difference that keeps no path is as faithful as nothing at all: the table has its effective
    size beside.

    Args:
        model: the model that both are of.
        circuits: two, by name.
        tasks: by name; of a task its test examples.
        ablation: what replaces ablated sites; by default what did at discovery, where both circuits say the same.
        batch_size: pairs of circuit and example per forward pass.

    Raises:
        ValueError: there are not two circuits of the same sites and model, or no tasks.

    Source: Bhaskar et al., "Finding Transformer Circuits with Edge Pruning" (NeurIPS 2024), section 6, which compares
    the circuits of few-shot and instruction prompts so.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> noise = tp.connected_random(planted.circuit.graph, 20)
        >>> found = shared_parts(planted.model, {"true": planted.circuit, "noise": noise}, {"copy": planted.task})
        >>> list(found.circuits), found["either", "copy"].means()["accuracy"]
        (['true', 'noise', 'both', 'true alone', 'noise alone', 'either'], 1.0)
    """
    if len(circuits) != 2 or not tasks:
        raise ValueError(
            f"Shared parts are of two circuits on one task or more but got {len(circuits)} and {len(tasks)}. Give "
            "{'few-shot': one, 'instruction': other} and tasks by name."
        )
    (first_name, first), (second_name, second) = circuits.items()
    alike = overlap(first, second, chance="uniform")
    parts = {first_name: first, second_name: second, "both": first & second}
    parts |= {f"{first_name} alone": first - second, f"{second_name} alone": second - first, "either": first | second}
    everything = torch.ones_like(first.kept)
    kept = torch.stack([*(one.kept for one in parts.values()), everything, ~everything])
    rows, used = dict[tuple[str, str], Row](), dict[str, Any]()
    for task, examples in tasks.items():
        bench = Bench.of_all(model, [first, second], examples, ablation=ablation)
        *measured, full, empty = bench.measure_each(kept, batch_size=batch_size)
        for (name, part), own in zip(parts.items(), measured, strict=True):
            rows[name, task] = Row.of(name, part, own, faithfulness(own, full, empty))
        used = bench.ablation
    return SharedParts(alike, parts, rows, used)
