"""Autograd does not see the engine's buffers: whatever would make a gradient silently wrong must raise instead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from styles import CLEAN, CORRUPT, backend_of_style, error, fresh, model_of, probe, random_batch, random_mask
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tlprune.backends.activations import Activations
from tlprune.backends.hooked_transformer import HookedTransformerBackend
from tlprune.graph import Graph
from tlprune.masking.ablation import Resample
from tlprune.masking.cache import RunCache
from tlprune.masking.edges import run_edges
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.sites import edges
from tlprune.masking.workspace import Pool

STYLE = "gpt2"
GRAPH = Graph.of(model_of(STYLE))


def counterfactual() -> Activations:
    return Resample().replaced(backend_of_style(STYLE), CLEAN, CORRUPT)


def run(mask: Tensor, *, replaced: Activations | None = None, pool: Pool | None = None) -> Tensor:
    return run_edges(backend_of_style(STYLE), GRAPH, CLEAN, mask, replaced or counterfactual(), pool=pool)


def gradient(mask: Tensor, *, seed: int = 5) -> Tensor:
    return torch.autograd.grad(probe(run(mask), seed=seed), mask)[0]


# ---- one buffer for two runs


def test_a_run_whose_buffers_went_to_another_refuses_its_backward() -> None:
    pool, mask = Pool(), random_mask(GRAPH)
    first = run(mask, pool=pool)
    (storage,) = storages(first)
    pool.put(storage)
    second = run(random_mask(GRAPH, seed=1), pool=pool)
    assert storages(second) == {storage}
    with pytest.raises(RuntimeError, match="handed to another run"):
        probe(first).backward()


def storages(logits: Tensor) -> set[object]:
    """The storages that the graph behind some logits refers to."""
    found, left, seen = set(), [logits.grad_fn], set()
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [after for after, _ in node.next_functions]
            if hasattr(node, "workspace"):
                found.add(node.workspace.storage)
    return found


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_several_forwards_before_their_backwards(order: tuple[int, ...]) -> None:
    masks = [random_mask(GRAPH, seed=seed) for seed in range(3)]
    expected = [gradient(mask) for mask in masks]
    masked = Masked(model_of(STYLE), Masks(edges(model_of(STYLE))))
    runs = [masked(CLEAN, CORRUPT, mask=mask) for mask in masks]
    for number in order:
        probe(runs[number]).backward()
    for mask, own in zip(masks, expected, strict=True):
        assert error(mask.grad, own) <= 1e-12


def test_buffers_are_used_again_and_the_numbers_stay_right() -> None:
    pool, mask = Pool(), random_mask(GRAPH)
    expected, used = gradient(mask), set()
    for _ in range(4):
        logits = run(mask, pool=pool)
        used |= {id(storage) for storage in storages(logits)}
        assert error(torch.autograd.grad(probe(logits), mask)[0], expected) <= 1e-12
        del logits
    assert len(used) == 1
    assert len(pool.free) == 1


def test_two_objectives_on_one_mask_add_up() -> None:
    mask = random_mask(GRAPH)
    expected = gradient(mask, seed=1) + 2 * gradient(mask, seed=2)
    (probe(run(mask), seed=1) + 2 * probe(run(mask), seed=2)).backward()
    assert error(mask.grad, expected) <= 1e-12


# ---- a second backward


def test_a_second_backward_is_refused_even_when_the_graph_is_kept() -> None:
    mask = random_mask(GRAPH)
    value = probe(run(mask))
    value.backward(retain_graph=True)
    first = mask.grad.clone()
    with pytest.raises(RuntimeError, match="already backpropagated"):
        value.backward()
    assert torch.equal(mask.grad, first)


def test_two_objectives_of_one_run_need_one_backward() -> None:
    mask = random_mask(GRAPH)
    logits = run(mask)
    torch.autograd.grad(probe(logits, seed=1), mask, retain_graph=True)
    with pytest.raises(RuntimeError, match="already backpropagated"):
        torch.autograd.grad(probe(logits, seed=2), mask)


def test_a_gradient_of_the_gradient_is_refused() -> None:
    mask = random_mask(GRAPH)
    (first,) = torch.autograd.grad(probe(run(mask)), mask, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


# ---- a counterfactual changed in place


def test_a_stream_changed_between_forward_and_backward_is_noticed() -> None:
    for number in range(len(GRAPH.readers)):
        mask, replaced = random_mask(GRAPH), counterfactual()
        value = probe(run(mask, replaced=replaced))
        replaced.streams[number].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


def test_writers_outputs_are_free_to_change_after_the_forward() -> None:
    """They are subtracted once, into the run's own buffer."""
    mask, replaced = random_mask(GRAPH), counterfactual()
    value = probe(run(mask, replaced=replaced))
    for tensor in (*replaced.heads, *replaced.mlps):
        tensor.zero_()
    value.backward()
    assert error(mask.grad, gradient(random_mask(GRAPH))) <= 1e-12


def test_a_cached_counterfactual_changed_in_place_is_noticed() -> None:
    batch = random_batch()
    cache = RunCache(backend_of_style(STYLE), Resample(), batch)
    kept = cache.replaced(batch)
    kept.heads[0].zero_()
    assert cache.replaced(batch).heads[0].abs().max() > 0, "what is handed out is a copy"
    cache._replaced.tensors[0].add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        cache.replaced(batch)
    assert cache.reference(batch).isfinite().all()
    cache._reference.tensors[0].zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        cache.reference(batch)


# ---- activation checkpointing


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_masked_run_is_refused(reentrant: bool) -> None:
    mask = random_mask(GRAPH)
    logits = checkpoint(run, mask, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="repeated inside a backward pass"):
        probe(logits).backward()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_block_is_refused(reentrant: bool) -> None:
    """It would run a second time in the backward, when the hooks of the call are gone."""
    model, mask, replaced = fresh(STYLE), random_mask(GRAPH), counterfactual()
    checkpointed(model.blocks[1], reentrant)
    with pytest.raises(RuntimeError, match=r"[Cc]heckpoint"):
        probe(run_edges(HookedTransformerBackend(model), GRAPH, CLEAN, mask, replaced)).backward()


def checkpointed(module: torch.nn.Module, reentrant: bool) -> None:
    forward: Callable[..., Tensor] = module.forward
    module.forward = lambda *inputs, **named: checkpoint(partial(forward, **named), *inputs, use_reentrant=reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_part_without_writers_is_right(reentrant: bool) -> None:
    model, mask = fresh(STYLE), random_mask(GRAPH)
    checkpointed(model.ln_final, reentrant)
    checkpointed(model.blocks[1].ln2, reentrant)
    probe(run_edges(HookedTransformerBackend(model), GRAPH, CLEAN, mask, counterfactual())).backward()
    assert error(mask.grad, gradient(mask)) <= 1e-12
