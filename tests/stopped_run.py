"""A run with everything that a checkpoint must hold; as a script it can be killed in the middle of a step.

``python stopped_run.py FOLDER STEP``: kill the process with SIGKILL in the second term of that step; 0 for never.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from styles import fresh, random_batch
from torch import Tensor

from tlprune.gates import HardConcrete
from tlprune.learning.budgets import Lagrangian, Penalty
from tlprune.learning.fit import fit
from tlprune.learning.objectives import KL, Uniform
from tlprune.learning.optimiser import Optimiser
from tlprune.learning.records import Step
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.sites import edges
from tlprune.schedules import linear
from tlprune.task import Discovery

STEPS, EVERY = 40, 10
STREAMS = {
    "main": (random_batch(11, seed=1), random_batch(4, seed=2)),
    "other": (random_batch(7, length=5, seed=3), random_batch(3, length=5, seed=4)),
}
DISCOVERY = Discovery("random", STREAMS, {"name": "random", "fingerprint": "known"})
DEADLY_STEP = [0]


@dataclass(frozen=True, kw_only=True)
class Deadly(KL):
    """KL that kills its process when told to, with the first term's gradients already there."""

    def __call__(self, logits: Tensor, batch: Any, reference: Tensor) -> Tensor:
        if logits.requires_grad:
            DEADLY_STEP[0] -= 1
            if DEADLY_STEP[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(logits, batch, reference)


def masked_model() -> Masked:
    model = fresh("lnpre", torch.float32)
    return Masked(model, Masks(edges(model), HardConcrete(initial=1.0)))


def run(folder: Path, masked: Masked, **changes: Any) -> list[Step]:
    options: dict[str, Any] = {
        "objective": Uniform(on="other", run="complement") + 1.5 * Deadly(),
        "budget": Lagrangian(linear(0, 0.05, steps=10)) + Penalty(linear(0.1, 0.2, steps=10)),
        "optimiser": Optimiser(weight_decay=0.01, clip=1.0),
        "steps": STEPS, "batch_size": 4, "validate_every": 5, "patience": 50,
        "checkpoint": folder / "run.safetensors", "checkpoint_every": EVERY, "metrics": folder / "metrics.jsonl",
    }  # fmt: skip
    return fit(masked, **{"discovery": DISCOVERY, **options, **changes})


if __name__ == "__main__":
    torch.set_num_threads(1)
    DEADLY_STEP[0] = int(sys.argv[2])
    run(Path(sys.argv[1]), masked_model())
