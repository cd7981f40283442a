"""``tlprune evaluate``: the figures of a saved circuit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from tlprune.outcome import Outcome


@dataclass(frozen=True)
class Measure:
    """Measure a saved circuit on the test examples of a task.

    Attributes:
        circuit: the circuit.json of a run.
        model: by default the one that it was found on.
        task: by default the one that it was found for.
        task_seed: by default that of the run.
        device: where to compute.
    """

    circuit: Positional[Path]
    model: str | None = None
    task: str | None = None
    task_seed: int | None = None
    device: str | None = None


def measure(settings: Measure) -> Outcome:
    """The figures of a saved circuit, all of them with their intervals."""
    from tlprune.circuit import Circuit
    from tlprune.evaluation import evaluate
    from tlprune.models.load import load
    from tlprune.tasks import task_builder

    circuit = Circuit.load(settings.circuit)
    known = {**circuit.provenance.get("command", {})}
    given = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    chosen = {**known, **given}
    for name in ("model", "task"):
        if name not in chosen:
            raise ValueError(f"{settings.circuit} does not say which {name} it is for. Give --{name}.")
    build = task_builder(chosen["task"])
    model = load(chosen["model"], device=settings.device)
    task = build(model, seed=chosen.get("task_seed", 0))
    if settings.model is None and settings.task is None and settings.task_seed is None:
        _check_task(circuit, task)
    found = evaluate(model, circuit, task)
    return Outcome(f"{circuit}\n\n{found}", found.as_dict())


def _check_task(circuit: Any, task: Any) -> None:
    """The task of a run must still be the one that it was: else its test prompts may be ones that training saw."""
    known = circuit.provenance.get("task", {}).get("fingerprint", task.fingerprint)
    if known != task.fingerprint:
        raise ValueError(
            f"The circuit was found on prompts {known} of {task.name} but they are {task.fingerprint} now, so test "
            "prompts may be ones that it was trained on. Restore them, or name those to measure it on with --task."
        )


ACTIONS = {"": ("measure a saved circuit", Measure, measure)}
