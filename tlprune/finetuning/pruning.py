"""Lottery tickets, iterative and one-shot pruning of classifiers: score, cut, fine-tune, each stage on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.files import read_json, write_whole
from tlprune.finetuning.command import PROVENANCE, finetune, make, pretrained, prune, splits_of
from tlprune.finetuning.plan import FineTune
from tlprune.finetuning.pruning_plan import PruningPlan
from tlprune.learning.settings import described, differences
from tlprune.models.load import load
from tlprune.scores import Scores
from tlprune.selection.ranked import Selection
from tlprune.task import Task
from tlprune.tasks.labelled.classifying import classification

PLAN, ORIGIN, CIRCUIT = "plan.json", "origin.json", "circuit.safetensors"
START, DENSE = "start", "dense"


@runtime_checkable
class Scorer(Protocol):
    """A method that scores weights and says how they are cut, such as ``tp.Saliency``."""

    @property
    def selection(self) -> Selection: ...

    def score(self, model: Any, task: Task) -> Scores:
        """A score for each weight that may be cut."""
        ...


@dataclass(frozen=True)
class PruningRun:
    """A plan that was carried out.

    Attributes:
        plan: its settings.
        rows: the dense model, if there is one, then each round: density, weights removed, steps, figures on dev and
            test; plain data.
    """

    plan: PruningPlan
    rows: tuple[dict[str, Any], ...]

    @property
    def circuits(self) -> list[Circuit]:
        """What each round kept."""
        return [Circuit.load(self.plan.out / row["stage"] / CIRCUIT) for row in self.rows if row["density"] is not None]

    @property
    def model(self) -> Path:
        """Folder of the last model."""
        return self.plan.out / self.rows[-1]["stage"]


def prune_and_finetune(plan: PruningPlan, method: Scorer) -> PruningRun:
    """Train, score, cut, and train what is left, as the plan says; what ``plan.out`` holds is not done again.

    A round scores the model that was trained last, on the training examples, keeps ``round(density * weights)`` of
    those that the round before kept, and trains them from the start's weights or its own. The start, with its new
    classifier, is a copy on the disk that no training touches.

    Args:
        plan: settings.
        method: scores weights of blocks and pooler; its selection cuts.

    Raises:
        ValueError: the method has no scores or selection, or scores something else than such weights; ``plan.out``
            holds a run with other settings; data or model cannot be read.
        FloatingPointError: a loss is not finite.

    Source: Frankle and Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019), for ``begin="rewound"``; Han et al.,
    "Learning both Weights and Connections for Efficient Neural Networks" (NeurIPS 2015), for ``"continued"``.
    """
    if not isinstance(method, Scorer):
        raise ValueError(
            f"Pruning needs a method with score and a selection but {type(method).__name__} has not both. Give one "
            "such as tp.Saliency(...)."
        )
    make(plan.out)
    claim(plan.out / PLAN, plan.fixed() | {"method": described(method, 1)}, work="run")
    write_start(plan)
    rows, last = [], plan.out / START
    if plan.dense_epochs:
        stage = plan.stage(DENSE, model=last, epochs=plan.dense_epochs)
        rows.append(row_of(stage, done(stage, finetune), density=None))
        last = stage.out
    for number, density in enumerate(plan.densities, start=1):
        stage = _round(plan, method, number, last)
        rows.append(row_of(stage, done(stage, finetune if plan.epochs else prune), density=density))
        last = stage.out
    return PruningRun(plan, tuple(rows))


def _round(plan: PruningPlan, method: Scorer, number: int, last: Path) -> FineTune:
    """The settings of a round's training, for which the circuit is found, unless it is there."""
    name = f"round-{number}"
    circuit = plan.out / name / CIRCUIT
    begin = plan.out / START if plan.begin == "rewound" else last
    if not circuit.exists():
        make(circuit.parent)
        before = plan.out / f"round-{number - 1}" / CIRCUIT
        found = _found(plan, method, last, plan.densities[number - 1], before if number > 1 else None)
        (found if begin == last else rewound(found, lens_of(plan, begin))).save(circuit)
    return plan.stage(name, model=begin, epochs=plan.epochs, circuit=circuit)


def lens_of(plan: PruningPlan, folder: Path) -> Any:
    """The model of a stage, with hooks."""
    return load(str(folder), device="cpu" if plan.device == "cpu" else None)


def _found(plan: PruningPlan, method: Scorer, folder: Path, density: float, before: Path | None) -> Circuit:
    """A circuit of this density within that of the round before."""
    model = lens_of(plan, folder)
    scores = method.score(model, task_of(plan, model))
    return cut_within(scores, method.selection, density, None if before is None else Circuit.load(before))


def task_of(plan: PruningPlan, model: Any) -> Task:
    """The plan's examples, as methods see them."""
    return classification(
        model,
        plan.task,
        source=plan.data_dir,
        train=plan.train,
        test=plan.test,
        train_count=plan.train_count,
        validation_count=plan.dev_count,
        test_count=plan.test_count,
        max_length=plan.max_length,
        seed=plan.seed,
    )


def cut_within(scores: Scores, selection: Selection, density: float, circuit: Circuit | None) -> Circuit:
    """Keep a share of all weights, each of which an earlier circuit kept.

    Args:
        scores: of all weights, removed ones too.
        selection: takes the highest.
        density: the share, of all.
        circuit: the earlier one; ``None``: every weight may be kept.

    Raises:
        ValueError: it is of other sites, or the selection takes weights that are gone, as one by size does.

    Example:
        >>> from tlprune.selection.ranked import Top
        >>> from tlprune.sites import Matrix, Sites, Weights
        >>> scores = Scores(Sites((Weights((Matrix("W", (4,), (0,)),)),)), torch.tensor([4.0, 3.0, 2.0, 1.0]))
        >>> first = cut_within(scores, Top(), 0.75, scores.top(3))
        >>> cut_within(Scores(scores.sites, -scores.values), Top(), 0.5, first).kept.tolist()
        [False, True, True, False]
    """
    count = round(density * len(scores.sites))
    if circuit is None:
        return selection.select(scores, count)
    if circuit.sites != scores.sites:
        raise ValueError(
            f"Each round must score the same weights but this one scored {scores.sites} and the last {circuit.sites}. "
            "Give a method whose sites do not depend on the model's weights."
        )
    left = scores.values.masked_fill(~circuit.kept.to(scores.values.device), -torch.inf)
    found = selection.select(Scores(scores.sites, left, scores.provenance), count)
    if bool((found.kept & ~circuit.kept).any()):
        raise ValueError(
            f"A round must keep weights that are left but {selection} takes some that are gone, whose score is minus "
            "infinity. Give a selection that takes the highest scores, such as tp.Top(), of fewer weights."
        )
    return found


def rewound(circuit: Circuit, model: Any) -> Circuit:
    """The same places in the start, whose weights are others than those that were scored."""
    origin = {"operation": "rewound", "of": [dict(circuit.provenance)], "model": backend_of(model).fingerprint()}
    return circuit.like(circuit.kept, origin)


# ---- on the disk


def claim(path: Path, settings: Mapping[str, Any], *, work: str) -> None:
    """Write what decides the result of some work, or see that what is there is the same.

    Raises:
        ValueError: it is not, or not whole.
    """
    plain = json.loads(json.dumps(settings))
    if not path.exists():
        return write_whole(path, json.dumps(plain, indent=1) + "\n")
    if found := differences(read_json(path, f"{work}'s settings"), plain):
        raise ValueError(
            f"A {work} can go on with its own settings only, but that in {path.parent} has another {'; '.join(found)}. "
            "Give the same settings, or another directory with --out."
        )
    return None


def write_start(plan: PruningPlan) -> None:
    """The model that everything begins with, in float32; where it comes from is written last."""
    folder = plan.out / START
    if (folder / ORIGIN).exists():
        return
    stage = plan.stage(START, model=plan.model, epochs=1)
    splits = splits_of(stage)
    with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
        torch.manual_seed(plan.seed)
        model, tokenizer, new = pretrained(plan.model, splits["train"])
    make(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {"model": plan.model, "seed": plan.seed, "new": sorted(new)}
    write_whole(folder / ORIGIN, json.dumps(facts, indent=1) + "\n")


def done(stage: FineTune, work: Callable[[FineTune], dict[str, Any]]) -> dict[str, Any]:
    """What a stage found, now or before."""
    path = stage.out / PROVENANCE
    return read_json(path, "description of a fine-tuning") if path.exists() else work(stage)


def row_of(stage: FineTune, facts: dict[str, Any], *, density: float | None) -> dict[str, Any]:
    """A stage's density, weights removed, steps, and figures on dev and test."""
    own = facts["circuit"] or {"hash": None, "weights": None, "removed": 0, "zero": 0, "sparsity": 0.0}
    told = {"stage": stage.out.name, "density": density, "circuit": own["hash"]}
    told |= {name: own[name] for name in ("weights", "removed", "zero", "sparsity")}
    told |= {"steps": facts["steps"], "best_step": facts["best_step"]}
    figures = {f"{split}_{name}": value for split in ("dev", "test") for name, value in facts[split].items()}
    return told | figures
