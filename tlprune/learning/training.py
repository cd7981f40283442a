"""One training step after another: gradients of every term and budget, and the state between steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tlprune.learning.budgets import Budget, Budgets, every
from tlprune.learning.examples import Examples
from tlprune.learning.objectives import Objective, Sum, weighted
from tlprune.learning.optimiser import Optimiser
from tlprune.learning.reading import value_of
from tlprune.learning.records import Pressure, Step, Term
from tlprune.masking.cache import RunCache
from tlprune.masking.drawn_weights import DrawnWeights, can_draw
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.pieces import expected_count
from tlprune.task import Batch, Discovery


@dataclass(frozen=True)
class Plan:
    """Everything that decides what training does; see :func:`tlprune.steps`."""

    objective: Objective | Sum
    budget: Budget | Budgets
    optimiser: Optimiser
    steps: int
    batch_size: int | Mapping[str, int]
    validate_every: int | None
    keep: Mapping[str, int] | None
    patience: int | None
    seed: int


@dataclass(frozen=True)
class Imposed:
    """A budget on its part of the mask, with its multipliers."""

    budget: Budget
    part: slice | Tensor
    multipliers: nn.Parameter


class Training:
    """State of a run: masks, multipliers, optimiser, random numbers, order of examples."""

    def __init__(self, masked: Masked, masks: Masks, discovery: Discovery, plan: Plan) -> None:
        self.masked, self.masks, self.plan = masked, masks, plan
        self.terms = weighted(plan.objective)
        self.labels = Sum(self.terms).labels
        self.parts = {kind: masks.part(kind) for kind in masks.sites.kinds}
        self.budgets = [self._impose(budget) for budget in every(plan.budget)]
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.streams = {name: self._examples(discovery, name) for name in dict.fromkeys(o.on for _, o in self.terms)}
        self.learned = dict(masked.ablation.named_parameters()) if isinstance(masked.ablation, nn.Module) else {}
        self.optimiser = plan.optimiser.build(
            [masks.log_alpha], [b.multipliers for b in self.budgets if len(b.multipliers)], [*self.learned.values()]
        )
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.done, self.started = 0, time.perf_counter()

    def _impose(self, budget: Budget) -> Imposed:
        part = self.masks.part(budget.on)
        return Imposed(budget.of(len(self.masks.log_alpha[part])), part, budget.start())

    def _examples(self, discovery: Discovery, stream: str) -> Examples:
        size = self.plan.batch_size
        if isinstance(size, Mapping):
            if stream not in size:
                raise ValueError(
                    f"Each stream needs a batch size but {stream!r} has none in {dict(size)}. Add it, or give a number."
                )
            size = size[stream]
        if size < 1:
            raise ValueError(f"A batch needs at least 1 example but {stream!r} is to have {size}. Ask for more.")
        return Examples(self.masked, discovery, stream=stream, size=size, generator=self.generator)

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.perf_counter() - self.started

    def step(self) -> Step:
        """Take the next step."""
        number = self.done
        self._anneal(number)
        values = self.gradients()
        self._refuse_not_finite(values, number)
        self._clip()
        self.optimiser.step()
        self.done = number + 1
        return self._record(number, values)

    def gradients(self) -> list[float]:
        """Leave the gradients of the next step where the optimiser looks for them; return the terms' values."""
        self.optimiser.zero_grad()
        batches = {name: stream.draw() for name, stream in self.streams.items()}
        return [self._descend(weight, one, batches[one.on], self.done) for weight, one in self.terms]

    def _anneal(self, number: int) -> None:
        self.masks.gate = self.masks.gate.at(number)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.plan.optimiser.factor(number, self.plan.steps)

    def _descend(self, weight: float, objective: Objective, batch: Batch, number: int) -> float:
        """Add the gradients of one term, and its share of the budgets'; return the term's value."""
        order = torch.argsort(batch.clean.lengths, stable=True)  # so that little of each part is padding
        parts = batch.rows(order).split(math.ceil(len(batch) / self.plan.optimiser.samples))
        return sum(self._backward(weight, objective, part, len(part) / len(batch), number) for part in parts)

    def _backward(self, weight: float, objective: Objective, part: Batch, share: float, number: int) -> float:
        cache = self.streams[objective.on].prepared(part)
        if self._draws_weights:
            return self._backward_through_weights(weight, objective, part, share, number, cache)
        sample = self.masks.sample(self.generator)
        mask, flat = run_of(sample, objective), self.masks.gate.flat_ends
        value = value_of(objective, self.masked, part, cache, mask=mask, flat_ends=flat)
        (share * (weight * value + self._pressure(sample, number) / len(self.terms))).backward()
        return share * float(value.detach())

    @cached_property
    def _draws_weights(self) -> bool:
        """Whether a step can do without a flat vector of mask values."""
        return can_draw(self.masks) and all(b.budget.measure == "expected" for b in self.budgets)

    def _backward_through_weights(
        self, weight: float, objective: Objective, part: Batch, share: float, number: int, cache: RunCache
    ) -> float:
        """The same where masks are of weights alone; the budgets' gradient would lie about during the model's."""
        weights = self.masked.backend.parameters()
        drawn = DrawnWeights(self.masks, weights, run=objective.run, generator=self.generator)
        value = value_of(objective, self.masked, part, cache, mask=drawn)
        (share * weight * value).backward()
        (share * self._pressure(self.masks.log_alpha, number) / len(self.terms)).backward()
        return share * float(value.detach())

    def _pressure(self, sample: Tensor, number: int) -> Tensor:
        terms = [b.budget.term(b.multipliers, self._sparsity(b, sample), number) for b in self.budgets]
        return torch.stack(terms).sum()

    def _sparsity(self, imposed: Imposed, sample: Tensor) -> Tensor:
        if imposed.budget.measure == "sampled":
            return 1 - sample[imposed.part].mean()
        return 1 - self._expected(imposed.part) / len(sample[imposed.part])

    def _expected(self, part: slice | Tensor) -> Tensor:
        return expected_count(self.masks.gate.expected_kept, self.masks.log_alpha[part])

    def _refuse_not_finite(self, values: list[float], number: int) -> None:
        gradient, value = self.masks.log_alpha.grad, sum(values)
        extremes = [value] if gradient is None else [value, *map(float, gradient.aminmax())]
        if gradient is None or not all(map(math.isfinite, extremes)):
            raise FloatingPointError(
                f"Training needs finite numbers but step {number + 1} gave a loss of {value} or a gradient that is not "
                "finite. The masks are as after the last good step; lower the rate, or look for infinities in the "
                "model's logits."
            )

    def _clip(self) -> None:
        if self.plan.optimiser.clip is not None:
            multipliers = [b.multipliers for b in self.budgets]
            torch.nn.utils.clip_grad_norm_([self.masks.log_alpha, *multipliers], self.plan.optimiser.clip)

    @torch.no_grad()
    def _record(self, number: int, values: list[float]) -> Step:
        terms = zip(self.labels, self.terms, values, strict=True)
        return Step(
            step=number + 1,
            terms=tuple(Term(label, float(weight), value) for label, (weight, _), value in terms),
            kept={kind: float(self._expected(part)) for kind, part in self.parts.items()},
            totals={kind: len(self.masks.log_alpha[part]) for kind, part in self.parts.items()},
            budgets=tuple(
                Pressure(b.budget.on, b.budget.record(number), tuple(b.multipliers.tolist())) for b in self.budgets
            ),
            seconds=self.seconds,
        )

    @torch.no_grad()
    def validate(self) -> list[float]:
        """Each term of the hard circuit on the validation examples of its stream."""
        mask = self.masks.circuit(**dict(self.plan.keep or {})).kept.float()  # pyright: ignore[reportArgumentType]
        return [self._hard(objective, run_of(mask, objective)) for _, objective in self.terms]

    def _hard(self, objective: Objective, mask: Tensor) -> float:
        examples, total = self.streams[objective.on], 0.0
        cache = examples.validation_cache
        for part in examples.validation.split(min(32, examples.size)):
            batch = part.to(examples.device)
            total += float(value_of(objective, self.masked, batch, cache, mask=mask)) * len(batch)
        return total / len(examples.validation)

    @torch.no_grad()
    def reached(self) -> bool:
        """Whether every budget has what it will ask for."""
        return all(
            b.budget.reached(
                1 - float(self._expected(b.part)) / len(self.masks.log_alpha[b.part]),
                step=self.done - 1,
                steps=self.plan.steps,
            )
            for b in self.budgets
        )

    def trained(self) -> dict[str, nn.Parameter]:
        """What the result consists of: the masks, and the ablation's own parameters."""
        return {"log_alpha": self.masks.log_alpha, **{f"ablation.{name}": p for name, p in self.learned.items()}}


def run_of(mask: Tensor, objective: Objective) -> Tensor:
    """The mask of an objective's run."""
    return mask if objective.run == "kept" else 1 - mask
