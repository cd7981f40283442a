"""What each part of the short recipe is worth: one change at a time, on the settings that it was tuned on.

    python -m benchmarks.variants --out runs.jsonl [--recipes short "8 samples"] [--data-dir ../shared]

Each run is one line of ``runs.jsonl``; runs that are already there are not repeated. The table is that of
``benchmarks.recipes``: hard test KL at equal numbers of edges, and the difference from the short recipe of the same
setting and seed. ``tracr/sort`` needs ``pip install 'tlprune[tracr]'``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tyro

import tlprune as tp
from benchmarks import recipes
from benchmarks.tuning import DEVELOPMENT
from tlprune.learning.objectives import Sum
from tlprune.masking.masks import Masks
from tlprune.methods.edge_pruning import RECIPES

SHORT = RECIPES["short"]
TENFOLD = Sum(((10.0, tp.KL()),))


@dataclass(frozen=True)
class Cooling(tp.HardConcrete):
    """A hard concrete gate whose temperature falls geometrically, from ``begin`` to ``end`` after ``over`` steps."""

    begin: float = 1.0
    end: float = 1 / 3
    over: int = 200

    def at(self, step: int) -> Cooling:
        """The gate of a step."""
        return replace(self, temperature=self.begin * (self.end / self.begin) ** min(1.0, step / self.over))


@dataclass(frozen=True)
class Cooled(tp.EdgePruning):
    """Edge Pruning with a temperature that falls from 1 to 1/3 while the target rises."""

    def masks(self, *arguments: Any, **options: Any) -> Masks:
        masks = super().masks(*arguments, **options)
        masks.gate = Cooling(initial=masks.gate.initial).at(0)
        return masks


CHANGES: dict[str, dict[str, Any]] = {
    "initial 0": {"initial": 0.0},
    "initial 4": {"initial": 4.0},
    "linear path": {"path": "linear"},
    "linear path, gap of sparsities": {"path": "linear", "gap": "sparsity"},
    "linear path, sampled sparsity": {"path": "linear", "gap": "sparsity", "measure": "sampled"},
    "decay .01": {"weight_decay": 0.01},
    "clip 1": {"clip": 1.0},
    "warm-up 1/15": {"warmup": 1 / 15},
    "rate .05": {"rate": 0.05},
    "rate .2": {"rate": 0.2},
    "multiplier rate .03": {"multiplier_rate": 0.03},
    "multiplier rate .3": {"multiplier_rate": 0.3},
    "rise over 1/2": {"rise": 1 / 2},
    "rise over 5/6": {"rise": 5 / 6},
    "1 sample": {"samples": 1},
    "8 samples": {"samples": 8},
}
for name, changes in CHANGES.items():
    RECIPES[name] = replace(SHORT, **changes)
VARIANTS: dict[str, dict[str, Any]] = {
    "short": {},
    **{name: {"recipe": name} for name in CHANGES},
    "batch 64": {"recipe": "8 samples", "batch_size": 64},
    "KL x 10": {"objective": TENFOLD},
    "from eap-ig": {"warm_start": tp.EAPIG()},
    "from eap-ig, spread 2": {"warm_start": tp.EAPIG(), "spread": 2.0},
    "from eap-ig, KL x 10": {"warm_start": tp.EAPIG(), "objective": TENFOLD},
    "from eap-ig, 150 steps": {"warm_start": tp.EAPIG(), "steps": 150},
    "cooled": {"method": Cooled},
    "150 steps": {"steps": 150},
    "150 steps, batch 64": {"recipe": "8 samples", "batch_size": 64, "steps": 150},
    "600 steps": {"steps": 600},
    "paper": {"recipe": "paper"},
}
recipes.RECIPES.update(VARIANTS)


@dataclass(frozen=True)
class Settings(recipes.Settings):
    """What to run, as of ``benchmarks.recipes``: other settings, and variants of the short recipe."""

    settings: tuple[str, ...] = (*DEVELOPMENT, "tracr/sort")
    recipes: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[int, ...] = (0, 1)


if __name__ == "__main__":
    recipes.compare(tyro.cli(Settings))
