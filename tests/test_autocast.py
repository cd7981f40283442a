"""Under automatic casts, and with buffers of their own type, a masked model is as exact as the model itself is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bridges import bridged
from styles import CLEAN, CORRUPT, STYLES, fresh, model_of, probe
from torch import Tensor

import tlprune as tp
from tlprune.masking import exchange, mixing, workspace

KINDS = {style: (lambda style=style: fresh(style, torch.float32)) for style in STYLES}
KINDS |= {f"bridged {kind}": (lambda kind=kind: bridged(kind, torch.float32)) for kind in ("gpt2", "llama", "gemma2")}


def run(model: Any, mask: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    """Logits and the mask's gradient, which is taken outside of the casts, as a training loop does."""
    values = mask.clone().requires_grad_()
    cast = settings.pop("cast", False)
    masked = tp.Masked(model, tp.Masks(tp.edges(model)), **settings)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        logits = masked(CLEAN, CORRUPT, mask=values)
    return logits.detach().float(), torch.autograd.grad(probe(logits.float()), values)[0]


def random_values(model: Any) -> Tensor:
    return torch.rand(len(tp.edges(model)), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mlps", ["stored", "recomputed"])
@pytest.mark.parametrize("kind", KINDS)
def test_casts_cost_masks_no_more_than_the_model(kind: str, mlps: str) -> None:
    model = KINDS[kind]()
    mask = random_values(model)
    run(model, mask, mlps=mlps)
    exact, gradient = run(model, mask, mlps=mlps)
    rough, pointing = run(model, mask, mlps=mlps, cast=True)
    with torch.no_grad():
        plain = model(CLEAN.ids)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own = (model(CLEAN.ids).float() - plain).square().mean().sqrt()
    error = (rough - exact).square().mean().sqrt()
    assert 0 < float(error) <= 2 * float(own)
    # Without norms a rounded weight moves all that follows, and an activation function that is cut off at 0 with it.
    assert float(torch.cosine_similarity(gradient, pointing, dim=0)) >= (0.99 if kind == "no_norm" else 0.999)


def test_masks_and_their_gradients_stay_exact_numbers() -> None:
    model = KINDS["gpt2"]()
    assert run(model, random_values(model), cast=True)[1].dtype == torch.float32
    ends = (random_values(model) > 0.5).float()
    masked = tp.Masked(model, tp.Masks(tp.edges(model)))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = [masked(CLEAN, CORRUPT, mask=one) for one in (ends, ends.bfloat16())]
        everything = masked(CLEAN, CORRUPT, mask=torch.ones_like(ends))
        plain = model(CLEAN.ids)
    assert torch.equal(*found)
    assert float((everything - plain).abs().max()) <= 0.02 * float(plain.abs().max())


def test_sums_are_not_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of exact buffers, where a product in the type of the casts would round what readers see."""
    model, types = KINDS["gpt2"](), []

    def noted(*args: Any) -> Tensor:
        mixed = mixing.mix(*args)
        types.append(mixed.dtype)
        return mixed

    monkeypatch.setattr(exchange, "mix", noted)
    run(model, random_values(model), cast=True, buffers=torch.float32)
    assert set(types) == {torch.float32}


@pytest.mark.parametrize("style", ["gpt2", "llama", "gemma2"])
def test_buffers_of_half_the_size(style: str) -> None:
    model = fresh(style, torch.float32)
    mask = random_values(model)
    exact, gradient = run(model, mask)
    rough, pointing = run(model, mask, buffers=torch.bfloat16)
    masked = tp.Masked(model, tp.Masks(tp.edges(model)), buffers=torch.bfloat16)
    masked(CLEAN, CORRUPT, mask=mask)
    assert [storage.differences.dtype for storage in masked._pool.free] == [torch.bfloat16]
    assert 0 < float((rough - exact).abs().max()) <= 0.01 * float(exact.abs().max())
    assert float(torch.cosine_similarity(gradient, pointing, dim=0)) >= 0.999


def test_low_precision_gradients_are_added_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("gpt2", torch.bfloat16)
    mask = random_values(model)
    _, expected = run(model, mask)
    monkeypatch.setattr(workspace, "MOST_PRODUCT", 1000)
    _, found = run(model, mask)
    assert torch.equal(found, expected)


def test_frozen_norms_and_zero_ablation_under_casts() -> None:
    model = model_of("gpt2", torch.float32)
    for settings in ({"norm": "frozen"}, {"ablation": tp.Zero()}):
        mask = random_values(model)
        exact, gradient = run(model, mask, **settings)
        rough, pointing = run(model, mask, cast=True, **settings)
        assert float((rough - exact).abs().max()) <= 0.05 * float(exact.abs().max())
        assert float(torch.cosine_similarity(gradient, pointing, dim=0)) >= 0.999
