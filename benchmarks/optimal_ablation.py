"""Mean against optimal ablation: the same circuits, with means and with constants that were trained for each of them.

    python -m benchmarks.optimal_ablation --out runs.jsonl

Circuits are those of EAP-IG under mean ablation, in the small model of the package. Means are over corrupted training
prompts; constants start there and are trained on training prompts for ``steps`` steps (:func:`tlprune.fit_constant`).
Each row is KL(full || circuit) in nats, on the training prompts that the constants saw and on test prompts of held-out
templates and names. Rows are written as they finish, and those that are there are not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

import tlprune as tp
from tlprune.learning.metrics import measure

COLUMNS = ("task", "edges", "train mean", "train optimal", "test mean", "test optimal", "test empty")


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        out: one JSON object per circuit; continued where it exists.
        tasks: of the small model.
        sparsities: of the circuits.
        steps: of the constants' training.
        rate: their learning rate.
        seed: of the order of examples.
        threads: for torch.
    """

    out: Path
    tasks: tuple[str, ...] = ("ioi", "greater-than", "gendered-pronoun")
    sparsities: tuple[float, ...] = (0.98, 0.95)
    steps: int = 100
    rate: float = 0.01
    seed: int = 0
    threads: int = 1


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(settings.threads)
    for task, sparsity in _missing(settings):
        with settings.out.open("a") as file:
            file.write(json.dumps(result(task, sparsity, settings)) + "\n")
    print(table(_read(settings.out)))


def _missing(settings: Settings) -> Iterator[tuple[str, float]]:
    done = {(row["task"], row["sparsity"]) for row in _read(settings.out)}
    wanted = ((task, sparsity) for sparsity in settings.sparsities for task in settings.tasks)
    return (run for run in wanted if run not in done)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def result(name: str, sparsity: float, settings: Settings) -> dict[str, Any]:
    """Find a circuit, train constants for it, and measure it under both ablations."""
    model = tp.load("testbed")
    task = tp.tasks.TASKS[name](model)
    train = task.discovery.train()
    mean = tp.Mean(train.corrupt).measure(model)
    method = tp.EAPIG(sparsity=sparsity, objective=tp.KL())
    circuit = method.find(model, task, ablation=mean)
    constant = tp.Constant(model, mean)
    options = {"steps": settings.steps, "rate": settings.rate, "seed": settings.seed}
    tp.fit_constant(constant, model, circuit, task.discovery, **options)
    found: dict[str, Any] = {"task": name, "sparsity": sparsity, "edges": len(circuit), **options}
    for split, batch in (("train", train), ("test", task.test)):
        for label, ablation in (("mean", mean), ("optimal", constant)):
            found[f"{split} {label}"] = measure(circuit.on(model, ablation=ablation), circuit.kept, batch).means()["kl"]
    nothing = torch.zeros_like(circuit.kept)
    found["test empty"] = measure(circuit.on(model, ablation=mean), nothing, task.test).means()["kl"]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """One line per circuit."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = [row[name] if isinstance(row[name], (str, int)) else f"{row[name]:.3f}" for name in COLUMNS]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
