"""How much memory a training step takes, told beforehand: the step is run without numbers, and its tensors counted.

Nothing is fitted and no formula is kept beside the engine: :class:`~tlprune.learning.dry_run.DryRun` carries out the
very step that training would take, on tensors that have shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from tlprune.learning.budgets import Lagrangian
from tlprune.learning.dry_run import DryRun, outlined
from tlprune.learning.layout import Layout
from tlprune.learning.memory import PARTS, Estimate
from tlprune.learning.objectives import Objective, Sum, faithful, weighted
from tlprune.learning.optimiser import Optimiser
from tlprune.learning.training import Plan, Training
from tlprune.masking.ablation import Ablation
from tlprune.masking.cache import RunCache
from tlprune.masking.in_play import ASSUMED
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.sites import Sites
from tlprune.task import Batch, Discovery, Tokens

MOMENTS = 2  # numbers that AdamW keeps for each that it trains


def estimate(
    model: Any,
    sites: Sites | Masks,
    *,
    batch: int,
    length: int,
    dtype: torch.dtype | None = None,
    ablation: Ablation | None = None,
    objective: Objective | Sum | None = None,
    examples: int | None = None,
    answers: int = 1,
) -> Estimate:
    """How much memory a step of mask training takes, without taking it.

    The step is run on tensors without memory (PyTorch's meta device), with the caches of the steps before it, and the
    bytes of those that are alive at one time are counted. So it holds for every kind of model, sites and ablation
    that training knows; of automatic casts it knows nothing. All edges count as in play that may be open, as when
    training begins. What the count does not see: what PyTorch's allocator rounds up (each tensor to 512 bytes on a GPU)
    and cannot use, buffers of cuBLAS (up to 32 MiB), and the CUDA context (some 500 MiB).

    Args:
        model: a TransformerLens model. Its weights are not read: :func:`tlprune.outline` gives one without any.
        sites: where the masks are, or the masks.
        batch: examples per step.
        length: tokens per prompt.
        dtype: of the weights; by default the model's.
        ablation: what replaces ablated activations; by default :class:`~tlprune.Resample`.
        objective: what is trained for; by default as :func:`tlprune.steps` has it.
        examples: in the training split, for what is cached of each; by default ``batch``.
        answers: answer positions per prompt.

    Raises:
        ValueError: a size is less than 1, prompts are longer than the model reads, or the sites need prompts whose
            spans are known.

    Example:
        >>> import tlprune as tp
        >>> model = tp.load("testbed", device="cpu")
        >>> found = estimate(model, tp.edges(model), batch=32, length=20)
        >>> found.total > found.weights + found.buffers
        True
        >>> found.largest_batch(found.total)
        32
    """
    sizes = {"batch": batch, "length": length, "answers": answers, "examples": batch if examples is None else examples}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"An estimate needs at least 1 for {name} but got {size}. Give the size of the real run.")
    if (most := getattr(model.cfg, "n_ctx", length)) < length:
        raise ValueError(
            f"An estimate needs prompts that the model can read, but they have {length} tokens and it reads {most:,} "
            "at most. Give the length of the real run."
        )
    with DryRun() as run, run.doubting():
        masks = sites if isinstance(sites, Masks) else Masks(sites)
        masked = Masked(_in_type(outlined_model(model), dtype), masks, ablation)
        aim = objective or faithful(masked)

    @lru_cache
    def of(size: int) -> Estimate:
        split = _split(max(size, sizes["examples"]), length, answers)
        plan = Plan(
            objective=aim, budget=Lagrangian(0.5), optimiser=Optimiser(), steps=2,
            batch_size=size, validate_every=None, keep=None, patience=None, seed=0,
        )  # fmt: skip
        return estimate_of_run(masked, Discovery("estimate", {"main": (split, split)}, {}), plan)

    return replace(of(batch), again=of)


def estimate_of_run(masked: Masked, discovery: Discovery, plan: Plan, layout: Layout | None = None) -> Estimate:
    """What the steps of a plan take, on its longest prompts.

    Args:
        masked: the model with trainable masks.
        discovery: the examples.
        plan: the training.
        layout: the processes that share each step, and how many examples each runs at once.
    """
    assert isinstance(masked.masks, Masks)
    with _assuming(masked.masks, plan), DryRun() as run:
        training = _outlined_training(run, masked, discovery, plan, layout)
        labels = _Labels(run, training)
        for _ in range(2):  # in the second step caches and buffers of the first are there
            training.gradients()
        run.look()
    widths = [stream.train.clean.ids.shape[1] for stream in training.streams.values()]
    size = max(stream.size for stream in training.streams.values())
    return Estimate(
        **labels.parts(), batch=size, length=max(widths), dtype=training.masked.backend.dtype,
        again=lambda size: estimate_of_run(masked, discovery, replace(plan, batch_size=size), layout),
    )  # fmt: skip


def outlined_model(model: Any) -> Any:
    """A model of the same shape whose weights have no memory."""
    own = outlined(model, same=(getattr(model, "tokenizer", None),))
    own.cfg.device = "meta"
    return own


def _in_type(model: Any, dtype: torch.dtype | None) -> Any:
    if dtype is None:
        return model
    model.cfg.dtype = dtype
    return nn.Module.to(model, dtype)


def _outlined_training(
    run: DryRun, masked: Masked, discovery: Discovery, plan: Plan, layout: Layout | None
) -> Training:
    """The same training on a model without weights; it begins with the longest prompts."""
    masks = masked.masks
    assert isinstance(masks, Masks)
    with run.doubting():
        own = outlined(masks, same=(masks.sites, masks.among, masks.always, masks.start, masks.gate), whole=False)
        ablation = outlined(masked.ablation, whole=False)
        training = Training(masked.alike(outlined_model(masked.model), own, ablation), own, discovery, plan, layout)
    model = training.masked.model
    run.begin(without=[*model.parameters(), *model.buffers(), *training.trained().values()])
    for stream in training.streams.values():
        stream.order, stream.position = torch.argsort(stream.train.clean.lengths, descending=True), 0
    return training


@contextmanager
def _assuming(masks: Masks, plan: Plan) -> Iterator[None]:
    """Let the engine know which edges are closed or open for good; all others are in play, as when training begins."""
    values = None
    if "edges" in masks.sites.kinds and all(objective.run == "kept" for _, objective in weighted(plan.objective)):
        values = torch.full((len(masks.sites),), 0.5)
        if masks.among is not None:
            values[~masks.among.kept] = 0
        if masks.always is not None:
            values[masks.always.kept] = 1
        values = values[masks.sites.part("edges")]
    token = ASSUMED.set(values)
    try:
        yield
    finally:
        ASSUMED.reset(token)


def _split(examples: int, length: int, answers: int) -> Batch:
    """Prompts that are all alike, read at their last positions."""
    tokens = Tokens(torch.zeros(1, length, dtype=torch.long).expand(examples, -1))
    positions = torch.arange(length - answers, length).clamp(min=0).expand(examples, -1)
    answer = torch.zeros_like(positions)
    return Batch(torch.arange(examples), tokens, tokens, positions, answer, answer)


class _Labels:
    """What each of the tensors is that are alive when the most is needed.

    Draws of masks and replacements of a batch are told by who asks for them, buffers and caches by who holds them.
    """

    def __init__(self, run: DryRun, training: Training) -> None:
        self.run, self.training = run, training
        self.drawn: set[int] = set()
        self.replacing: set[int] = set()
        masks = training.masks
        masks.sample = self._told(masks.sample, self.drawn)  # pyright: ignore[reportAttributeAccessIssue]
        for cache in self.caches:
            cache.replaced = self._told(cache.replaced, self.replacing)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def caches(self) -> list[RunCache]:
        return [stream.cache for stream in self.training.streams.values()]

    def _told(self, function: Callable[..., Any], numbers: set[int]) -> Callable[..., Any]:
        """The function, which notes the memory that it made and that is there when it returns."""

        def noted(*args: Any, **options: Any) -> Any:
            before = self.run.made
            result = function(*args, **options)
            numbers.update(number for number in self.run.alive if number > before)
            return result

        return noted

    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        found = dict.fromkeys(PARTS, 0)
        known = self._holders()
        for number, (size, backward) in self.run.at_most.items():
            found[known.get(number, "temporaries" if backward else "activations")] += size
        found["weights"] = _bytes(self.training.masked.model)
        trained = [value for group in self.training.optimiser.param_groups for value in group["params"]]
        found["masks"] += (1 + MOMENTS) * sum(value.nbytes for value in trained)
        return found

    def _holders(self) -> dict[int, str]:
        training, known = self.training, dict.fromkeys(self.drawn, "masks")
        known |= dict.fromkeys(self.replacing, "replacements")
        for storage in training.masked._pool.free:
            known |= self._numbered([storage.differences, storage.gradients], "buffers")
        for cache in self.caches:
            known |= self._numbered(cache.kept, "caches")
        return known | self._numbered([value.grad for value in training.trained().values()], "masks")

    def _numbered(self, tensors: Iterable[Tensor | None], label: str) -> dict[int, str]:
        numbers = [self.run.number(tensor) for tensor in tensors if tensor is not None]
        return {number: label for number in numbers if number is not None}


def _bytes(model: nn.Module) -> int:
    """Of parameters and buffers, each memory once."""
    storages = {id(one): one for one in (t.untyped_storage() for t in (*model.parameters(), *model.buffers()))}
    return sum(storage.nbytes() for storage in storages.values())
