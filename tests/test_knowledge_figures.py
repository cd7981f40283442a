"""Figures of knowledge against a plain loop over the model with its weights multiplied by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from knowledge_worlds import TEMPLATES, random_weights, small_world
from styles import fresh

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.knowledge.answering import answered
from tlprune.knowledge.baselines import weights_of
from tlprune.knowledge.case_figures import case_figures
from tlprune.learning.metrics import measure
from tlprune.task import Batch


@pytest.fixture(scope="module")
def model() -> Any:
    return fresh("gpt2", torch.float32)


@pytest.fixture(scope="module")
def circuit(model: Any) -> tp.Circuit:
    return random_weights(model)


@pytest.fixture(scope="module")
def found(model: Any, circuit: tp.Circuit) -> tp.KnowledgeFigures:
    return tp.knowledge_figures(model, circuit, small_world(), resamples=200)


@contextmanager
def without(model: Any, circuit: tp.Circuit) -> Iterator[Any]:
    """The model with the circuit's weights set to 0."""
    group, weights = weights_of(circuit), backend_of(model).parameters()
    before = {matrix.name: weights[matrix.name].detach().clone() for matrix in group.matrices}
    with torch.no_grad():
        for name, part in group.split(circuit.kept).items():
            weights[name][part.expand_as(weights[name])] = 0
        yield model
        for name, value in before.items():
            weights[name].copy_(value)


@torch.no_grad()
def by_hand(model: Any, batch: Batch) -> list[tuple[int, float, int]]:
    """Example, nats and rank of one answer after the other."""
    logits, rows = model(batch.clean.ids), []
    for example in range(len(batch)):
        for position, answer in zip(batch.positions[example], batch.answers[example], strict=True):
            if answer >= 0:
                own = logits[example, position]
                nats = -own.double().log_softmax(-1)[answer].item()
                rows.append((example, nats, 1 + sum(bool(other > own[answer]) for other in own)))
    return rows


@pytest.mark.parametrize(
    ("stream", "split"), [("main", "train"), ("main", "test"), ("control", "test"), ("text", "test")]
)
def test_figures_are_those_of_a_plain_loop(
    model: Any, circuit: tp.Circuit, found: Any, stream: str, split: str
) -> None:
    batch = getattr(small_world().streams[stream], split)
    full = by_hand(model, batch)
    for kind, removed in (("remaining", circuit), ("expressed", circuit.complement), ("full", None)):
        rows = full
        if removed is not None:
            with without(model, removed):
                rows = by_hand(model, batch)
        one = found.at(stream, split, kind=kind)
        nats, ranks = [row[1] for row in rows], [row[2] for row in rows]
        change = [row[1] - own[1] for row, own in zip(full, rows, strict=True)]
        assert one.answers == len(rows)
        assert one.perplexity.value == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)
        mean = sum(change) / len(change)
        assert one.ratio.value == pytest.approx(math.exp(-mean), rel=1e-5)
        spread = (one.change.mean.value, one.change.least, one.change.most)
        assert spread == pytest.approx((mean, min(change), max(change)), abs=1e-5)
        spread = (one.rank.mean.value, one.rank.least, one.rank.most)
        assert spread == pytest.approx((sum(ranks) / len(ranks), min(ranks), max(ranks)))
        for top, share in one.top.items():
            assert share.value == pytest.approx(sum(rank <= top for rank in ranks) / len(ranks))


def test_blocks_with_fewer_answers_weigh_less(found: Any) -> None:
    """14 answers less the 2 that the first block lacks; a mean of the blocks' means would be another number."""
    assert (found.at("text").answers, found.at("text").units) == (13, 3)


def test_templates_are_parts_of_their_case(model: Any, circuit: tp.Circuit, found: Any) -> None:
    batch = small_world().streams["main"].test
    with without(model, circuit):
        rows = by_hand(model, batch)
    for place, template in enumerate(TEMPLATES[1:]):
        own = [nats for example, nats, _ in rows if example % 2 == place]
        assert found.at(template=template).perplexity.value == pytest.approx(math.exp(sum(own) / 5), rel=1e-5)
    assert {(case.stream, case.split, case.template) for case in found.templates} == {
        ("main", "train", TEMPLATES[0]), ("control", "train", TEMPLATES[0]),
        *(("main", "test", one) for one in TEMPLATES[1:]), *(("control", "test", one) for one in TEMPLATES[:2]),
    }  # fmt: skip


def test_facts_are_drawn_with_all_their_sentences(model: Any, circuit: tp.Circuit) -> None:
    """Two equal sentences of a fact tell no more than one, and their interval is the same."""
    task = small_world()
    once = task.streams["main"].train
    twice = once.rows(torch.arange(5).repeat_interleave(2))
    twice = replace(twice, index=torch.arange(10))
    masked = tp.Masked(model, circuit, tp.Zero())
    found = {}
    for name, batch in {"once": once, "twice": twice, "apart": replace(twice, groups=None)}.items():
        own, full = answered(masked, ~circuit.kept, batch), answered(masked, torch.ones_like(circuit.kept), batch)
        found[name] = case_figures(own, full, batch.groups, resamples=2000, seed=0)
    assert found["twice"].ratio.as_dict() == pytest.approx(found["once"].ratio.as_dict(), rel=1e-5)
    width = {name: one.ratio.high - one.ratio.low for name, one in found.items()}
    assert width["apart"] == pytest.approx(width["once"] / math.sqrt(2), rel=0.15)
    assert (found["twice"].units, found["apart"].units) == (5, 10)


@pytest.mark.parametrize("style", ["gpt2", "softcap"])  # of the second the logits are not apart from the model
def test_reading_some_positions_at_a_time_changes_nothing(style: str) -> None:
    model = fresh(style)
    sites = tp.weights(model, "blocks.1.mlp.W_*")
    circuit = tp.Circuit(sites, torch.arange(len(sites)) % 5 == 0)
    batch, masked = small_world().streams["text"].test, tp.Masked(model, circuit, tp.Zero())
    whole, some = (answered(masked, ~circuit.kept, batch, most=most) for most in (1 << 20, 2 * 29))
    assert torch.equal(whole.rank, some.rank)
    assert torch.allclose(whole.nats, some.nats, rtol=1e-6)
    performance = measure(masked, ~circuit.kept, batch)
    assert performance.means()["perplexity"] == pytest.approx(whole.nats.mean().exp().item(), rel=1e-6)


def test_several_circuits_stand_in_one_table(model: Any, circuit: tp.Circuit, found: Any) -> None:
    pytest.importorskip("plotly")
    chance = tp.knowledge_baseline(model, circuit)
    both = tp.knowledge_figures(
        model, {"found": circuit, "random": chance}, small_world(), kinds=["remaining"], resamples=200
    )
    assert both.at("text").as_dict() == found.at("text").as_dict()
    assert both.at("text", circuit="random") != both.at("text")
    text = str(both)
    assert f"found: {len(circuit):,} of {len(circuit.sites):,} sites, {100 * both.sparsity():.2f}% sparse" in text
    for word in (
        "without found",
        "without random",
        "target, held out (5 facts)",
        "text, held out (3 blocks)",
        TEMPLATES[2],
    ):
        assert word in text
    told = both.as_dict()
    assert len(told["rows"]) == 3 * (5 + 6)
    assert told["circuits"]["random"]["kept"] == len(circuit)
    bars = both.plot().data
    assert [bar.name for bar in bars] == ["without found", "without random"]
    assert bars[0].y[1] == both.at().ratio.value
    assert len(both.plot_templates("control").data[0].y) == 3


def test_bad_input_is_refused(model: Any, circuit: tp.Circuit, found: Any) -> None:
    task = small_world()
    lacking = replace(task, streams={"main": task.streams["main"]})
    with pytest.raises(ValueError, match="has no 'control' and no 'text'"):
        tp.knowledge_figures(model, circuit, lacking)
    with pytest.raises(ValueError, match="need a circuit but got none"):
        tp.knowledge_figures(model, {}, task)
    with pytest.raises(ValueError, match="need the same sites"):
        tp.knowledge_figures(model, {"a": circuit, "b": random_weights(model, unit="row")}, task)
    with pytest.raises(ValueError, match="'rest' was asked for"):
        tp.knowledge_figures(model, circuit, task, kinds=["rest"])
    with pytest.raises(ValueError, match=r"without other in target, held out was asked for"):
        found.at(circuit="other")
    other = circuit.like(circuit.kept, {"model": {**backend_of(model).fingerprint(), "weights": "of another"}})
    with pytest.raises(ValueError, match=r"weights"):
        tp.knowledge_figures(model, other, task)
