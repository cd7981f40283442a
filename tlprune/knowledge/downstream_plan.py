"""What is fine-tuned without a subnetwork, and how."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tlprune.finetuning.adapting import Return, Trained
from tlprune.finetuning.plan import FineTune

Way = Literal["likelihood", "head", "lora", "full"]
Variant = Literal["whole", "without", "random"]
VARIANTS: tuple[Variant, ...] = ("whole", "without", "random")
RATES: dict[Trained, float] = {"head": 1e-3, "lora": 2e-4, "full": 2e-5}
_FREE = ("ways", "seeds", "checkpoint_every", "device")


@dataclass(frozen=True, kw_only=True)
class DownstreamPlan:
    """How a model is fine-tuned on multiple choice, with and without a subnetwork.

    Attributes:
        ways: ``likelihood``: no training, the choice whose tokens are likeliest on average is the answer; ``head``: one
            weight vector that is read at the last token of question and choice; ``lora``: this and low-rank updates of
            all matrices (needs peft); ``full``: everything.
        removed: ``held``: removed weights stay 0; ``free``: they start at 0 and may return.
        seeds: of the head, the order of questions, updates, and the random subnetwork.
        train_count: questions to train on; all that are left by default.
        dev_count: questions by which the best step is chosen.
        test_count: questions for the figures.
        data_seed: of the split, which is the same for all seeds.
        rate: highest learning rate; by default 1e-3 of a head, 2e-4 of updates, 2e-5 of everything.
        batch_size: questions per step.
        epochs: passes through the training questions.
        max_length: tokens per question and choice; of longer ones the beginning is cut off.
        rank: of updates.
        evaluations: measurements on dev per epoch.
        checkpoint_every: steps between checkpoints.
        device: cpu, or whatever accelerate finds.

    Raises:
        ValueError: a way is unknown or named twice, or there are no seeds.
    """

    ways: tuple[Way, ...] = ("likelihood", "head", "full")
    removed: Return = "held"
    seeds: tuple[int, ...] = (0, 1, 2)
    train_count: int | None = None
    dev_count: int = 200
    test_count: int = 400
    data_seed: int = 0
    rate: float | None = None
    batch_size: int = 16
    epochs: int = 3
    max_length: int = 96
    rank: int = 8
    evaluations: int = 2
    checkpoint_every: int = 200
    device: Literal["cpu", "found"] = "found"

    def __post_init__(self) -> None:
        known = ("likelihood", *RATES)
        for name, given, unknown in (
            ("ways", self.ways, {*self.ways} - {*known}),
            ("seeds", self.seeds, set[int]()),
        ):
            if not given or unknown or len({*given}) < len(given):
                raise ValueError(
                    f"{name} must name one or more, each once, but are {', '.join(map(str, given)) or 'none'}. Ways "
                    f"are {', '.join(known)}."
                )
        if self.removed not in ("held", "free"):
            raise ValueError(f"removed must be 'held' or 'free' but is {self.removed!r}. Choose one of these.")

    def fixed(self) -> dict[str, Any]:
        """Settings that decide the result of a single run, as plain data."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _FREE}

    def fine_tune(self, way: Trained, seed: int, out: Path) -> FineTune:
        """The settings of one run."""
        return FineTune(
            model="given",
            out=out,
            task="multiple choice",
            seed=seed,
            rate=self.rate or RATES[way],
            batch_size=self.batch_size,
            epochs=self.epochs,
            max_length=self.max_length,
            evaluations=self.evaluations,
            checkpoint_every=self.checkpoint_every,
            device=self.device,
        )
