"""The paper's recipe in 300 steps, tuned: random trials of its rates on development settings.

    python -m benchmarks.tuning --out trials.jsonl [--trials 20] [--data-dir ../shared]

What defines the recipe stays: gates that start at 10, sparsity of the sampled mask, a linear path, decay and clipping
of gradients. A tenth of the steps needs larger ones, so the rates of masks and multipliers, the decay, the warm-up and
the rise of the target are drawn by a seed; trial 0 is the rescaled recipe as it is. The score of a trial is its mean
share of the empty circuit's KL over the development settings, those that the short recipe was tuned on. Trials that are
in the file already are not repeated; the best goes into ``benchmarks.recipes`` by hand.
"""

from __future__ import annotations

import json
import os
import random
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks import recipes
from tlprune.methods.edge_pruning import RECIPES
from tlprune.methods.recipe import Recipe

DEVELOPMENT = ("stories260K/gendered-pronoun@0.9", "testbed/induction@0.96")
STEPS = 300


@dataclass(frozen=True)
class Settings:
    """What to try.

    Attributes:
        out: one JSON object per trial and setting; continued where it exists.
        data_dir: holds models/stories260K.
        trials: how many recipes to draw.
        settings: ``model/task@sparsity`` each.
        threads: for torch.
    """

    out: Path
    data_dir: Path = Path(os.environ.get("TLPRUNE_DATA", "../shared"))
    trials: int = 20
    settings: tuple[str, ...] = DEVELOPMENT
    threads: int = 1


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(settings.threads)
    rows = [json.loads(line) for line in settings.out.read_text().splitlines()] if settings.out.exists() else []
    for number in range(settings.trials):
        for setting in settings.settings:
            if not any((row["trial"], row["setting"]) == (number, setting) for row in rows):
                rows.append(tried(number, setting, settings.data_dir))
                with settings.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


def drawn(number: int) -> Recipe:
    """The recipe of a trial."""
    paper = replace(RECIPES["paper"], steps=STEPS)
    if number == 0:
        return paper
    chance = random.Random(number)
    return replace(
        paper,
        rate=round(0.8 * 10 ** chance.uniform(-0.5, 1), 3),
        multiplier_rate=round(0.8 * 10 ** chance.uniform(-0.5, 1), 3),
        weight_decay=chance.choice([0.01, 0.03, 0.1]),
        warmup=chance.choice([0.0, 200 / 3000]),
        rise=chance.choice([1 / 2, 2 / 3, 5 / 6]),
    )


def tried(number: int, setting: str, data_dir: Path) -> dict[str, Any]:
    """One trial on one setting, with the first seed."""
    RECIPES["trial"] = drawn(number)
    recipes.RECIPES["trial"] = {"recipe": "trial"}
    row = recipes.result({"setting": setting, "recipe": "trial", "seed": 0}, data_dir)
    return {"trial": number, **row, "drawn": asdict(drawn(number))}


def table(rows: list[dict[str, Any]]) -> str:
    """Trials from the best to the worst."""
    trials = sorted({row["trial"] for row in rows}, key=lambda number: _score(rows, number))
    lines = ["| trial | of empty | " + " | ".join(DRAWN) + " |", "|---|---|" + "---|" * len(DRAWN)]
    for number in trials:
        recipe = asdict(drawn(number))
        lines.append(
            f"| {number} | {_score(rows, number):.2%} | " + " | ".join(f"{recipe[n]:.3g}" for n in DRAWN) + " |"
        )
    return "\n".join(lines)


DRAWN = ("rate", "multiplier_rate", "weight_decay", "warmup", "rise")


def _score(rows: list[dict[str, Any]], number: int) -> float:
    return statistics.fmean(row["kl"] / row["empty_kl"] for row in rows if row["trial"] == number)


if __name__ == "__main__":
    main()
