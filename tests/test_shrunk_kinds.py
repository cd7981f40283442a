"""Heads and MLPs go from encoders and decoders, behind TransformerLens' own classes and behind bridges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bridges import EXACT, KINDS, hf_model
from encoders import call_hf, hf_model_of, prompts
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import CLEAN, error
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.masking.means import MeasuredMean
from tlprune.models.modeling_shrunk import FAMILIES, layers_of

ENCODERS = ("bert classes", "roberta classes", "bert words", "bert")
# Of 3 layers of 4 heads and an MLP of 20 neurons: what is removed, and what is left of heads and neurons.
REMOVED: dict[str, tuple[list[str], list[tuple[int, int]]]] = {
    "some": (["a0.h1", "a1.h0", "a1.h3", "m2"], [(3, 20), (2, 20), (4, 0)]),
    "whole attention": ([f"a1.h{head}" for head in range(4)], [(4, 20), (0, 20), (4, 20)]),
    "a whole layer": ([*(f"a1.h{head}" for head in range(4)), "m1"], [(4, 20), (0, 0), (4, 20)]),
    "no MLP": (["m0", "m1", "m2", "a2.h2"], [(4, 0), (4, 0), (3, 0)]),
    "all": ([f"a{place // 4}.h{place % 4}" for place in range(12)] + ["m0", "m1", "m2"], [(0, 0)] * 3),
}  # fmt: skip
HOOKED = pytest.param("hooked", marks=NEEDS_HOOKED_TRANSFORMER)
each_kind = pytest.mark.parametrize("kind", [HOOKED, "bridge"])


def lens_of(model: Any, kind: str) -> Any:
    return tp.bridge(model) if kind == "bridge" else tp.from_huggingface(model, device="cpu")


def pruned(model: Any, removed: list[str], ablation: Any) -> tp.Masked:
    sites = tp.heads(model) + tp.mlps(model)
    kept = torch.ones(len(sites), dtype=torch.bool)
    kept[[sites.index(name) for name in removed]] = False
    return tp.Masked(model, tp.Circuit(sites, kept), ablation)


def measured(model: Any, name: str) -> MeasuredMean:
    return tp.Mean(prompts(name, seed=2, padding="right", examples=5)).measure(model)


@torch.no_grad()
def said(model: Any, tokens: tp.Tokens) -> Tensor:
    """What a transformers encoder says of real tokens, or of prompts."""
    found = call_hf(model, tokens)
    if "logits" not in found:
        return found.pooler_output
    return _real(found.logits, tokens) if found.logits.dim() == 3 else found.logits


@torch.no_grad()
def expected(masked: tp.Masked, tokens: tp.Tokens) -> Tensor:
    found = masked(tokens)
    return _real(found, tokens) if masked.backend.predicts == "tokens" else found[:, 0]


def _real(values: Tensor, tokens: tp.Tokens) -> Tensor:
    assert tokens.attention_mask is not None
    return values[tokens.attention_mask.bool()]


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("removed", REMOVED)
@each_kind
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_without_heads_and_mlps(name: str, kind: str, removed: str, padding: str | None) -> None:
    """Pairs with token types where the model tells them apart."""
    whole, (names, sizes) = hf_model_of(name), REMOVED[removed]
    model = lens_of(whole, kind)
    masked, tokens = pruned(model, names, measured(model, name)), prompts(name, padding=padding)
    small = tp.shrink(masked)
    assert error(said(small, tokens), expected(masked, tokens)) < 1e-12
    assert [(len(layer.heads), len(layer.neurons)) for layer in small.sizes] == sizes
    of_head, of_mlp = 6 * 4 * 24 + 3 * 6, 20 * (2 * 24 + 1)
    lost = sum(of_head * (4 - heads) + (of_mlp if not neurons else 0) for heads, neurons in sizes)
    assert small.num_parameters() == whole.num_parameters() - lost
    linear = [module for layer in layers_of(small) for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    expected_maps = sum((4 if heads else 0) + (2 if neurons else 0) for heads, neurons in sizes)
    assert len(linear) == expected_maps, "nothing of an empty attention or MLP is multiplied"


@each_kind
@pytest.mark.parametrize("name", ["bert classes", "roberta classes"])
def test_a_pruned_classifier_is_saved_read_and_made_a_lens_model_again(name: str, kind: str, tmp_path: Path) -> None:
    model = lens_of(hf_model_of(name), kind)
    masked = pruned(model, REMOVED["a whole layer"][0] + ["a0.h2", "m2"], measured(model, name))
    tokens = prompts(name, padding="right")
    logits, small = expected(masked, tokens), tp.shrink(masked)
    small.save_pretrained(tmp_path)
    auto = transformers.AutoModelForSequenceClassification.from_pretrained
    own = tp.load_shrunk(tmp_path, dtype=torch.float64, device="cpu")
    for read in (own, auto(tmp_path, trust_remote_code=True, dtype=torch.float64)):
        assert read.num_parameters() == small.num_parameters()
        assert error(said(read, tokens), logits) < 1e-12
    for again in (tp.load(tmp_path, device="cpu", dtype=torch.float64), tp.bridge(tmp_path, dtype=torch.float64)):
        assert tp.heads(again) + tp.mlps(again) == masked.sites
        with torch.no_grad():
            assert error(backend_of(again).logits(tokens.to(backend_of(again).device), None)[:, 0].cpu(), logits) < 1e-9
        assert tp.shrink(again).sizes == small.sizes


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("name", KINDS)
def test_decoders_behind_bridges_shrink(name: str, ablation: str) -> None:
    whole = hf_model(name)
    model = tp.bridge(whole)
    mean = tp.Mean(CLEAN).measure(model)
    removed = [*(f"a0.h{head}" for head in range(4)), "a1.h1", "m1"]
    if ablation == "mean" and name in ("gemma2", "gemma3"):
        removed = removed[:-1]  # the mean of an MLP has no place in front of its norm
    masked = pruned(model, removed, tp.Zero() if ablation == "zero" else mean)
    small = tp.shrink(masked)
    with torch.no_grad():
        assert error(small(CLEAN.ids).logits, masked(CLEAN)) < EXACT[name]
    assert len(small.sizes[0].heads) == 0 and (len(small.sizes[1].neurons) == 0) == ("m1" in removed)
    assert small.num_parameters() < whole.num_parameters()
    assert whole.config.model_type in FAMILIES
