"""``tlprune skill mask``: accuracy while skill neurons, or as many random ones, are disturbed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from tlprune.outcome import Outcome
from tlprune.skills.commands.study import SkillStudy
from tlprune.skills.perturbation import FRACTIONS, perturbation
from tlprune.skills.perturbing import Perturbation
from tlprune.studies.commands.writing import write


@dataclass(frozen=True)
class Mask:
    """Disturb more and more of a skill's neurons, and as many random ones, and measure accuracy on the test examples.

    Attributes:
        folder: the directory that tlprune skill tune wrote and tlprune skill probe has been run on.
        fractions: parts of each layer's neurons.
        ablation: what becomes of them: gaussian noise, zero, or their mean.
        layers: those whose neurons are disturbed; all by default.
        random_trials: draws of random neurons for each prompt.
        seed: of the draws and the noise.
        out: directory for perturbation.json and perturbation.html; by default the same.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    folder: Positional[Path]
    fractions: tuple[float, ...] = FRACTIONS
    ablation: Perturbation = "gaussian"
    layers: tuple[int, ...] | None = None
    random_trials: int = 5
    seed: int = 0
    out: Path | None = None
    device: str | None = None


def mask(settings: Mask) -> Outcome:
    """Disturb, measure and write; what to say."""
    study = SkillStudy.open(settings.folder, device=settings.device)
    curve = perturbation(
        study.model,
        study.task,
        study.scores,
        prompts=list(study.prompts.values()),
        fractions=settings.fractions,
        ablation=settings.ablation,
        layers=settings.layers,
        random_trials=settings.random_trials,
        seed=settings.seed,
    )
    out = settings.out or settings.folder
    wrote = write(out, "perturbation", curve, title=f"Skill neurons of {study.task.name}")
    return Outcome(f"{curve}\n\n{wrote}", curve.as_dict())
