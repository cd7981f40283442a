"""What a fine-tuning does: its settings, its rate in each step, and which examples each step sees."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

Part = Literal["full", "head", "bitfit", "lora", "ia3"]
# What may differ between a run and the one that goes on after it.
FREE = ("out", "data_dir", "circuit", "checkpoint_every", "keep_every", "device")
# Highest rates that are usual for each part; of IA3 its authors'.
RATES: dict[Part, float] = {"full": 5e-5, "head": 1e-3, "bitfit": 1e-3, "lora": 2e-4, "ia3": 3e-3}
_POOL = 50  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class FineTune:
    """Fine-tune a Hugging Face model on labelled sentences or pairs.

    Examples for the choice of the best step (dev) are held out of the training set; the test set is looked at once, at
    the end. A run that was stopped goes on when the same command is given again, on a CPU bit for bit.

    Attributes:
        model: a local Hugging Face directory or a name on the hub.
        out: directory for the model, its tokenizer, metrics.jsonl and tlprune.json.
        task: sst2, cola, stsb, mnli, mnli-subset, qqp, qnli, imdb, tweet-sentiment, ag-news, dbpedia, hans, paws or
            paws-qqp.
        data_dir: folder of its files; by default the one in TLPRUNE_DATA, else the hub.
        train: the part to train on.
        test: the part for the figures at the end.
        train_count: training examples, drawn by the seed; all by default.
        dev_count: examples held out of the training part.
        test_count: examples of the test part; all by default.
        seed: of the draws, a new classifier's weights, the order of examples and dropout.
        trained: full: everything; head: what the classifier has beside its trunk; bitfit: this and all biases; lora:
            this and low-rank updates of the matrices within blocks; ia3: this and factors of keys, values and neurons
            (both need peft). Adapters are built into the weights of the model that is written.
        rank: of low-rank updates.
        circuit: file of a circuit over weights of this classifier. What it does not keep is 0 from the first step to
            the model that is written, and tlprune.json says so.
        rate: highest learning rate, of AdamW; by default 5e-5 of everything, 1e-3 of a head or biases, 2e-4 of updates,
            3e-3 of factors.
        betas: decay of the means of gradients and of their squares.
        batch_size: examples per step.
        epochs: passes through the training examples.
        warmup: share of the steps in which the rate rises.
        decay: linear: from there on it falls to 0; none: it stays.
        weight_decay: of all but biases and norms.
        clip: largest gradient norm, of weights that are not held at 0; None for any.
        max_length: tokens per prompt; longer ones are cut.
        evaluations: measurements on dev per epoch.
        patience: stop after so many measurements in a row that are no better than the best; never by default.
        checkpoint_every: steps between checkpoints, the most that a killed process loses.
        keep_every: steps between models that stay, in folders ``step-100`` and so on of ``out``: how a behaviour comes
            about. None by default.
        precision: no for that of the weights, or bf16 for products on a GPU.
        device: cpu, or whatever accelerate finds.
    """

    model: str
    out: Path
    task: str = "sst2"
    data_dir: Path | None = None
    train: str = "train"
    test: str = "dev"
    train_count: int | None = None
    dev_count: int = 500
    test_count: int | None = None
    seed: int = 0
    trained: Part = "full"
    rank: int = 8
    circuit: Path | None = None
    rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    batch_size: int = 32
    epochs: int = 3
    warmup: float = 0.06
    decay: Literal["linear", "none"] = "linear"
    weight_decay: float = 0.01
    clip: float | None = 1.0
    max_length: int = 128
    evaluations: int = 2
    patience: int | None = None
    checkpoint_every: int = 200
    keep_every: int | None = None
    precision: Literal["no", "bf16"] = "no"
    device: Literal["cpu", "found"] = "found"

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "evaluations", "checkpoint_every", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 but is {getattr(self, name)}. Give a larger number.")
        for name, without in (("keep_every", "to keep none"), ("patience", "to take all steps")):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 but is {value}. Leave it out {without}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1 but are {self.betas}. Give (0.9, 0.999).")
        if not 0 < self.highest_rate < 1 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"rate must lie between 0 and 1, and warmup be a share of the steps, but they are {self.highest_rate} "
                f"and {self.warmup}. Rates such as 5e-5 and a warmup of 0.06 are usual."
            )

    @property
    def highest_rate(self) -> float:
        """The one given, or what is usual for the part that is trained."""
        return RATES[self.trained] if self.rate is None else self.rate

    def fixed(self) -> dict[str, Any]:
        """Settings that decide the result, as plain data."""
        found = {name: value for name, value in dataclasses.asdict(self).items() if name not in FREE}
        found |= {"rate": self.highest_rate, "betas": list(self.betas)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}

    def steps(self, examples: int) -> int:
        """How many steps there are in all."""
        return self.epochs * self.per_epoch(examples)

    def per_epoch(self, examples: int) -> int:
        return math.ceil(examples / self.batch_size)

    def factor(self, step: int, steps: int) -> float:
        """What the rate is multiplied with in a step, from 0: up in the warm-up, then down to nearly 0, or 1.

        Example:
            >>> plan = FineTune("bert", Path("out"), warmup=0.5)
            >>> [plan.factor(step, 4) for step in range(4)]
            [0.5, 1.0, 1.0, 0.5]
        """
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return (step + 1) / rising
        return 1.0 if self.decay == "none" else (steps - step) / (steps - rising)

    def measured(self, step: int, examples: int) -> bool:
        """Whether dev is measured after so many steps: so often per epoch, its end always."""
        every = math.ceil(self.per_epoch(examples) / self.evaluations)
        place = step % self.per_epoch(examples)
        return place == 0 or place % every == 0


def batches(lengths: Sequence[int], size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Each example once, in batches of about one length, so that little is spent on padding.

    The order is random, then within each stretch of some batches by length; the batches are in random order again. It
    depends on seed and epoch alone, so a run that goes on needs to know its step only.

    Example:
        >>> sorted(map(sorted, batches([9, 1, 8, 2], 2, seed=0, epoch=0)))
        [[0, 2], [1, 3]]
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    pools = [order[start : start + size * _POOL] for start in range(0, len(order), size * _POOL)]
    order = [row for pool in pools for row in sorted(pool, key=lambda row: lengths[row])]
    found = [order[start : start + size] for start in range(0, len(order), size)]
    return [found[place] for place in torch.randperm(len(found), generator=generator).tolist()]
