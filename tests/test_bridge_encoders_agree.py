"""One checkpoint as HookedEncoder and as TransformerBridge: the same names, weights, logits and mask gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from encoders import MODELS, hf_model_of, prompts
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import error, probe
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.task import Tokens

pytestmark = NEEDS_HOOKED_TRANSFORMER
EDGES = {
    "merged": {}, "kept": {"embeddings": "kept"}, "joined": {"qkv": "joined"}, "per head": {"kv": "per_query_head"},
}  # fmt: skip
OTHERS = ("nodes", "heads", "mlps", "layers", "neurons", "weights")
ABLATIONS = ("resample", "zero", "mean")
# One for each head of each family; their variants differ in names and numbers only.
HEADS = [name for name in MODELS if name.split()[-1] not in ("labels", "number", "untied", "relu")]
each_ablation = pytest.mark.parametrize("ablation", ABLATIONS)


@pytest.fixture(scope="module", params=HEADS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pair(name: str) -> tuple[Any, Any]:
    return both(name)


def both(name: str) -> tuple[Any, Any]:
    return tp.from_huggingface(hf_model_of(name), device="cpu"), tp.bridge(hf_model_of(name))


@pytest.mark.parametrize("any_name", MODELS)
def test_names_shapes_values_and_fingerprints_are_the_same(any_name: str) -> None:
    pair = both(any_name)
    hooked, bridge = (backend_of(model) for model in pair)
    assert bridge.matrices() == hooked.matrices()
    ours, theirs = bridge.parameters(), hooked.parameters()
    assert list(ours) == list(theirs)
    for weight, value in theirs.items():
        assert torch.equal(ours[weight], value), weight
    assert bridge.fingerprint() == hooked.fingerprint()
    assert bridge.architecture == hooked.architecture
    assert bridge.predicts == hooked.predicts
    for setting in ("n_ctx", "d_vocab", "d_vocab_out", "eps", "act_fn", "attention_dir", "normalization_type"):
        assert getattr(pair[1].cfg, setting) == getattr(pair[0].cfg, setting), setting


@pytest.mark.parametrize("side", [None, "right", "left"])
def test_norms_divide_by_the_same(name: str, pair: tuple[Any, Any], side: str | None) -> None:
    tokens = prompts(name, padding=side)
    hooked, bridge = (backend_of(model).norm_scales(tokens) for model in pair)
    assert list(bridge) == list(hooked)
    assert all(error(bridge[point], scale) <= 1e-9 for point, scale in hooked.items())


def agree(pair: tuple[Any, Any], sites: list[Any], tokens: tuple[Tokens, Tokens], **options: Any) -> None:
    """Logits and gradients of one random mask."""
    clean, corrupt = tokens
    assert sites[0] == sites[1]
    mask = 0.1 + 0.8 * torch.rand(len(sites[0]), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask.requires_grad_()
    found: list[tuple[Tensor, Tensor]] = []
    for model in pair:
        logits = tp.Masked(model, tp.Masks(sites[0]), **options)(clean, corrupt, mask=mask)
        found.append((logits, torch.autograd.grad(probe(logits), mask)[0]))
    assert error(found[1][0], found[0][0]) <= 1e-9
    assert error(found[1][1], found[0][1]) <= 1e-9
    assert float(found[0][1].abs().max()) > 1e-4


def ablation_of(kind: str, corrupt: Tokens) -> Any:
    return {"resample": tp.Resample, "zero": tp.Zero, "mean": lambda: tp.Mean(corrupt)}[kind]()


@each_ablation
@pytest.mark.parametrize("convention", EDGES)
def test_edge_masks_agree(name: str, pair: tuple[Any, Any], convention: str, ablation: str) -> None:
    tokens = prompts(name, 1, padding="right"), prompts(name, 2, padding="right")
    sites = [tp.edges(model, **EDGES[convention]) for model in pair]
    agree(pair, sites, tokens, ablation=ablation_of(ablation, tokens[1]))


@each_ablation
@pytest.mark.parametrize("place", OTHERS)
def test_other_masks_agree(name: str, pair: tuple[Any, Any], place: str, ablation: str) -> None:
    tokens = prompts(name, 1, padding="right"), prompts(name, 2, padding="right")
    sites = [getattr(tp, place)(model) for model in pair]
    agree(pair, sites, tokens, ablation=ablation_of(ablation, tokens[1]))


@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("place", ["edges", "heads", "neurons"])
def test_frozen_norms_and_padding_in_front_agree(
    name: str, pair: tuple[Any, Any], place: str, side: str | None
) -> None:
    tokens = prompts(name, 1, padding=side), prompts(name, 2, padding=side)
    agree(pair, [getattr(tp, place)(model) for model in pair], tokens, norm="frozen")
