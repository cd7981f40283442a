"""One training step after another: gradients of every term and budget, and the state between steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tlprune.learning.budgets import Budget, Budgets, every
from tlprune.learning.examples import Examples
from tlprune.learning.layout import Layout, Piece, answer_counts
from tlprune.learning.objectives import Objective, Sum, weighted
from tlprune.learning.optimiser import Optimiser
from tlprune.learning.reading import value_of
from tlprune.learning.records import Pressure, Step, Term
from tlprune.masking.cache import RunCache
from tlprune.masking.drawn_weights import DrawnWeights, can_draw
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.pieces import expected_count, uniform_like
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

    def __init__(
        self, masked: Masked, masks: Masks, discovery: Discovery, plan: Plan, layout: Layout | None = None
    ) -> None:
        self.masked, self.masks, self.plan, self.layout = masked, masks, plan, layout or Layout()
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
        return Examples(self.masked, discovery, stream=stream, size=size, generator=self.generator, layout=self.layout)

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.perf_counter() - self.started

    def step(self) -> Step:
        """Take the next step."""
        number = self.done
        self._anneal(number)
        values = self._added_up(self.gradients())
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
        """Add this process' share of the gradients of one term, and the budgets'; return its share of the value."""
        order = torch.argsort(batch.clean.lengths, stable=True)  # so that little of each part is padding
        batch, size = batch.rows(order), math.ceil(len(batch) / self.plan.optimiser.samples)
        parts = zip(batch.split(size), self.layout.pieces(len(batch), size), strict=True)
        backward = self._backward_through_weights if self._draws_weights else self._backward
        return sum(
            backward(weight, objective, self._own(objective, part, pieces), len(part) / len(batch), number)
            for part, pieces in parts
        )

    def _own(self, objective: Objective, part: Batch, pieces: list[Piece]) -> Iterator[tuple[float, Batch]]:
        """The pieces that this process runs, each with its share of the answers; the cache knows them."""
        answers, examples = answer_counts(part), self.streams[objective.on]
        total = int(answers.sum())
        for piece in pieces:
            share = int(answers[piece.begin : piece.end].sum()) / total
            if share and piece.process != self.layout.processes.rank:
                examples.meet(piece.of(part), process=piece.process)
            elif share:
                examples.prepare(own := piece.of(part))
                yield share, own

    def _backward(
        self, weight: float, objective: Objective, pieces: Iterator[tuple[float, Batch]], share: float, number: int
    ) -> float:
        """All pieces see one draw, whose gradients meet in a leaf, so that they pass the gate once."""
        sample, value = self.masks.sample(self.generator), 0.0
        leaf, flat = sample.detach().requires_grad_(), self.masks.gate.flat_ends
        for part, batch in pieces:
            mask = run_of(leaf, objective)
            one = value_of(objective, self.masked, batch, self._cache(objective), mask=mask, flat_ends=flat)
            (share * (weight * (part * one))).backward()
            value += part * float(one.detach())
        ends = [] if leaf.grad is None else [sample]
        gradients = [leaf.grad for _ in ends]
        if self.layout.processes.first:
            ends.append(share * (self._pressure(sample, number) / len(self.terms)))
            gradients.append(None)
        if ends:
            torch.autograd.backward(ends, gradients)
        return share * value

    def _cache(self, objective: Objective) -> RunCache:
        return self.streams[objective.on].cache

    @cached_property
    def _draws_weights(self) -> bool:
        """Whether a step can do without a flat vector of mask values."""
        return can_draw(self.masks) and all(b.budget.measure == "expected" for b in self.budgets)

    def _backward_through_weights(
        self, weight: float, objective: Objective, pieces: Iterator[tuple[float, Batch]], share: float, number: int
    ) -> float:
        """The same where masks are of weights alone; the budgets' gradient would lie about during the model's.

        A leaf would be one more copy of the weights, so each piece repeats the draw.
        """
        weights, value, start, drawn = self.masked.backend.parameters(), 0.0, self.generator.get_state(), None
        for part, batch in pieces:
            self.generator.set_state(start)
            drawn = DrawnWeights(self.masks, weights, run=objective.run, generator=self.generator)
            one = value_of(objective, self.masked, batch, self._cache(objective), mask=drawn)
            (share * weight * (part * one)).backward()
            value += part * float(one.detach())
        if drawn is None:  # the draw is the same everywhere, so where nobody looks at it, too
            uniform_like(self.masks.log_alpha, self.generator)
        if self.layout.processes.first:
            (share * self._pressure(self.masks.log_alpha, number) / len(self.terms)).backward()
        return share * value

    @torch.no_grad()
    def _added_up(self, values: list[float]) -> list[float]:
        """Values over all processes; gradients, too, are then those of the whole batch everywhere."""
        if self.layout.processes.count == 1:
            return values
        parameters = [one for own in self.optimiser.param_groups for one in own["params"]]
        known = [*values, *(float(one.grad is not None) for one in parameters)]
        totals = torch.tensor(known, dtype=torch.float64, device=self.masks.log_alpha.device)
        self.layout.processes.add_up([totals])
        sums, holders = totals.tolist()[: len(values)], totals.tolist()[len(values) :]
        for one, count in zip(parameters, holders, strict=True):
            if count and one.grad is None:
                one.grad = torch.zeros_like(one)
        self.layout.processes.add_up(one.grad for one in parameters if one.grad is not None)
        return sums

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
        """The mean over the answers of the validation examples, whose parts are shared out."""
        examples = self.streams[objective.on]
        parts = list(examples.validation.split(min(32, examples.size, self.layout.micro_batch or 32)))
        counts = [int(answer_counts(examples.validation)[part.index].sum()) for part in parts]
        values = torch.zeros(len(parts), dtype=torch.float64, device=mask.device)
        for number, part in enumerate(parts):
            if counts[number] and self.layout.own(number):
                batch = part.to(examples.device)
                values[number] = value_of(objective, self.masked, batch, examples.validation_cache, mask=mask)
        self.layout.processes.add_up([values])
        pairs = zip(counts, values.tolist(), strict=True)
        return sum(count * value for count, value in pairs) / sum(counts)

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
