"""Views of a prompt: patterns are TransformerLens' own, and colours the sums of scores at their positions."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from typing import Any

import pytest
import torch
from bridges import bridged
from styles import error, fresh, random_batch

import tlprune as tp
from tlprune.sites import Neurons, Sites

MODELS = {"gpt2": lambda: fresh("gpt2"), "llama": lambda: fresh("llama"), "bridged gpt2": lambda: bridged("gpt2")}
needs_circuitsvis = pytest.mark.skipif(
    importlib.util.find_spec("circuitsvis") is None, reason="circuitsvis is not installed"
)


def circuit_of(model: Any) -> tp.Circuit:
    return tp.Circuit.from_nodes(model, ["input", "a0.h1", "a1.h0", "a2.h2", "m1"])


@pytest.mark.parametrize("name", MODELS)
def test_patterns_are_those_of_the_models_own_run(name: str) -> None:
    model = MODELS[name]()
    ids = random_batch(2, seed=3).clean.ids
    found = tp.head_patterns(model, circuit_of(model), ids[1])
    assert list(found) == ["a0.h1", "a1.h0", "a2.h2"]
    _, cache = model.run_with_cache(ids[1:])
    for head, pattern in found.items():
        layer, number = (int(part) for part in head[1:].split(".h"))
        assert error(pattern, cache[f"blocks.{layer}.attn.hook_pattern"][0, number]) <= 1e-9, head
    some = tp.head_patterns(model, circuit_of(model), ids[1], heads=["a1.h0"])
    assert list(some) == ["a1.h0"] and torch.equal(some["a1.h0"], found["a1.h0"])


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_left_out(left: bool) -> None:
    model = fresh("gpt2")
    ids = random_batch(1, seed=3).clean.ids
    pad = torch.zeros(1, 3, dtype=ids.dtype)
    parts, masks = [ids, pad], [torch.ones_like(ids), pad]
    tokens = tp.Tokens(torch.cat(parts[::-1] if left else parts, 1), torch.cat(masks[::-1] if left else masks, 1))
    found, expected = (tp.head_patterns(model, circuit_of(model), prompt) for prompt in (tokens, ids[0]))
    assert all(torch.equal(found[head], expected[head]) for head in expected)


def test_what_is_no_head_of_the_circuit_or_no_single_prompt_is_refused() -> None:
    model = fresh("gpt2")
    ids = random_batch(2, seed=3).clean.ids
    with pytest.raises(ValueError, match=r"which are a0\.h1, a1\.h0, a2\.h2, but these were asked for: a0\.h0\."):
        tp.head_patterns(model, circuit_of(model), ids[0], heads=["a0.h0"])
    with pytest.raises(ValueError, match=r"which are none, but these were asked for: none\."):
        tp.head_patterns(model, tp.Circuit.from_nodes(model, ["m0"]), ids[0])
    with pytest.raises(ValueError, match="A view is of one prompt but got 2"):
        tp.head_patterns(model, circuit_of(model), tp.Tokens(ids))
    with pytest.raises(ValueError, match="Words need a model with a tokenizer"):
        tp.head_patterns(model, circuit_of(model), "some words")


def test_the_importance_of_a_position_is_the_sum_over_sites_at_its_span() -> None:
    task = tp.planted("induction").task
    model = tp.planted("induction").model
    batch = task.test.rows(torch.arange(3))
    sites = tp.edges(model, spans=task)
    generator = torch.Generator().manual_seed(0)
    scores = tp.Scores(sites, torch.randn(len(sites), generator=generator))
    found = tp.position_importance(scores, batch)
    sums: dict[str, float] = {}
    for index in range(len(sites)):
        span = sites.name(index).rpartition("@")[2]
        sums[span] = sums.get(span, 0.0) + abs(float(scores.values[index]))
    spans = batch.spans
    assert spans is not None and len({round(value, 4) for value in sums.values()}) == len(sums) > 2
    for row, numbers in zip(found.tolist(), spans.tolist(), strict=True):
        names = ["rest" if number < 0 else batch.span_names[number] for number in numbers]
        assert row == pytest.approx([sums[name] for name in names], rel=1e-4)
    with pytest.raises(ValueError, match="needs scores by span but"):
        tp.position_importance(scores.without_spans(), batch)
    both = tp.Scores(Sites((*sites.groups, Neurons((0,), 2))), torch.cat([scores.values, torch.full((2,), 9.0)]))
    assert torch.allclose(tp.position_importance(both, batch), found)


# ---- as CircuitsVis shows them


def shown(view: Any) -> dict[str, Any]:
    """The data in a view's page."""
    found = re.search(r"^\s*(\{.*\})\s*$", str(view), re.MULTILINE)
    assert found
    return json.loads(found[1])


@needs_circuitsvis
def test_a_view_of_attention_has_the_heads_names_tokens_and_patterns() -> None:
    model = tp.load("testbed")
    task = tp.tasks.ioi(model)
    prompt = task.test.clean.rows(torch.tensor([0]))
    circuit = tp.Circuit.from_nodes(model, ["a1.h0", "a0.h3"])
    data = shown(tp.attention_view(model, circuit, prompt))
    patterns = tp.head_patterns(model, circuit, prompt)
    assert data["attentionHeadNames"] == ["a0.h3", "a1.h0"]
    assert torch.allclose(torch.tensor(data["attention"]), torch.stack([*patterns.values()]), atol=1e-5)
    assert "".join(data["tokens"]) == model.tokenizer.decode(prompt.trimmed().ids[0])
    assert len(data["tokens"]) == prompt.trimmed().ids.shape[1]


@needs_circuitsvis
def test_a_view_of_tokens_has_a_number_for_each_that_is_no_padding() -> None:
    model = tp.load("testbed")
    ids = model.to_tokens("Mary gave the ball to John", prepend_bos=False)[0]
    values = torch.arange(float(len(ids)))
    assert shown(tp.token_view(model, ids, values))["values"] == values.tolist()
    padded = tp.Tokens(torch.cat([ids, ids[:2]])[None], torch.tensor([[1] * len(ids) + [0, 0]]))
    data = shown(tp.token_view(model, padded, torch.cat([values, torch.tensor([7.0, 7.0])])))
    assert data["values"] == values.tolist() and len(data["tokens"]) == len(ids)
    with pytest.raises(ValueError, match=f"a number for each of {len(ids)} positions but got 1"):
        tp.token_view(model, ids, torch.ones(1))
    numbers = shown(tp.token_view(fresh("gpt2"), torch.tensor([3, 5]), torch.ones(2)))
    assert numbers["tokens"] == ["3", "5"]


def test_without_circuitsvis_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("circuitsvis", "circuitsvis.attention", "circuitsvis.tokens"):
        monkeypatch.setitem(sys.modules, name, None)
    model, ids = fresh("gpt2"), torch.tensor([1, 2])
    with pytest.raises(ModuleNotFoundError, match="Run pip install circuitsvis"):
        tp.attention_view(model, circuit_of(model), ids)
    with pytest.raises(ModuleNotFoundError, match="Run pip install circuitsvis"):
        tp.token_view(model, ids, torch.ones(2))
