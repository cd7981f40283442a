"""Weights are read as they are at each call, however they were changed since the last one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from styles import CLEAN, CORRUPT, error, fresh
from test_lent_model import mask_of, masked_of
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tlprune.masking.ablation import Resample
from tlprune.masking.plain import plain_run


def by_version(model: Any) -> None:
    with torch.no_grad():
        model.blocks[1].attn.W_Q.mul_(2)


def by_state(model: Any) -> None:
    changed = ("W_K", "W_O", "b_V", "ln1.w", "ln1_post.w")
    state = {name: 1.5 * value for name, value in model.state_dict().items() if name.endswith(changed)}
    model.load_state_dict(state, strict=False)


def by_replacement(model: Any) -> None:
    attention = model.blocks[0].attn
    name = "W_V" if "W_V" in attention._parameters else "_W_V"
    setattr(attention, name, nn.Parameter(0.5 * getattr(attention, name).detach()))


def by_data(model: Any) -> None:
    model.blocks[1].attn.W_Q.data.mul_(2)


def by_parametrisation(model: Any) -> None:
    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    parametrize.register_parametrization(model.blocks[1].attn, "W_Q", Halved())
    assert model.blocks[1].attn.parametrizations.W_Q.original.requires_grad


CHANGES = [by_version, by_state, by_replacement, by_data, by_parametrisation]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("style", ["gpt2", "llama", "gemma2"])
def test_a_weight_changed_between_calls_is_seen(style: str, change: Callable[[Any], None]) -> None:
    model = fresh(style)
    masked, mask = masked_of(model), mask_of(model).detach()
    before = masked(CLEAN, CORRUPT, mask=mask)
    change(model)
    replaced = Resample().replaced(masked.backend, CLEAN, CORRUPT)
    expected = plain_run(model, masked.graph, CLEAN, mask, replaced)
    assert error(before, expected) > 1e-4
    assert error(masked(CLEAN, CORRUPT, mask=mask), expected) <= 1e-9


def test_a_parametrisation_that_changes_is_followed() -> None:
    gpt2 = fresh("gpt2")
    by_parametrisation(gpt2)
    masked, mask = masked_of(gpt2), mask_of(gpt2)
    masked(CLEAN, CORRUPT, mask=mask)
    with torch.no_grad():
        gpt2.blocks[1].attn.parametrizations.W_Q.original.mul_(3)
    replaced = Resample().replaced(masked.backend, CLEAN, CORRUPT)
    assert error(masked(CLEAN, CORRUPT, mask=mask), plain_run(gpt2, masked.graph, CLEAN, mask, replaced)) <= 1e-9
