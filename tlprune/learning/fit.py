"""The training loop: one step at a time, or to the end with a progress bar and a metrics file."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tlprune.circuit import edges_text
from tlprune.learning.budgets import Lagrangian
from tlprune.learning.objectives import KL, Objective
from tlprune.masking.cache import RunCache
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.schedules import linear
from tlprune.task import Batch, Discovery


@dataclass(frozen=True)
class Optimiser:
    """AdamW for masks and multipliers.

    Attributes:
        rate: learning rate of the masks.
        multiplier_rate: learning rate of the budget's multipliers, which ascend.
        weight_decay: decoupled decay of the masks, as a fraction of the rate.
        clip: largest joint gradient norm of masks and multipliers; ``None`` for no limit.
        warmup: steps over which both rates rise from 0.
        decay: whether both rates then fall linearly, to 0 after the last step.
        samples: mask samples per step, each shared by an equal part of the batch; more make the gradient less noisy.
    """

    rate: float = 0.1
    multiplier_rate: float = 1.0
    weight_decay: float = 0.0
    clip: float | None = None
    warmup: int = 0
    decay: bool = True
    samples: int = 1

    def factor(self, step: int, steps: int) -> float:
        """What both rates are multiplied with in a step."""
        if step < self.warmup:
            return step / self.warmup
        return (steps - step) / max(1, steps - self.warmup) if self.decay else 1.0

    def build(self, masks: Masks, multipliers: Tensor) -> torch.optim.AdamW:
        groups = [
            {"params": list(masks.parameters()), "lr": self.rate},
            {"params": [multipliers], "lr": self.multiplier_rate, "maximize": True},
        ]
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Step:
    """What one training step saw.

    Attributes:
        step: number of the step, from 1.
        objective: name of the objective.
        sampled: its value under this step's mask sample (nats for KL).
        expected_kept: edges that the gates expect to keep after the step.
        total: edges in all.
        target: sparsity aimed at.
        multipliers: the budget's two multipliers after the step.
        hard: the objective of the hard circuit on validation examples, where it was measured.
        seconds: wall time since the start.
    """

    step: int
    objective: str
    sampled: float
    expected_kept: float
    total: int
    target: float
    multipliers: tuple[float, float]
    hard: float | None
    seconds: float

    def __str__(self) -> str:
        hard = "" if self.hard is None else f" | {self.objective}_hard {self.hard:.3f}"
        kept = edges_text(round(self.expected_kept), self.total)
        return f"step {self.step} | {self.objective}_sampled {self.sampled:.3f}{hard} | kept {kept}"

    def as_dict(self) -> dict[str, object]:
        data = asdict(self)
        name = data.pop("objective")
        return {
            "step": data.pop("step"),
            f"{name}_sampled": data.pop("sampled"),
            f"{name}_hard": data.pop("hard"),
            **data,
        }


def steps(
    masked: Masked,
    discovery: Discovery,
    objective: Objective | None = None,
    budget: Lagrangian | None = None,
    *,
    steps: int = 300,
    batch_size: int = 32,
    optimiser: Optimiser | None = None,
    validate_every: int | None = None,
    edges: int | None = None,
    seed: int = 0,
) -> Iterator[Step]:
    """Train masks, one record per step; stop whenever you like, the masks are as the last record says.

    Args:
        masked: the model with trainable masks.
        discovery: ``task.discovery``.
        objective: what to keep; by default :class:`KL` to the full model.
        budget: what to remove; by default 95% of the edges, approached over five sixths of the steps.
        steps: how many to take.
        batch_size: examples per step; all of them where there are fewer.
        optimiser: rates and their schedule.
        validate_every: steps between measurements of the hard circuit on validation examples.
        edges: size of that hard circuit; by default what the gates expect to keep.
        seed: of mask samples and example order.

    Raises:
        FloatingPointError: loss or gradient is not finite; the masks are left as before that step.
        ValueError: the masks are not trainable.
    """
    if not isinstance(masked.masks, Masks):
        raise ValueError(
            "Training needs masks but this Masked holds a finished circuit. Use Masked(model, Masks(...))."
        )
    plan = _Plan(
        objective or KL(), budget or Lagrangian(linear(0, 0.95, steps=steps * 5 // 6)), optimiser or Optimiser(), steps
    )
    training = _Training(masked, masked.masks, discovery, plan, seed)
    order = _batches(discovery.train(), batch_size, training.generator)
    for number in range(steps):
        record = training.step(number, next(order).to(masked.backend.device))
        if validate_every and (number + 1) % validate_every == 0:
            record = Step(**{**vars(record), "hard": training.validate(edges)})
        yield record


def fit(
    masked: Masked,
    discovery: Discovery,
    objective: Objective | None = None,
    budget: Lagrangian | None = None,
    *,
    metrics: str | Path | None = None,
    progress: bool = False,
    **options: object,
) -> list[Step]:
    """Run :func:`steps` to the end.

    Args:
        masked: the model with trainable masks.
        discovery: ``task.discovery``.
        objective: as for :func:`steps`.
        budget: as for :func:`steps`.
        metrics: a file that gets one JSON object per step, as it happens.
        progress: whether to show a progress bar.
        options: further arguments of :func:`steps`.
    """
    history: list[Step] = []
    records = steps(masked, discovery, objective, budget, **options)  # pyright: ignore
    bar = tqdm(records, total=options.get("steps", 300), disable=not progress, unit="step")  # pyright: ignore
    with open(metrics or os.devnull, "w") as file:
        for record in bar:
            history.append(record)
            bar.set_postfix_str(str(record).partition(" | ")[2], refresh=False)
            file.write(json.dumps(record.as_dict()) + "\n")
            file.flush()
    return history


@dataclass(frozen=True)
class _Plan:
    objective: Objective
    budget: Lagrangian
    optimiser: Optimiser
    steps: int


class _Training:
    """State of a run: masks, multipliers, optimiser, random numbers, caches."""

    def __init__(self, masked: Masked, masks: Masks, discovery: Discovery, plan: _Plan, seed: int) -> None:
        self.masked, self.masks, self.plan = masked, masks, plan
        self.generator = torch.Generator().manual_seed(seed)
        self.multipliers = plan.budget.start()
        self.optimiser = plan.optimiser.build(masks, self.multipliers)
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.cache = masked.cache(discovery.train())
        self.validation = discovery.validation()
        self.validation_cache = masked.cache(self.validation)
        self.started = time.perf_counter()

    def step(self, number: int, batch: Batch) -> Step:
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.plan.optimiser.factor(number, self.plan.steps)
        self.optimiser.zero_grad()
        value = sum(self._backward(part, len(part) / len(batch), number) for part in self._parts(batch))
        self._refuse_not_finite(value, number)
        self._clip()
        self.optimiser.step()
        return self._record(number, value)

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        return batch.split(math.ceil(len(batch) / self.plan.optimiser.samples))

    def _backward(self, part: Batch, share: float, number: int) -> float:
        """Add the gradients of one mask sample on its part of the batch; return its part of the objective."""
        sample = self.masks.sample(self.generator)
        value = self._objective(part, sample, self.cache)
        term = self.plan.budget.term(self.multipliers, self._sparsity(sample), number)
        (share * (value + term)).backward()
        return share * float(value.detach())

    def _objective(self, batch: Batch, mask: Tensor, cache: RunCache) -> Tensor:
        replaced, reference = cache.replaced(batch), cache.reference(batch)
        return self.plan.objective(self.masked(batch, mask=mask, replaced=replaced), batch, reference)

    def _sparsity(self, sample: Tensor) -> Tensor:
        if self.plan.budget.measure == "sampled":
            return 1 - sample.mean()
        return 1 - self.masks.expected_kept / len(sample)

    def _refuse_not_finite(self, value: float, number: int) -> None:
        gradient = self.masks.log_alpha.grad
        if not (math.isfinite(value) and gradient is not None and bool(gradient.isfinite().all())):
            raise FloatingPointError(
                f"Training needs finite numbers but step {number + 1} gave a loss of {value} or a gradient that is not "
                "finite. The masks are as after the last good step; lower the rate, or look for infinities in the "
                "model's logits."
            )

    def _clip(self) -> None:
        if self.plan.optimiser.clip is not None:
            torch.nn.utils.clip_grad_norm_([self.masks.log_alpha, self.multipliers], self.plan.optimiser.clip)

    def _record(self, number: int, sampled: float) -> Step:
        first, second = self.multipliers.tolist()
        return Step(
            step=number + 1,
            objective=self.plan.objective.name,
            sampled=sampled,
            expected_kept=float(self.masks.expected_kept.detach()),
            total=len(self.masks.log_alpha),
            target=self.plan.budget.target(number),
            multipliers=(first, second),
            hard=None,
            seconds=time.perf_counter() - self.started,
        )

    @torch.no_grad()
    def validate(self, edges: int | None) -> float:
        """The objective of the hard circuit on the validation examples."""
        mask = self.masks.circuit(edges=edges).kept.float()
        total = 0.0
        for part in self.validation.split(32):
            batch = part.to(self.masked.backend.device)
            total += float(self._objective(batch, mask, self.validation_cache)) * len(batch)
        return total / len(self.validation)


def _batches(split: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Batches without end: each pass goes through all examples in a new order, whole batches only."""
    size = min(size, len(split))
    while True:
        order = torch.randperm(len(split), generator=generator)
        for rows in order[: len(split) // size * size].split(size):
            yield split.rows(rows)
