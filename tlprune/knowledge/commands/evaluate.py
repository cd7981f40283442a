"""``tlprune knowledge evaluate``: what is forgotten without the subnetworks of a folder and what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from tlprune.circuit import Circuit
from tlprune.knowledge.baselines import knowledge_baseline
from tlprune.knowledge.commands.opened import opened
from tlprune.knowledge.figures import KnowledgeFigures, knowledge_figures
from tlprune.knowledge.resizing import SCALES, Sensitivity, knowledge_sensitivity
from tlprune.knowledge.seeds import KnowledgeSeeds
from tlprune.outcome import Outcome
from tlprune.studies.commands.writing import write


@dataclass(frozen=True)
class Evaluate:
    """Measure subnetworks beside baselines of equal size, what their seeds share, and one of them at other sizes.

    Attributes:
        folder: the directory that tlprune knowledge find wrote.
        baselines: random, rows and magnitude: as many weights of each matrix, for each seed.
        scales: sizes that the first seed's subnetwork is shrunk and grown to at random, as multiples of its own.
        expressed: also run each alone, without the other masked weights.
        held_out: test; or validation, while settings are chosen.
        seed: of baselines and sizes.
        out: directory for evaluation.json and evaluation.html; by default the same.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    folder: Positional[Path]
    baselines: tuple[str, ...] = ("random", "rows", "magnitude")
    scales: tuple[float, ...] = SCALES
    expressed: bool = False
    held_out: Literal["test", "validation"] = "test"
    seed: int = 0
    out: Path | None = None
    device: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """All that is said of a folder; printing it gives tables.

    Attributes:
        figures: of the subnetworks, baselines, and what seeds share.
        sensitivity: of the first seed's subnetwork.
        seeds: what they share; ``None`` of a single one.
    """

    figures: KnowledgeFigures
    sensitivity: Sensitivity
    seeds: KnowledgeSeeds | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        shared = None if self.seeds is None else self.seeds.as_dict()
        return {"figures": self.figures.as_dict(), "seeds": shared, "sensitivity": self.sensitivity.as_dict()}

    def __str__(self) -> str:
        parts = [self.figures, *([] if self.seeds is None else [self.seeds]), self.sensitivity]
        return "\n\n".join(map(str, parts))

    def plot(self) -> Any:
        """Bars of plotly: see :meth:`KnowledgeFigures.plot`."""
        return self.figures.plot()


def evaluate(settings: Evaluate) -> Outcome:
    """Measure and write; what to say."""
    study, found = opened(settings.folder, device=settings.device)
    circuits = {f"seed {seed}": circuit for seed, circuit in found.items()}
    seeds = KnowledgeSeeds(found) if len(found) > 1 else None
    kinds = ["remaining", *(["expressed"] if settings.expressed else [])]
    beside = {**_baselines(study.model, circuits, settings), **({} if seeds is None else seeds.combined)}
    figures = knowledge_figures(
        study.model, {**circuits, **beside}, study.task, kinds=kinds, held_out=settings.held_out, seed=settings.seed
    )
    first = next(iter(circuits.values()))
    sensitivity = knowledge_sensitivity(
        study.model, first, study.task, scales=settings.scales, held_out=settings.held_out, seed=settings.seed
    )
    whole = Evaluation(figures, sensitivity, seeds)
    out, title = settings.out or settings.folder, f"Without the subnetworks of {settings.folder}"
    more = [figures.plot_templates, sensitivity.plot]
    wrote = write(out, "evaluation", whole, title=title, more=more)
    return Outcome(f"{whole}\n\n{wrote}", whole.as_dict())


def _baselines(model: Any, circuits: Mapping[str, Circuit], settings: Evaluate) -> dict[str, Circuit]:
    """Each kind for each seed, drawn apart."""
    return {
        f"{kind} like {name}": knowledge_baseline(model, circuit, kind=kind, seed=settings.seed + place)
        for kind in settings.baselines
        for place, (name, circuit) in enumerate(circuits.items())
    }
