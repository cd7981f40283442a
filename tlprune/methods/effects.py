"""What masks do to an objective on training examples: exactly, for many masks, and to first order, for each example."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tlprune.backends.activations import Activations, Point
from tlprune.learning.objectives import KL, Objective, SquaredError, Sum
from tlprune.masking.cache import RunCache, predictions
from tlprune.masking.installing import refuse_installed
from tlprune.masking.masked import Masked
from tlprune.masking.nodes import node_edits
from tlprune.sites import Sites
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


def check_points(objective: Objective, steps: int) -> None:
    """Raise a ValueError unless gradients are taken at some points, where the objective has one."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1 but is {steps}. For the clean run alone give 1.")
    if steps == 1:
        check_slope(objective)


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
    points: Float[Tensor, "point site"],
    examples: Batch,
    objective: Objective,
    *,
    batch_size: int,
    dropped: int | None = None,
    progress: bool = False,
) -> Float[Tensor, "example site"]:
    """``(x~ - x) . dL/dx`` of each node and example, the mean over points; over examples they add up to that of ``L``.

    ``x`` is the activation of the clean run and ``x~`` what replaces it, wherever the gradient is taken. In the clean
    run itself, with all masks 1, this is ``-dL/dm``, and costs one pass without gradients for ``x~``, where it is not
    the same for all prompts, and one forward and backward. Elsewhere ``x`` takes another pass without gradients.

    Args:
        masked: the model; its own masks are not used.
        points: mask values at which the gradient is taken.
        examples: numbered from 0.
        objective: ``L``, a mean over examples.
        batch_size: examples per forward and backward pass.
        dropped: a layer through whose heads and MLP no gradient passes.
        progress: whether to show a progress bar.
    """
    refuse_installed(masked.model)
    points = points.to(masked.backend.device, torch.promote_types(masked.backend.dtype, torch.float32))
    cache, whole, found = masked.cache(examples), bool((points == 1).all()), []
    for batch in bar(list(examples.split(batch_size)), progress):
        replaced = cache.replaced(batch)
        replaced = replaced if whole or replaced.relative else _changes(masked, batch, replaced)
        shares = torch.zeros(len(batch), len(masked.sites))
        for point in points:
            mask = point.expand(len(batch), -1).clone().requires_grad_()
            logits = _run(masked, batch, mask, replaced, dropped)
            reference = predictions(logits.detach()) if whole else cache.reference(batch)
            (gradient,) = torch.autograd.grad(objective(logits, batch, reference), mask)
            shares = shares - gradient.cpu() * len(batch) / len(examples) / len(points)
        found.append(shares)
    return torch.cat(found)


def _changes(masked: Masked, batch: Batch, replaced: Activations) -> Activations:
    """What is added to each activation of the clean run to replace it: ``x~ - x``."""
    clean = masked.backend.observe(batch.clean, masked.wanted)
    changes = [other - own for other, own in zip(replaced.tensors, clean.tensors, strict=True)]
    return replace(clean.with_tensors(changes), relative=True)


def _run(masked: Masked, batch: Batch, mask: Tensor, replaced: Activations, dropped: int | None) -> Tensor:
    if dropped is None:
        return masked(batch, mask=mask, replaced=replaced)
    parts = masked.parts(mask, None)
    edits = node_edits(masked.sites, parts, replaced, masked.backend.architecture)
    edits = {point: _detached(edit) if _of_layer(point, dropped) else edit for point, edit in edits.items()}
    return masked.backend.run(batch.clean, edits, batch.positions)


def _of_layer(point: Point, layer: int) -> bool:
    return point in (("heads", layer), ("mlp", layer))


def _detached(edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda value: edit(value.detach())


def layer_of(node: str) -> int | None:
    """The layer of a head or MLP; none of embeddings.

    Example:
        >>> layer_of("a10.h3"), layer_of("m2"), layer_of("input")
        (10, 2, None)
    """
    return int(node[1:].partition(".")[0]) if node[1:2].isdigit() else None


def over_layer_norms(values: Float[Tensor, "site"], sites: Sites) -> Float[Tensor, "site"]:
    """Each layer's values over their Euclidean norm; 0 in a layer of zeros."""
    places: dict[int | None, list[int]] = defaultdict(list)
    for place in range(len(sites)):
        places[layer_of(sites.name(place))].append(place)
    result = torch.zeros_like(values)
    for own in places.values():
        result[own] = torch.nn.functional.normalize(values[own], dim=0, eps=torch.finfo(values.dtype).tiny)
    return result


def bar(parts: Sequence[Any], progress: bool) -> Iterator[Any]:
    """The parts one by one, with a progress bar where one is wanted."""
    return iter(tqdm(parts, disable=not progress, unit="batch"))
