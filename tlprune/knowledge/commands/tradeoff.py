"""``tlprune knowledge tradeoff``: size against forgetting, over prices."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from tlprune.knowledge.commands.opened import opened
from tlprune.knowledge.tradeoff import knowledge_tradeoff
from tlprune.methods.provenance import method_from
from tlprune.outcome import Outcome
from tlprune.studies.commands.writing import write


@dataclass(frozen=True)
class Trade:
    """Find a subnetwork under each of several prices, all else as in a folder, and measure them. Run again to go on.

    Attributes:
        folder: the directory that tlprune knowledge find wrote.
        prices: of a subnetwork of all weights instead of none, in nats, in the first half of the steps.
        seed: of the method; by default that of the folder's first subnetwork.
        held_out: test; or validation, while a price is chosen.
        out: directory for tradeoff.json and tradeoff.html; by default the same.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    folder: Positional[Path]
    prices: tuple[float, ...]
    seed: int | None = None
    held_out: Literal["test", "validation"] = "test"
    out: Path | None = None
    device: str | None = None


def trade(settings: Trade) -> Outcome:
    """Find, measure and write; what to say."""
    study, found = opened(settings.folder, device=settings.device)
    seed = next(iter(found)) if settings.seed is None else settings.seed
    method = replace(method_from(next(iter(found.values())).provenance), seed=seed)
    curve = knowledge_tradeoff(
        study.model,
        study.task,
        method,
        prices=settings.prices,
        out=settings.folder / "prices" / f"seed-{seed}",
        held_out=settings.held_out,
        tell=print,
        progress=sys.stderr.isatty(),
    )
    out = settings.out or settings.folder
    wrote = write(out, "tradeoff", curve, title=f"Size against forgetting in {settings.folder}")
    return Outcome(f"{curve}\n\n{wrote}", curve.as_dict())
