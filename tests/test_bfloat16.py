"""In bfloat16 the masked model is as exact as the model itself is, and masks lose nothing."""

from __future__ import annotations

import pytest
import torch
from styles import CLEAN, CORRUPT, STYLES, backend_of_style, error, fresh, model_of, probe, random_mask
from torch import Tensor

from tlprune.backends.hooked_transformer import HookedTransformerBackend
from tlprune.graph import Graph
from tlprune.masking.ablation import Resample
from tlprune.masking.edges import run_edges
from tlprune.masking.plain import plain_run

styled = pytest.mark.parametrize("style", STYLES)


def rounded(style: str) -> tuple[HookedTransformerBackend, HookedTransformerBackend]:
    """A model in bfloat16 and the one in float64 that has the same, rounded, weights."""
    low = fresh(style, torch.bfloat16)
    high = fresh(style, torch.float64)
    with torch.no_grad():
        for exact, rough in zip(high.parameters(), low.parameters(), strict=True):
            exact.copy_(rough)
    return HookedTransformerBackend(low), HookedTransformerBackend(high)


def run(backend: HookedTransformerBackend, mask: Tensor) -> Tensor:
    replaced = Resample().replaced(backend, CLEAN, CORRUPT)
    return run_edges(backend, Graph.of(backend.model), CLEAN, mask, replaced)


def spread(actual: Tensor, expected: Tensor) -> float:
    """Root of the mean squared error: of many roundings, where the largest would be chance."""
    return float((actual.double() - expected).detach().square().mean().sqrt())


@styled
def test_error_is_at_most_twice_that_of_the_plain_model(style: str) -> None:
    low, high = rounded(style)
    own = spread(low.logits(CLEAN, None), high.logits(CLEAN, None))
    mask = random_mask(Graph.of(low.model), dtype=torch.float32).detach()
    counterfactual = Resample().replaced(high, CLEAN, CORRUPT)
    exact = plain_run(high.model, Graph.of(high.model), CLEAN, mask.double(), counterfactual)
    assert own > 1e-4
    assert spread(run(low, torch.ones_like(mask)), high.logits(CLEAN, None)) <= 2 * own
    assert spread(run(low, mask), exact) <= 2 * own


@styled
def test_hard_masks_are_not_rounded(style: str) -> None:
    """0 and 1 are bfloat16 numbers: a hard circuit is the same circuit in every precision of its mask."""
    low, _ = rounded(style)
    kept = random_mask(Graph.of(low.model)).detach() > 0.5
    expected = run(low, kept.float())
    assert torch.equal(run(low, kept.bfloat16()), expected)
    assert torch.equal(run(low, kept.double()), expected)


@styled
def test_mask_gradient_points_where_the_exact_one_does(style: str) -> None:
    low, high = rounded(style)
    mask = random_mask(Graph.of(low.model), dtype=torch.float32)
    exact = mask.detach().double().requires_grad_()
    found, expected = (
        torch.autograd.grad(probe(run(backend, one).float()), one)[0].double()
        for backend, one in ((low, mask), (high, exact))
    )
    assert found.isfinite().all()
    assert float(torch.cosine_similarity(found, expected, dim=0)) >= 0.999


def test_float32_and_float64_share_their_weights() -> None:
    """Otherwise a comparison between precisions would compare two models."""
    single, double = model_of("gpt2", torch.float32), model_of("gpt2")
    assert error(single.W_Q.double(), double.W_Q) <= 1e-7
    assert backend_of_style("gpt2").dtype == torch.float64
