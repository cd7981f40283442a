"""Scores of attention edges: patching by brute force, its first order in closed form, and what was planted."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import backend_of_style, error, model_of, random_batch
from test_attention_edges import NAMES, PLACES, SPANS, all_names
from torch import Tensor

import tlprune as tp
from tlprune.task import MAIN, Discovery

BATCH = dataclasses.replace(random_batch(), spans=SPANS, span_names=NAMES)
LOSS = tp.LogitDifference()
# What is moved in the planted models: by position in most; where the note of a key is looked for, also from elsewhere.
MOVED = {
    "copy": ["a1.h1<v>@copied->end"],
    "and": ["a0.h2<v>@y->end", "a0.h3<v>@x->end"],
    "adder": ["a0.h2<v>@y->end", "a0.h3<v>@x->end"],
    "sentiment": ["a0.h0<v>@word->end"],
    "induction": [
        *("a0.h2<v>@key->value", "a0.h2<v>@rest->rest", "a1.h1<k>@value->end", "a1.h1<k>@rest->end"),
        "a1.h1<v>@value->end",
    ],
}


def discovery(batch: Any = BATCH) -> Discovery:
    return Discovery("mine", {MAIN: (batch, batch)}, {"name": "mine", "fingerprint": "x"})


def loss_of(masked: Any, mask: Tensor, batch: Any = BATCH) -> Tensor:
    logits = masked(batch, mask=mask)
    return LOSS(logits, batch, logits)


def masked_of(style: str, **options: Any) -> Any:
    sites = tp.attention_edges(model_of(style), spans=NAMES, **options)
    return tp.Masked(model_of(style), tp.Masks(sites))


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_patching_replaces_one_at_a_time(direction: Any) -> None:
    method = tp.AttentionPatching(spans=NAMES, direction=direction, batch_size=5)
    scores, masked = method.score(model_of("llama"), discovery()), masked_of("llama")
    ones = torch.ones(len(scores.sites), dtype=torch.float64)
    batch = BATCH if direction == "noising" else dataclasses.replace(BATCH, clean=BATCH.corrupt, corrupt=BATCH.clean)
    for index in range(0, len(ones), 5):
        rise = loss_of(masked, ones.index_fill(0, torch.tensor(index), 0.0), batch) - loss_of(masked, ones, batch)
        expected = rise if direction == "noising" else -rise
        assert abs(scores.values[index] - expected) <= 1e-6, scores.sites.name(index)
    assert scores.values.abs().max() > 0.01


@pytest.mark.parametrize("style", ["gpt2", "gemma2"])
def test_gradients_are_patching_to_first_order(style: str) -> None:
    """A mask lowered by ``e`` alone raises the loss by ``e`` times the score, up to what falls with the square of e."""
    scores = tp.AttentionEAP(spans=NAMES, batch_size=2).score(model_of(style), discovery())
    masked, ones = masked_of(style), torch.ones(len(scores.sites), dtype=torch.float64)
    whole = loss_of(masked, ones)
    for index in scores.values.abs().argsort(descending=True)[:6].tolist():
        remainders = []
        for step in (1e-3, 5e-4):
            rise = loss_of(masked, ones.index_fill(0, torch.tensor(index), 1 - step)) - whole
            remainders.append(float(rise - step * scores.values[index]))
        assert abs(remainders[1]) <= abs(scores.values[index]) * 5e-4 * 0.05
        assert remainders[0] == pytest.approx(4 * remainders[1], rel=0.1, abs=1e-12)


def keep(seen: dict[str, Tensor], value: Tensor, hook: Any) -> None:
    seen[hook.name] = value


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_scores_of_values_are_what_attention_passes_on(style: str) -> None:
    """``sum A (v~ - v) . dL/dz`` over the positions of both spans, by TransformerLens' own cache and autograd."""
    model, seen = model_of(style), {}
    heads = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)
    points = [f"blocks.{layer}.attn.hook_" for layer in range(model.cfg.n_layers)]
    hooks = [(f"{point}{kind}", partial(keep, seen)) for point in points for kind in ("pattern", "v", "z")]
    logits = model.run_with_hooks(BATCH.clean.ids, fwd_hooks=hooks)[:, -1:]
    written = [seen[f"{point}z"] for point in points]
    gradients = torch.autograd.grad(LOSS(logits, BATCH, logits), written)
    _, twins = model.run_with_cache(BATCH.corrupt.ids)
    scores = tp.AttentionEAP(spans=NAMES).score(model, discovery())
    for layer, point in enumerate(points):
        change = (twins[f"{point}v"] - seen[f"{point}v"]).repeat_interleave(heads, 2)
        told = torch.einsum("bjhd,bphd->bhpj", change, gradients[layer]) * seen[f"{point}pattern"]
        for index, name in enumerate(all_names(scores.sites)):
            reader, _, pair = name.partition("@")
            if not (reader.startswith(f"a{layer}.") and reader.endswith("<v>")):
                continue
            head = int(reader[:-3].partition(".")[2].lstrip("khv"))
            source, query = ([*NAMES, "rest"].index(end) == PLACES for end in pair.split("->"))
            inside = query[:, :, None] & source[:, None, :]
            expected = (told[:, head * heads : (head + 1) * heads].sum(1) * inside).sum()
            assert abs(scores.values[index] - expected) <= 1e-9, name


def test_scores_of_all_pairs_add_up_to_those_without_spans() -> None:
    model = model_of("llama")
    by_span = tp.AttentionEAP(spans=NAMES).score(model, discovery())
    together = tp.AttentionEAP().score(model, discovery())
    assert error(by_span.values.view(-1, 9).sum(1), together.values) <= 1e-12
    assert together.values.abs().max() > 1e-3


@pytest.mark.parametrize("objective", [tp.LogitDifference(), tp.KL()], ids=["difference", "kl"])
def test_along_the_path_scores_add_up_to_the_loss_without_any(objective: Any) -> None:
    batch, errors = BATCH, []
    masked = masked_of("gpt2")
    reference = backend_of_style("gpt2").logits(batch.clean, batch.positions).log_softmax(-1)
    ones = torch.ones(len(masked.sites), dtype=torch.float64)
    full, none = (float(objective(masked(batch, mask=at * ones), batch, reference)) for at in (1, 0))
    for steps in (20, 40):
        scores = tp.AttentionEAP(spans=NAMES, steps=steps, objective=objective).score(model_of("gpt2"), discovery())
        errors.append(float(scores.values.sum()) - (none - full))
    assert abs(errors[1]) < 0.1 * abs(none - full)
    assert errors[0] == pytest.approx(2 * errors[1], rel=0.15)  # points on the right, so the error falls with 1/n


@pytest.mark.parametrize("name", MOVED)
def test_patching_finds_what_is_moved(name: str) -> None:
    """Alone each of them changes the answer's logit difference by several logits, and no other by a tenth."""
    planted, moved = tp.planted(name), MOVED[name]
    method = tp.AttentionPatching(attention_edges=len(moved), spans=planted.task.span_names)
    scores = method.score(planted.model, planted.task)
    assert sorted(scores.top(threshold=0.1).names) == sorted(moved)
    assert min(scores[one] for one in moved) > 2
    found = method.find(planted.model, planted.task)
    assert found == scores.top(len(moved))
    assert tp.method_from(found.provenance) == method
    assert tp.evaluate(planted.model, found, planted.task)["circuit"].means()["accuracy"] == 1.0


@pytest.mark.parametrize("name", ["copy", "and", "adder", "sentiment"])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_find_what_is_moved_by_position(name: str, seed: int) -> None:
    planted = tp.planted(name, seed=seed)
    pairs, spans = tp.tasks.attended_pairs(planted.task), planted.task.span_names
    truth = tp.AttentionPatching(attention_edges=len(MOVED[name]), spans=spans, pairs=pairs)
    method = tp.AttentionEAP(attention_edges=len(MOVED[name]), spans=spans, pairs=pairs)
    assert method.find(planted.model, planted.task) == truth.find(planted.model, planted.task)


def test_a_saturated_key_has_no_gradient_but_along_the_path() -> None:
    planted, spans = tp.planted("induction"), ("key", "value", "end")
    lost = tp.AttentionPatching(spans=spans).score(planted.model, planted.task)["a1.h1<k>@value->end"]
    first, path = (
        tp.AttentionEAP(spans=spans, steps=steps).score(planted.model, planted.task)["a1.h1<k>@value->end"]
        for steps in (1, 10)
    )
    assert first < 0.1
    assert 0.5 < path < lost


def test_scores_by_span_need_prompts_with_spans() -> None:
    with pytest.raises(ValueError, match="the prompts say nothing of spans"):
        tp.AttentionEAP(spans=NAMES).score(model_of("gpt2"), discovery(random_batch()))
