"""What prune and fine-tune does: how many rounds there are, where each begins, and how it is trained."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tlprune.finetuning.plan import FineTune
from tlprune.schedules import exponential

Begin = Literal["rewound", "continued"]
_FREE = ("out", "data_dir", "checkpoint_every", "device")
_SHARED = (
    *("task", "data_dir", "train", "test", "train_count", "dev_count", "test_count", "seed", "rate", "betas"),
    *("batch_size", "max_length", "evaluations", "patience", "checkpoint_every", "precision", "device"),
)


@dataclass(frozen=True)
class PruningPlan:
    """Prune a classifier by a method's scores and fine-tune what is left, in one round or several.

    A lottery ticket is the default: dense training, scores of the trained model, back to the start, masked training.
    ``dense_epochs=0`` scores the start instead; ``epochs=0`` trains nothing behind the cut; several ``densities``
    prune step by step. Everything is written to ``out``, and a plan that was stopped goes on from there.

    Attributes:
        model: a local Hugging Face directory or a name on the hub, with a classifier or without.
        out: folder of the start, the dense model, and a folder for each round.
        densities: share of the weights that is kept after each round, falling.
        dense_epochs: passes before the first scores; 0: the start is scored.
        epochs: passes in each round, behind the cut; 0: none.
        begin: ``"rewound"``: each round is trained from the start's weights, bit for bit; ``"continued"``: from those
            that were scored.
        task: as of :class:`~tlprune.finetuning.plan.FineTune`; so are all others.
        data_dir: folder of its files.
        train: the part to train on.
        test: the part for the figures at the end of each round.
        train_count: training examples; all by default. The method is given the same.
        dev_count: examples held out, by which the best step is chosen.
        test_count: examples of the test part; all by default.
        seed: of the draws, a new classifier's weights, the order of examples and dropout.
        rate: of Adam, the same in all steps.
        betas: its decays.
        batch_size: examples per step.
        max_length: tokens per prompt.
        evaluations: measurements on dev per epoch.
        patience: measurements without a better one after which a training stops.
        checkpoint_every: steps between checkpoints.
        precision: no or bf16.
        device: cpu, or whatever accelerate finds.

    Raises:
        ValueError: densities do not fall within (0, 1], or a number of epochs is negative.

    Source: Frankle and Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019); defaults of rate, betas, batch and epochs
    are those of the DeepCuts code, which has no warm-up, weight decay or clipping.

    Example:
        >>> plan = PruningPlan("bert", Path("out"), densities=falling(0.125, rounds=3), begin="continued")
        >>> [round(density, 3) for density in plan.densities]
        [0.5, 0.25, 0.125]
    """

    model: str
    out: Path
    densities: tuple[float, ...] = (0.361,)
    dense_epochs: int = 5
    epochs: int = 12
    begin: Begin = "rewound"
    task: str = "sst2"
    data_dir: Path | None = None
    train: str = "train"
    test: str = "dev"
    train_count: int | None = None
    dev_count: int = 500
    test_count: int | None = None
    seed: int = 0
    rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.99)
    batch_size: int = 16
    max_length: int = 128
    evaluations: int = 2
    patience: int | None = None
    checkpoint_every: int = 200
    precision: Literal["no", "bf16"] = "no"
    device: Literal["cpu", "found"] = "found"

    def __post_init__(self) -> None:
        falls = all(one > other for one, other in itertools.pairwise((*self.densities, 0.0)))
        if not self.densities or not falls or self.densities[0] > 1:
            raise ValueError(
                f"densities must fall from at most 1 and stay above 0 but are {self.densities}. Give one share for "
                "each round, such as (0.5, 0.25), or falling(0.25, rounds=2)."
            )
        if min(self.dense_epochs, self.epochs) < 0:
            raise ValueError(
                f"Numbers of epochs must be at least 0 but are {self.dense_epochs} dense and {self.epochs} pruned. "
                "Give 0 for no training."
            )
        if self.begin not in ("rewound", "continued"):
            raise ValueError(f"begin must be 'rewound' or 'continued' but is {self.begin!r}. Choose one of these.")

    def fixed(self) -> dict[str, Any]:
        """Settings that decide the result, as plain data."""
        found = {name: value for name, value in dataclasses.asdict(self).items() if name not in _FREE}
        return found | {"densities": list(self.densities), "betas": list(self.betas)}

    def stage(self, name: str, *, model: str | Path, epochs: int, circuit: Path | None = None) -> FineTune:
        """The settings of one training: plain Adam at one rate.

        Args:
            name: of its folder within ``out``.
            model: what it begins with.
            epochs: passes; a stage without any still needs settings, and has those of one pass.
            circuit: file of what is kept.
        """
        shared = {name: getattr(self, name) for name in _SHARED}
        plain: dict[str, Any] = {"warmup": 0.0, "decay": "none", "weight_decay": 0.0, "clip": None}
        return FineTune(
            model=str(model), out=self.out / name, epochs=max(1, epochs), circuit=circuit, **shared, **plain
        )


def falling(density: float, *, rounds: int) -> tuple[float, ...]:
    """Densities of rounds that each remove the same share of what is left, down to the last.

    Args:
        density: kept after the last round, in (0, 1).
        rounds: how many.

    Raises:
        ValueError: the density is not within (0, 1), or there is no round.

    Example:
        >>> falling(0.25, rounds=2)
        (0.5, 0.25)
    """
    if not 0 < density < 1 or rounds < 1:
        raise ValueError(
            f"Rounds need a last density between 0 and 1 but it is {density}, in {rounds} rounds. Give a share such as "
            "0.1 and at least one round."
        )
    schedule = exponential(1.0, density, steps=rounds)
    return (*(schedule(number) for number in range(1, rounds)), density)
