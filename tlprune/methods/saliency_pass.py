"""One streaming pass over training batches that scores weights by several criteria at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.backends.activations import Backend
from tlprune.backends.linear_maps import LinearMap
from tlprune.learning.objectives import CrossEntropy, exact
from tlprune.methods.criteria import Criterion, Seen, Smooth
from tlprune.methods.effects import bar
from tlprune.sites import Matrix, Weights
from tlprune.task import Batch

# A criterion, and how many batches it looks at.
Wanted = tuple[Criterion, int]
Noise = tuple[int, float]


def label_loss(logits: Float[Tensor, "example answer output"], batch: Batch) -> Float[Tensor, ""]:
    """The loss of a task's labels: cross entropy in nats, or the mean squared error of a regression.

    Raises:
        ValueError: the model's outputs do not fit the labels.
    """
    if batch.targets is None:
        return CrossEntropy()(logits, batch, logits)
    if logits.shape[1:] != (1, 1):
        raise ValueError(
            f"Numbers need a model with one output but this one has {logits.shape[-1]}. Load a regression."
        )
    return (exact(logits)[:, 0, 0] - batch.targets.to(logits)).square().mean()


def check_labels(batch: Batch) -> None:
    """Raise a ValueError for examples of which no loss can be had."""
    if batch.targets is None and bool((batch.answers < 0).all()):
        raise ValueError(
            "Gradients are of the loss of a task's labels but no training example has one. Give labels, or a criterion "
            "that needs none: tp.Magnitude(), tp.MagnitudeActivation(), tp.Wanda()."
        )


def passed_over(
    backend: Backend,
    weights: Weights,
    examples: Batch,
    wanted: Sequence[Wanted],
    *,
    batch_size: int,
    seed: int,
    progress: bool = False,
) -> list[Float[Tensor, "site"]]:
    """Scores of every weight by each criterion, on the CPU, from one pass over the examples.

    A batch costs one forward and backward run for all criteria of plain gradients or activations together, and
    ``samples`` more for each kind of noise. Beside the gradients there is one total for each criterion.

    Args:
        backend: the model.
        weights: linear maps' tensors that are scored.
        examples: with labels where a criterion needs gradients; taken in an order that the seed decides.
        wanted: criteria, and how many batches each looks at, if there are so many.
        batch_size: examples per batch.
        seed: of the order, of noise and of random scores.
        progress: whether to show a progress bar.
    """
    if any(criterion.gradient != "none" for criterion, _ in wanted):
        check_labels(examples)
    parameters = backend.parameters()
    totals = [Total(criterion, most, weights, parameters) for criterion, most in wanted]
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    chunks = order.split(batch_size)[: max((total.most for total in totals), default=0)]
    run = Observer(backend, weights, seed)
    for place, rows in enumerate(bar(chunks, progress and bool(chunks))):
        batch = examples.rows(rows).to(backend.device)
        run.look(batch, [total for total in totals if place < total.most])
    return [total.scores(seed) for total in totals]


class Total:
    """What batches add up to for one criterion, tensor by tensor, in the places where its scores will be.

    Args:
        criterion: what is added.
        most: batches that it looks at.
        weights: what is scored.
        parameters: the model's.
    """

    def __init__(self, criterion: Criterion, most: int, weights: Weights, parameters: Mapping[str, Tensor]) -> None:
        self.criterion, self.most = criterion, most if criterion.runs else 0
        self.weights, self.parameters = weights, parameters
        self.answers = 0
        self.parts: dict[str, Tensor] = {}

    @property
    def noise(self) -> Noise | None:
        return (self.criterion.samples, self.criterion.scale) if isinstance(self.criterion, Smooth) else None

    @cached_property
    def flat(self) -> Float[Tensor, "site"]:
        """One number for each weight: scores in the end, and totals that have so many before."""
        first = self.parameters[self.weights.matrices[0].name]
        return torch.empty(len(self.weights), dtype=_total_dtype(first), device=first.device)

    @cached_property
    def places(self) -> dict[str, Tensor]:
        return self.weights.split(self.flat)

    def add(self, name: str, seen: Seen) -> None:
        found = self.criterion.added(seen)
        if name in self.parts:
            self.parts[name].add_(found)
        elif found.shape == seen.weight.shape:
            self.parts[name] = self.places[name].copy_(found)
        else:
            self.parts[name] = found.to(_total_dtype(found))

    def scores(self, seed: int) -> Float[Tensor, "site"]:
        """All tensors' scores in one vector, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        for name, place in self.places.items():
            weight = self.parameters[name].detach().to(place.dtype)
            place.copy_(self.criterion.score(weight, self.parts.get(name), answers=self.answers, generator=generator))
        return self.flat.cpu()


def _total_dtype(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


@dataclass
class Activations:
    """Statistics of what linear maps read and give in one run.

    Attributes:
        real: which positions are no padding; ``None`` for all.
        means: of inputs, by the name of what is read, and of outputs, by the weight.
        squares: sums of squared inputs.
        counts: tokens, or prompts, that were read.
    """

    real: Bool[Tensor, "example pos"] | None
    means: dict[str, Tensor]
    squares: dict[str, Tensor]
    counts: dict[str, int]

    def read(self, name: str, value: Tensor) -> None:
        rows = self._rows(value)
        self.means[name], self.squares[name] = rows.mean(0), rows.square().sum(0)
        self.counts[name] = len(rows)

    def given(self, one: LinearMap, value: Tensor) -> None:
        self.means[one.weight] = self._rows(value).mean(0)

    def _rows(self, value: Tensor) -> Float[Tensor, "token unit"]:
        """One row for each real token, or each prompt where a map is of whole prompts."""
        value = value.detach()
        if value.dim() > 2:
            value = value.flatten(2)
            value = value.flatten(0, 1) if self.real is None else value[self.real]
        return value.to(torch.promote_types(value.dtype, torch.float32))


class Observer:
    """Observer the model on batches and tells totals what there is to see.

    Args:
        backend: the model.
        weights: tensors that are scored.
        seed: of the noise.
    """

    def __init__(self, backend: Backend, weights: Weights, seed: int) -> None:
        self.backend, self.weights, self.seed = backend, weights, seed
        parameters = backend.parameters()
        self.leaves = {one.name: parameters[one.name].detach().requires_grad_() for one in weights.matrices}
        self.maps = _by_tensor(backend.linear_maps())
        self.generators: dict[tuple[Noise, str], torch.Generator] = {}

    def look(self, batch: Batch, totals: Sequence[Total]) -> None:
        """One batch, for the criteria that still look at any."""
        clean = [total for total in totals if total.noise is None]
        activations = self._clean(batch, totals)
        self._tell(clean, activations, batch)
        for noise in dict.fromkeys(total.noise for total in totals):
            if noise is not None:
                self._smooth(batch, noise)
                self._tell([total for total in totals if total.noise == noise], activations, batch)
        self._forget()

    def _clean(self, batch: Batch, totals: Sequence[Total]) -> Activations | None:
        """The plain run, with gradients if any criterion needs these; none at all if nobody needs it."""
        gradient = any(total.criterion.gradient == "clean" for total in totals)
        reads = {total.criterion.reads for total in totals}
        if not gradient and reads == {"nothing"}:
            return None
        mask = batch.clean.trimmed().attention_mask
        seen = Activations(None if mask is None or bool(mask.all()) else mask.bool(), {}, {}, {})
        read = seen.read if "inputs" in reads else None
        with self.backend.mapped(read=read, change=seen.given if "outputs" in reads else None):
            self._run(batch, 1, gradient=gradient)
        return seen

    def _smooth(self, batch: Batch, noise: Noise) -> None:
        samples, _ = noise
        self._forget()
        for _ in range(samples):
            with self.backend.mapped(change=lambda one, value: self._noised(one, value, noise)):
                self._run(batch, samples, gradient=True)

    def _noised(self, one: LinearMap, value: Tensor, noise: Noise) -> Tensor:
        drawn = torch.randn(value.shape, generator=self._generator(one, noise), dtype=value.dtype, device=value.device)
        return value + noise[1] * drawn

    def _generator(self, one: LinearMap, noise: Noise) -> torch.Generator:
        """Each map has its own, so that noise depends neither on the kind of model nor on who shares the pass."""
        if (noise, one.weight) not in self.generators:
            generator = torch.Generator(self.backend.device)
            place = 1 + sorted({each.weight for each in self.maps.values()}).index(one.weight)
            self.generators[noise, one.weight] = generator.manual_seed(self.seed + place * 1_000_003)
        return self.generators[noise, one.weight]

    def _run(self, batch: Batch, parts: int, *, gradient: bool) -> None:
        """A forward run, and a backward one to the leaves, where gradients of several runs add up to their mean."""
        tokens = batch.clean.trimmed()
        with torch.set_grad_enabled(gradient):
            logits = self.backend.with_weights(
                {name: lambda _, leaf=leaf: leaf for name, leaf in self.leaves.items()},
                lambda: self.backend.logits(tokens, batch.positions),
            )
            if gradient:
                (label_loss(logits, batch) / parts).backward()
                self._fill()

    def _tell(self, totals: Sequence[Total], activations: Activations | None, batch: Batch) -> None:
        answers = int(batch.answered.sum())
        for total in totals:
            total.answers += answers
        for matrix in self.weights.matrices:
            seen = self._seen(matrix, activations, answers)
            for total in totals:
                if total.criterion.runs:
                    total.add(matrix.name, seen)

    @torch.no_grad()
    def _seen(self, matrix: Matrix, activations: Activations | None, answers: int) -> Seen:
        leaf, one = self.leaves[matrix.name], self.maps[matrix.name]
        parts: dict[str, Any] = {"weight": leaf.detach(), "gradient": leaf.grad}
        parts |= _statistics(matrix, one, activations)
        return Seen(**parts, answers=answers)

    def _fill(self) -> None:
        """A tensor that the loss does not depend on has gradients of 0."""
        for leaf in self.leaves.values():
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad

    def _forget(self) -> None:
        for leaf in self.leaves.values():
            leaf.grad = None


def _statistics(matrix: Matrix, one: LinearMap, activations: Activations | None) -> dict[str, Tensor | None]:
    """Means and squares, shaped to multiply the tensor."""
    means = {} if activations is None else activations.means
    outputs = means.get(one.weight)
    inputs, squares = means.get(one.reads), None
    if inputs is not None and activations is not None:
        squares = activations.squares[one.reads]
        if matrix.name == one.bias:
            inputs, squares = torch.ones_like(inputs[:1]), torch.full_like(squares[:1], activations.counts[one.reads])
    across = (1,) * len(matrix.shape) if matrix.name == one.bias else matrix.mask_shape("row")
    return {
        "outputs": None if outputs is None else outputs.view(matrix.mask_shape("column")),
        "inputs": None if inputs is None else inputs.view(across),
        "squares": None if squares is None else squares.view(across),
    }


def _by_tensor(maps: Sequence[LinearMap]) -> dict[str, LinearMap]:
    """The map that each weight and bias belongs to."""
    named = ((name, one) for one in maps for name in (one.weight, one.bias))
    return {name: one for name, one in named if name is not None}
