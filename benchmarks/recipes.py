"""The short recipe against the paper's: hard test KL at equal numbers of edges, settings that neither was tuned on.

    python -m benchmarks.recipes --out runs.jsonl [--recipes short paper paper/10] [--data-dir ../shared]

Each run is one line of ``runs.jsonl``; runs that are already there are not repeated, so a long comparison can be
stopped and continued. ``paper`` takes its 3,000 steps, ``paper/10`` is the same schedule squeezed into 300, ``paper/10
tuned`` the best of twenty trials of it (``benchmarks.tuning``), and ``short`` is the default of
:class:`tlprune.EdgePruning`. Settings are named ``model/task@sparsity``; ``planted/NAME`` and ``tracr/NAME`` are models
with a true circuit, whose size is asked for, and the table says how many runs found just that.

The table pairs each recipe's runs with the short recipe's of the same setting and seed, and gives the mean difference
of hard test KL in nats with a 95% interval (Student's t over seeds).
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import tyro
from scipy import stats

import tlprune as tp
from benchmarks import stories
from tlprune.learning.metrics import measure
from tlprune.methods.edge_pruning import RECIPES as BUILT_IN

REPORTED = (
    "testbed/ioi@0.98",
    "testbed/gendered-pronoun@0.98",
    "testbed/greater-than@0.98",
    "stories260K/fold 1@0.9",
)
RECIPES: dict[str, dict[str, Any]] = {
    "short": {},
    "paper": {"recipe": "paper"},
    "paper/10": {"recipe": "paper", "steps": 300},
    "paper/10 tuned": {"recipe": "paper/10 tuned"},
}
# The best of twenty trials of benchmarks.tuning.
BUILT_IN["paper/10 tuned"] = replace(
    BUILT_IN["paper"], steps=300, rate=0.774, multiplier_rate=0.426, weight_decay=0.1, warmup=0.0, rise=0.5
)


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        out: one JSON object per run; continued where it exists.
        data_dir: holds models/stories260K.
        settings: ``model/task@sparsity`` each.
        recipes: names of RECIPES.
        seeds: of the method.
        threads: for torch.
        summary: only print the table of what is there.
    """

    out: Path
    data_dir: Path = Path(os.environ.get("TLPRUNE_DATA", "../shared"))
    settings: tuple[str, ...] = REPORTED
    recipes: tuple[str, ...] = tuple(RECIPES)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    threads: int = 1
    summary: bool = False


def main() -> None:
    compare(tyro.cli(Settings))


def compare(settings: Settings) -> None:
    """Run what is missing and print the table."""
    torch.set_num_threads(settings.threads)
    if not settings.summary:
        for run in _missing(settings):
            with settings.out.open("a") as file:
                file.write(json.dumps(result(run, settings.data_dir)) + "\n")
    print(table(_read(settings.out)))


def _missing(settings: Settings) -> Iterator[dict[str, Any]]:
    done = {_key(row) for row in _read(settings.out)}
    for seed in settings.seeds:
        for setting in settings.settings:
            for recipe in settings.recipes:
                run = {"setting": setting, "recipe": recipe, "seed": seed}
                if _key(run) not in done:
                    yield run


def _key(run: dict[str, Any]) -> tuple[str, str, int]:
    return run["setting"], run["recipe"], run["seed"]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass(frozen=True)
class Subject:
    """A model, its task, how many edges to find, what replaces the others, and the true circuit where it is known."""

    model: Any
    task: tp.Task
    size: dict[str, Any]
    ablation: Any = None  # the default of all methods
    true: tp.Circuit | None = None


@cache
def subject(setting: str, data_dir: Path) -> Subject:
    """What a setting is about."""
    path, _, sparsity = setting.partition("@")
    name, _, task = path.partition("/")
    if name == "planted":
        planted = tp.planted(task)
        return Subject(planted.model, planted.task, {"edges": len(planted.circuit)}, true=planted.circuit)
    if name == "tracr":
        one = tp.tracr(task)
        return Subject(one.model, one.task, {"edges": len(one.behavioural)}, tp.Zero(), one.behavioural)
    model, size = tp.load("testbed" if name == "testbed" else data_dir / "models" / name), {"sparsity": float(sparsity)}
    if not task.startswith("fold"):
        return Subject(model, tp.tasks.TASKS[task](model), size)
    folds = stories.tasks(model, stories.Settings(data_dir=data_dir))
    return Subject(model, next(fold for fold in folds if fold.name == task), size)


def result(run: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    """Find a circuit and measure it, and the empty one, on test examples."""
    about = subject(run["setting"], data_dir)
    model, task = about.model, about.task
    started = time.process_time()
    recipe = {"method": tp.EdgePruning, **RECIPES[run["recipe"]]}
    circuit = recipe.pop("method")(**about.size, seed=run["seed"], **recipe).find(model, task, ablation=about.ablation)
    seconds = time.process_time() - started
    masked = tp.Masked(model, circuit, about.ablation)
    empty = measure(masked, torch.zeros_like(circuit.kept), task.test).means()
    train = measure(masked, circuit.kept, task.discovery.train()).means()["kl"]
    figures = measure(masked, circuit.kept, task.test).means()
    counts = {"edges": len(circuit), "effective": circuit.n_effective, "cpu_seconds": round(seconds, 1)}
    exact = {} if about.true is None else {"exact": circuit == about.true}
    return run | counts | figures | exact | {"train_kl": train, "empty_kl": empty["kl"]}


def table(rows: list[dict[str, Any]]) -> str:
    """One line per setting and recipe."""
    lines = ["| setting | recipe | seeds | exact | KL (nats) | of empty | less short (95% interval) | CPU seconds |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    short = {(row["setting"], row["seed"]): row["kl"] for row in rows if row["recipe"] == "short"}
    for setting, recipe in dict.fromkeys((row["setting"], row["recipe"]) for row in rows):
        same = [row for row in rows if (row["setting"], row["recipe"]) == (setting, recipe)]
        mean = statistics.fmean(row["kl"] for row in same)
        part = mean / statistics.fmean(row["empty_kl"] for row in same)
        paired = [row["kl"] - short[setting, row["seed"]] for row in same if (setting, row["seed"]) in short]
        seconds = statistics.fmean(row["cpu_seconds"] for row in same)
        cells = [setting, recipe, f"{len(same)}", _exact(same), f"{mean:.4f}", f"{part:.2%}", _interval(paired)]
        lines.append(f"| {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def _exact(rows: list[dict[str, Any]]) -> str:
    known = [row["exact"] for row in rows if "exact" in row]
    return str(sum(known)) if known else ""


def _interval(differences: list[float]) -> str:
    if len(differences) < 2:
        return ""
    mean, error = statistics.fmean(differences), stats.sem(differences)
    half = float(stats.t.ppf(0.975, len(differences) - 1) * error)
    return f"{mean:+.4f} ({mean - half:+.4f}, {mean + half:+.4f})"


if __name__ == "__main__":
    main()
