"""Passes are counted exactly: forward and backward, plain and masked, in every kind of model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from styles import fresh, random_batch

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.passes import Passes, counted


def works(model: Any, batch: tp.Batch) -> dict[str, Any]:
    masks = tp.Masks(tp.edges(model))
    masked = tp.Masked(model, masks)
    masked(batch)  # the self-test of the first call is no part of it
    ones = torch.ones(len(masks.sites), dtype=torch.float64, requires_grad=True)
    return {
        "plain": (lambda: backend_of(model).logits(batch.clean, batch.positions), 1, 0),
        "masked": (lambda: masked(batch, mask=ones.detach()), 2, 0),
        "gradient": (lambda: masked(batch, mask=ones).sum().backward(), 2, 1),
    }


@pytest.mark.parametrize("style", ["gpt2", "llama", "attention_only"])
@pytest.mark.parametrize("work", ["plain", "masked", "gradient"])
def test_runs_are_counted_by_prompt(style: str, work: str) -> None:
    model, batch = fresh(style, torch.float64), random_batch(6, seed=0)
    run, forward, backward = works(model, batch)[work]
    with counted(model) as passes:
        run()
    assert passes.forward == pytest.approx(forward * len(batch))
    assert passes.backward == pytest.approx(backward * len(batch))
    assert passes.forward_equivalents == passes.forward + passes.backward


def test_nothing_is_counted_afterwards_and_after_an_error() -> None:
    model, batch = fresh("gpt2", torch.float32), random_batch(2, seed=0)
    hooks = [len(point._forward_pre_hooks) for point in backend_of(model).head_points()]
    with pytest.raises(ZeroDivisionError), counted(model) as passes:
        raise ZeroDivisionError
    backend_of(model).logits(batch.clean, None)
    assert passes == Passes(0.0, 0.0)
    assert [len(point._forward_pre_hooks) for point in backend_of(model).head_points()] == hooks
