"""``tlprune skill prune``: the model with its skill neurons alone, smaller and faster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from tlprune.finetuning.prompt_tuning import PromptTuning
from tlprune.outcome import Outcome
from tlprune.skills.commands.study import SkillStudy
from tlprune.skills.pruning import skill_pruned


@dataclass(frozen=True)
class Prune:
    """Leave a model its skill neurons, fold the means of the others into biases, and cut them out.

    Attributes:
        folder: the directory that tlprune skill tune wrote and tlprune skill probe has been run on.
        keep: part of a layer's neurons that stays.
        layers: those that are pruned; by default all but the first quarter.
        retune: go on tuning the prompts on the pruned model, as the folder's were tuned.
        retune_steps: how many steps of tuning at most; by default as many as the folder's prompts had.
        rounds: timed runs of the whole and the small model, in turn; 0 for none.
        out: directory for the small model and the figures; by default pruned in the same.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    folder: Positional[Path]
    keep: float = 0.02
    layers: tuple[int, ...] | None = None
    retune: bool = False
    retune_steps: int | None = None
    rounds: int = 20
    out: Path | None = None
    device: str | None = None


def prune(settings: Prune) -> Outcome:
    """Prune, measure and write; what to say."""
    study = SkillStudy.open(settings.folder, device=settings.device)
    out = settings.out or settings.folder / "pruned"
    if (out / "model").exists():
        raise ValueError(f"{out} holds a pruned model already. Choose another directory with --out, or remove it.")
    found = skill_pruned(
        study.model,
        study.task,
        study.scores,
        prompts=list(study.prompts.values()),
        keep=settings.keep,
        layers=settings.layers,
        tuning=_tuning(study, settings.retune_steps) if settings.retune else None,
        rounds=settings.rounds,
    )
    found.save(out)
    return Outcome(f"{found}\n\nwrote the small model, its prompts and figures to {out}/", found.as_dict())


def _tuning(study: SkillStudy, steps: int | None) -> PromptTuning:
    """As the folder's prompts were tuned; JSON has lists for tuples."""
    told: dict[str, Any] = {**study.told["tuning"], "betas": tuple(study.told["tuning"]["betas"])}
    if steps is not None:
        told["steps"] = steps
    return PromptTuning(**told)
