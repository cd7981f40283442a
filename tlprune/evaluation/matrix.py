"""One method under every ablation of discovery, evaluated under every other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from tlprune.circuit import Circuit
from tlprune.evaluation.baselines import Evaluation, Row, evaluate
from tlprune.evaluation.table import aligned
from tlprune.masking.ablation import Ablation
from tlprune.methods.ablations import ablation_for
from tlprune.task import Task

FIGURES = ("faithfulness", "kl")


@runtime_checkable
class Finder(Protocol):
    """A method."""

    def find(self, model: Any, task: Task, *, ablation: Ablation | None = None) -> Circuit:
        """The circuit that it finds."""
        ...


@dataclass(frozen=True)
class AblationMatrix:
    """Circuits by ablation of discovery, their figures by ablation of evaluation; printing it gives a table.

    Attributes:
        circuits: what the method found, by the name of the ablation.
        evaluations: by name of the ablation of discovery and that of evaluation.
    """

    circuits: Mapping[str, Circuit]
    evaluations: Mapping[tuple[str, str], Evaluation]

    def __getitem__(self, pair: tuple[str, str]) -> Row:
        """The circuit's row: found under the first ablation, evaluated under the second."""
        return self.evaluations[pair]["circuit"]

    def as_dict(self) -> dict[str, Any]:
        """All pairs as plain data."""
        rows = [{"found": found, "evaluated": used, **self[found, used].as_dict()} for found, used in self.evaluations]
        return {"rows": rows}

    def __str__(self) -> str:
        rows = []
        for found, used in self.evaluations:
            row = self[found, used]
            known = row.intervals()
            figures = [str(known[name]) if name in known else "undefined" for name in FIGURES]
            rows.append([found, used, f"{row.kept:,}", f"{row.effective:,}", *figures])
        lines = aligned(
            ["found under", "evaluated", "kept", "effective", "faithfulness [95%]", "KL [95%] (nats)"], rows
        )
        one = next(iter(self.evaluations.values()))
        return "\n".join([*lines, f"{len(one.rows[0].performance)} test examples; {one.sites} in all"])


def ablation_matrix(model: Any, task: Task, method: Finder, ablations: Mapping[str, Ablation]) -> AblationMatrix:
    """Find a circuit under each ablation, and evaluate each under all.

    A circuit is of its ablation as much as of the model: what replaced removed sites while it was found decides what
    it had to keep. Faithfulness under another ablation says how much.

    Args:
        model: a TransformerLens model; left as it was.
        task: prompt pairs; circuits are found on train and validation examples, evaluated on test examples.
        method: with a ``find`` that takes an ablation.
        ablations: by name. ``Mean()`` without reference prompts goes over the training prompts, corrupted, both when a
            circuit is found and when it is evaluated.

    Raises:
        ValueError: there are none, or the method refuses one.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> both = {"resample": tp.Resample(), "zero": tp.Zero()}
        >>> found = ablation_matrix(planted.model, planted.task, tp.Random(edges=10), both)
        >>> [*found.evaluations]
        [('resample', 'resample'), ('resample', 'zero'), ('zero', 'resample'), ('zero', 'zero')]
    """
    if not ablations:
        raise ValueError("A matrix needs ablations but got none. Give some: {'zero': tp.Zero()}.")
    used = {name: ablation_for(task.discovery, ablation) for name, ablation in ablations.items()}
    circuits = {name: method.find(model, task, ablation=ablation) for name, ablation in used.items()}
    evaluations = {
        (found, name): evaluate(model, circuit, task, ablation=ablation)
        for found, circuit in circuits.items()
        for name, ablation in used.items()
    }
    return AblationMatrix(circuits, evaluations)
