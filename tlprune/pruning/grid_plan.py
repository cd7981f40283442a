"""What a grid of one-shot pruning does: strategies, sizes, tasks, seeds, and how each is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from tlprune.finetuning.pruning_plan import Begin, PruningPlan
from tlprune.methods.saliency import Saliency
from tlprune.methods.strategies import STRATEGIES, saliency_strategy
from tlprune.tasks.labelled.data import described

DENSITIES = (0.361, 0.147, 0.0865, 0.041)  # DeepCuts' compression ratios 2, 3, 3.5 and 4 of BERT-base
# What a grid may be given more or less of, and what decides no figure.
_FREE = ("out", "tasks", "strategies", "ratios", "densities", "seeds", "data_dir", "models")
_FREE += ("checkpoint_every", "device")
_SHARED = ("dense_epochs", "epochs", "begin", "train", "test", "train_count", "dev_count", "test_count", "rate")
_SHARED += ("batch_size", "max_length", "evaluations", "patience", "checkpoint_every", "precision", "device")


@dataclass(frozen=True)
class Size:
    """How much is kept: a density, or a compression ratio.

    Attributes:
        kind: which.
        value: its number.

    Example:
        >>> Size("compression", 2.0).name, Size("density", 0.361).name
        ('compression-2.0', 'density-0.361')
    """

    kind: Literal["density", "compression"]
    value: float

    @property
    def name(self) -> str:
        """As in names of folders."""
        return f"{self.kind}-{self.value}"


@dataclass(frozen=True)
class Cell:
    """One model of a grid.

    Attributes:
        task: name of the data.
        seed: of its trainings and of its scores.
        strategy: what scores the weights.
        size: how many are kept.
    """

    task: str
    seed: int
    strategy: str
    size: Size

    @property
    def names(self) -> dict[str, Any]:
        """What its row begins with."""
        return {"task": self.task, "seed": self.seed, "strategy": self.strategy, "target": self.size.name}


@dataclass(frozen=True)
class SaliencyGrid:
    """Prune a classifier by many strategies to many sizes, on several tasks and under several seeds, in one table.

    The weights of a task and seed are scored in one pass over training batches for all strategies and sizes. Each cell
    is cut and measured, and fine-tuned if there are epochs. Give the same command again to go on after a stop, or with
    more strategies, sizes, tasks or seeds; a cell that failed is a row with its error, and is tried again.

    Attributes:
        model: a local Hugging Face directory or a name on the hub: a classifier, or a trunk with dense epochs.
        out: directory of everything.
        tasks: such as sst2, cola and stsb.
        strategies: names of ShrinkBench and DeepCuts, such as LayerGradCAMShift; all by default.
        ratios: all parameters of the model over those that are left, at least 1.
        densities: or shares of the prunable weights that are kept; by default 0.361 0.147 0.0865 0.041.
        seeds: each one of the whole: dense training, order and noise of scores, training of what is left.
        dense_epochs: passes over the training examples before weights are scored; 0 scores the model as it is.
        epochs: passes behind the cut; 0 only measures.
        begin: continued: what is left is trained from the weights that were scored; rewound: from those before the
            dense training, as lottery tickets are.
        data_dir: folder of a task's files, or of a folder for each task; by default TLPRUNE_DATA, else the hub.
        train: the part to train and score on.
        test: the part for the figures.
        train_count: training examples; all by default.
        dev_count: examples held out of them, by which the best step is chosen.
        test_count: examples of the test part; all by default.
        batches: training batches that are scored; by default 1,000, under noise 100.
        score_batch_size: examples in each of them.
        rate: of Adam, the same in all steps.
        batch_size: examples per step.
        max_length: tokens per prompt; also those of the prompt that multiplications are counted for.
        evaluations: measurements on dev per epoch.
        patience: measurements without a better one after which a training stops.
        checkpoint_every: steps between checkpoints.
        models: dropped: of a cell its circuit and figures stay; kept: its model too.
        precision: no or bf16, of trainings.
        device: cpu, or whatever accelerate finds.

    Raises:
        ValueError: a strategy or task is not known, a size out of range or given in both ways, an axis is empty or
            says something twice, or tickets are to be rewound where nothing is trained.
    """

    model: str
    out: Path
    tasks: tuple[str, ...] = ("sst2",)
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    ratios: tuple[float, ...] = ()
    densities: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    dense_epochs: int = 0
    epochs: int = 0
    begin: Begin = "continued"
    data_dir: Path | None = None
    train: str = "train"
    test: str = "dev"
    train_count: int | None = None
    dev_count: int = 500
    test_count: int | None = None
    batches: int | None = None
    score_batch_size: int = 16
    rate: float = 1e-5
    batch_size: int = 16
    max_length: int = 128
    evaluations: int = 2
    patience: int | None = None
    checkpoint_every: int = 200
    models: Literal["dropped", "kept"] = "dropped"
    precision: Literal["no", "bf16"] = "no"
    device: Literal["cpu", "found"] = "found"

    def __post_init__(self) -> None:
        if self.ratios and self.densities:
            raise ValueError(
                f"Sizes are given by ratios or by densities but both are, {self.ratios} and {self.densities}. Leave "
                "one out."
            )
        for name in ("tasks", "strategies", "seeds", "sizes"):
            values = getattr(self, name)
            if not values or len({*values}) < len(values):
                raise ValueError(f"{name} must be given, each once, but are {values}. Name each that is wanted once.")
        for task in self.tasks:
            described(task)
        for strategy, size in product(self.strategies, self.sizes):
            self.method(strategy, size=size)
        if self.begin == "rewound" and not (self.dense_epochs and self.epochs):
            raise ValueError(
                "Lottery tickets are trained before the scores and after the rewinding, but dense_epochs is "
                f"{self.dense_epochs} and epochs {self.epochs}. Give both, such as 5 and 12, or begin continued."
            )
        self.plan(self.tasks[0], self.seeds[0])

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Those asked for."""
        if self.ratios:
            return tuple(Size("compression", value) for value in self.ratios)
        return tuple(Size("density", value) for value in self.densities or DENSITIES)

    def method(self, strategy: str, *, size: Size | None = None, seed: int = 0) -> Saliency:
        """The strategy under these settings."""
        settings: dict[str, Any] = {} if size is None else {size.kind: size.value}
        return saliency_strategy(
            strategy, batches=self.batches, batch_size=self.score_batch_size, seed=seed, **settings
        )

    def cells(self, task: str, seed: int) -> Iterator[Cell]:
        """Of one task and seed."""
        for strategy, size in product(self.strategies, self.sizes):
            yield Cell(task, seed, strategy, size)

    def plan(self, task: str, seed: int) -> PruningPlan:
        """Trainings of a task and seed, in a folder of their own."""
        shared = {name: getattr(self, name) for name in _SHARED}
        out = self.out / task / f"seed-{seed}"
        return PruningPlan(self.model, out, task=task, seed=seed, data_dir=self._data(task), **shared)

    def _data(self, task: str) -> Path | None:
        own = None if self.data_dir is None else self.data_dir / described(task).name
        return own if own is not None and own.is_dir() else self.data_dir

    def fixed(self) -> dict[str, Any]:
        """Settings that decide what is in a cell, as plain data."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _FREE}
