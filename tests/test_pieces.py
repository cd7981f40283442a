"""Large batches are mixed piece by piece: the same numbers and gradients, wherever the cuts are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from styles import CLEAN, CORRUPT, STYLES, error, fresh, model_of, probe
from torch import Tensor

import tlprune as tp
from tlprune.masking import mixing
from tlprune.masking.mixing import pieces_of

EXAMPLES, LENGTH = CLEAN.ids.shape
LEADS: list[tuple[int, ...]] = [(), (EXAMPLES,), (1, LENGTH), (EXAMPLES, LENGTH)]
READERS = 3 * 4 * 32  # numbers of all readers of a block at one token, of a model with as many readers as it has heads
CUTS = {"examples": 2 * LENGTH * READERS, "positions": 4 * READERS, "tokens": 1}


def everything(model: Any, sites: tp.Sites, lead: tuple[int, ...], **settings: Any) -> Tensor:
    """Logits and all gradients of a run: of the mask, of masked weights, and of what replaces activations."""
    masked = tp.Masked(model, tp.Masks(sites), **settings)
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(*lead, len(sites), generator=generator, dtype=torch.float64).requires_grad_()
    replaced = masked.ablation.replaced(masked.backend, masked._tokens(CLEAN), masked._tokens(CORRUPT))
    replaced = replaced.map(lambda tensor: tensor.clone().requires_grad_())
    logits = masked(CLEAN, CORRUPT, mask=mask, replaced=replaced)
    probe(logits).backward()
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in (mask, *replaced.tensors)]
    return torch.cat([logits.detach().flatten(), *(gradient.flatten() for gradient in gradients)])


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("style", STYLES)
def test_the_same_run(style: str, lead: tuple[int, ...], cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(style)
    expected = everything(model, tp.edges(model), lead)
    monkeypatch.setattr(mixing, "MOST_MIXED", CUTS[cut])
    assert error(everything(model, tp.edges(model), lead), expected) <= 1e-12


@pytest.mark.parametrize("cut", CUTS)
def test_with_frozen_norms_joined_readers_and_masked_weights(cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("gpt2")
    cases: list[tuple[tp.Sites, dict[str, Any]]] = [
        (tp.edges(model), {"norm": "frozen"}),
        (tp.edges(model, qkv="joined"), {}),
        (tp.edges(model) + tp.weights(model, "blocks.*.attn.W_*"), {}),
    ]
    expected = [everything(model, sites, (), **settings) for sites, settings in cases]
    monkeypatch.setattr(mixing, "MOST_MIXED", CUTS[cut])
    for (sites, settings), whole in zip(cases, expected, strict=True):
        assert error(everything(model, sites, (), **settings), whole) <= 1e-12


@pytest.mark.parametrize("most", [1, 7, 10, 60, 100, 10_000])
def test_pieces_are_the_batch(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "MOST_MIXED", most)
    seen = torch.zeros(5, 6)
    for piece in pieces_of(seen.shape, 2):
        seen[piece] += 1
        assert 2 * seen[piece].numel() <= max(most, 2)
    assert bool((seen == 1).all())
