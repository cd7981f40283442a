"""What masks do to an objective on training examples: exactly, for many masks, and to first order, for each example."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tlprune.backends.activations import Activations
from tlprune.learning.objectives import KL, Objective, SquaredError, Sum
from tlprune.masking.cache import RunCache
from tlprune.masking.masked import Masked
from tlprune.task import Batch


def check_objective(objective: Any) -> None:
    """Raise a ValueError unless it is one objective, of the model under the mask itself."""
    if isinstance(objective, Sum) or not isinstance(objective, Objective):
        given = "a sum" if isinstance(objective, Sum) else type(objective).__name__
        raise ValueError(
            f"Sites are scored by one objective but got {given}. Give one, such as tp.LogitDifference(), and add the "
            "scores."
        )
    if objective.run != "kept":
        raise ValueError(
            "Sites are scored by what their own removal does, run='kept', but the objective is of the complement. "
            "Leave run out."
        )


def check_slope(objective: Objective) -> None:
    """Raise a ValueError for an objective that is lowest, and so flat, where everything is kept."""
    if isinstance(objective, (KL, SquaredError)):
        other = "tp.LogitDifference() or tp.CrossEntropy()" if isinstance(objective, KL) else "another objective"
        raise ValueError(
            f"Gradients need an objective that changes where everything is kept, but {type(objective).__name__} from "
            f"the full model is 0 and flat there. Use {other}, exact patching (tp.NodePatching, tp.EdgePatching), or "
            "gradients along a path, where the method has steps=."
        )


def check_batch_size(batch_size: int) -> None:
    """Raise a ValueError unless there is at least one example per forward pass."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 but is {batch_size}. Choose how many fit into memory.")


def reference_of(cache: RunCache, examples: Batch, *, batch_size: int) -> Float[Tensor, "example answer vocab"]:
    """What the full model says of all examples, ``batch_size`` of them per forward pass."""
    return torch.cat([cache.reference(part) for part in examples.split(batch_size)])


@torch.no_grad()
def losses_under(
    masked: Masked,
    masks: Float[Tensor, "mask site"],
    examples: Batch,
    objective: Objective,
    *,
    cache: RunCache,
    reference: Float[Tensor, "example answer vocab"],
    batch_size: int,
) -> Float[Tensor, "mask"]:
    """The objective under each mask, on the same examples.

    Args:
        masked: the model; its own masks are not used.
        masks: mask values.
        examples: numbered from 0.
        objective: a mean over examples.
        cache: of these examples.
        reference: what the objective compares with.
        batch_size: pairs of mask and example per forward pass.
    """
    together = max(1, batch_size // len(examples))
    found = []
    for part in masks.split(together):
        pairs = torch.arange(len(part) * len(examples)).split(batch_size)
        logits = torch.cat([_logits(masked, part, examples, rows, cache) for rows in pairs])
        found += [objective(own, examples, reference) for own in logits.split(len(examples))]
    return torch.stack(found).cpu()


def _logits(masked: Masked, masks: Tensor, examples: Batch, pairs: Tensor, cache: RunCache) -> Tensor:
    """Logits of pairs of mask and example, numbered mask after mask."""
    rows, owners = examples.rows(pairs % len(examples)), pairs // len(examples)
    mask = masks[owners[0]] if owners[0] == owners[-1] else masks[owners]
    return masked(rows, mask=mask, replaced=cache.replaced(rows))


def slopes(
    masked: Masked,
    mask: Float[Tensor, "site"],
    examples: Batch,
    objective: Objective,
    *,
    cache: RunCache,
    batch_size: int,
    progress: bool = False,
    differences: bool = False,
) -> Float[Tensor, "example site"]:
    """Each example's share of ``-dL/dm``, so that shares add up to the gradient over all examples.

    Args:
        masked: the model; its own masks are not used.
        mask: where the gradient is taken.
        examples: numbered from 0.
        objective: ``L``, a mean over examples.
        cache: of these examples.
        batch_size: examples per forward and backward pass.
        progress: whether to show a progress bar.
        differences: what a mask value takes away is ``x - x~`` of the run on the clean prompt, wherever in mask space
            the gradient is taken, instead of that of the run itself; one more forward pass.
    """
    found = []
    for batch in bar(list(examples.split(batch_size)), progress):
        replaced = cache.replaced(batch)
        if differences and not replaced.relative:
            replaced = _changes(masked, batch, replaced)
        own = mask.to(masked.backend.device).expand(len(batch), -1).clone().requires_grad_()
        loss = objective(masked(batch, mask=own, replaced=replaced), batch, cache.reference(batch))
        (gradient,) = torch.autograd.grad(loss, own)
        found.append(-gradient.cpu() * len(batch) / len(examples))
    return torch.cat(found)


def _changes(masked: Masked, batch: Batch, replaced: Activations) -> Activations:
    """What is added to each activation of the clean run to replace it: ``x~ - x``."""
    clean = masked.backend.observe(batch.clean, masked.wanted)
    changes = [other - own for other, own in zip(replaced.tensors, clean.tensors, strict=True)]
    return dataclasses.replace(clean.with_tensors(changes), relative=True)


def bar(parts: Sequence[Any], progress: bool) -> Iterator[Any]:
    """The parts one by one, with a progress bar where one is wanted."""
    return iter(tqdm(parts, disable=not progress, unit="batch"))
