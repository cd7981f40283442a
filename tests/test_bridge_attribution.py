"""Patching, attribution of nodes and information flow on bridges: what holds of any model, and the same scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bridges import EXACT, KINDS, NORMED_HEADS, bridged, hf_model
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import error, random_batch

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.graph import Graph
from tlprune.learning.objectives import logit_difference
from tlprune.masking.patterns import attention_patterns
from tlprune.task import Stream, Tokenisation

TRAIN = random_batch(3, seed=1)
TASK = tp.Task("random", {"main": Stream(TRAIN, TRAIN, TRAIN)}, Tokenisation(prepend_bos=True))
each_kind = pytest.mark.parametrize("kind", KINDS)
METHODS = {
    "edge patching": tp.EdgePatching(edges=1),
    "node patching": tp.NodePatching(nodes=1, direction="denoising"),
    "attribution": tp.AtP(nodes=1),
    "attribution along a path": tp.AtP(nodes=1, steps=2),
    "attribution without a layer": tp.AtP(nodes=1, drop="layers"),
    "head importance": tp.HISP(nodes=1),
    "information flow": tp.InformationFlowRoutes(edges=1),
}


@each_kind
def test_patterns_are_the_models_own(kind: str) -> None:
    model = bridged(kind)
    backend = backend_of(model)
    found = attention_patterns(backend, Graph.of(model), TRAIN.clean, backend.observe(TRAIN.clean))
    _, seen = model.run_with_cache(TRAIN.clean.ids)
    for layer, pattern in enumerate(found):
        # Hugging Face's softmax is in float32 and cast back.
        assert error(pattern, seen[f"blocks.{layer}.attn.hook_pattern"].transpose(1, 2)) <= 1e-6


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NORMED_HEADS])
def test_a_nodes_score_is_the_sum_of_those_of_its_outgoing_edges(kind: str) -> None:
    model = bridged(kind)
    nodes = tp.AtP(nodes=1).score(model, TASK)
    masked = tp.Masked(model, tp.Masks(tp.edges(model)))
    ones = torch.ones(len(masked.sites), dtype=torch.float64, requires_grad=True)
    loss = -logit_difference(masked(TRAIN, mask=ones), TRAIN).mean()
    (gradient,) = torch.autograd.grad(loss, ones)
    sums = dict.fromkeys(masked.graph.writers, 0.0)
    for place, slope in enumerate((-gradient).tolist()):
        sums[masked.graph.name(place).partition("->")[0]] += slope
    assert error(nodes.values, torch.tensor(list(sums.values()), dtype=torch.float64)) <= 10 * EXACT[kind]


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "gemma2", "neox"])
def test_scores_are_those_of_transformer_lens_own_class(kind: str, method: Any) -> None:
    behind, own = bridged(kind), tp.from_huggingface(hf_model(kind), device="cpu")
    expected = METHODS[method].score(own, TASK).values
    assert error(METHODS[method].score(behind, TASK).values, expected) <= 1e-4
    assert expected.abs().max() > 1e-2
