"""Gradients along a path: where they add up to the whole effect, and which single gradients they are a mean of."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import STYLES, error, fresh, refuses_choice
from test_attribution import apart, built, masked_scores, task_of
from test_encoder_methods import classifier
from test_encoder_methods import task_of as classes
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.graph import Graph
from tlprune.masking.gradients import edge_gradients

LOSS = tp.LogitDifference()


@cache
def model_of(style: str) -> Any:
    return fresh(style)


def plain_loss(model: Any, prompts: tp.Tokens, batch: tp.Batch) -> float:
    """The loss of the model itself on some prompts."""
    logits = backend_of(model).logits(prompts, batch.positions)
    return float(LOSS(logits, batch, logits.log_softmax(-1)).detach())


def out_of(scores: tp.Scores, writers: set[str]) -> Tensor:
    """Which edges go out of some writers."""
    return torch.tensor([name.partition("->")[0] in writers for name in scores.graph.edges()])


# ---- what adds up


@pytest.mark.parametrize("style", STYLES)
def test_edges_out_of_the_input_add_up_to_the_loss_on_the_twins(style: str) -> None:
    """``sum_r (x~ - x) . mean dL/dx_r = (x~ - x) . mean dL/dx = L(corrupted) - L(clean)``, up to 64 points' error."""
    model, batch = model_of(style), task_of().discovery.train()
    expected = plain_loss(model, batch.corrupt, batch) - plain_loss(model, batch.clean, batch)
    assert abs(expected) > 1e-2
    scores = tp.EAPIG(steps=64, points="middle").score(model, task_of())
    assert float(scores.values[out_of(scores, {"input"})].sum()) == pytest.approx(expected, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize(("points", "order"), [("right", 1), ("left", 1), ("middle", 2), ("ends", 2)])
def test_points_err_by_the_order_of_their_rule(points: Any, order: int) -> None:
    model, batch = model_of("gpt2"), task_of().discovery.train()
    expected = plain_loss(model, batch.corrupt, batch) - plain_loss(model, batch.clean, batch)
    errors = []
    for steps in (32, 64):
        scores = tp.EAPIG(steps=steps, points=points).score(model, task_of())
        errors.append(float(scores.values[out_of(scores, {"input"})].sum()) - expected)
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize(
    ("style", "embeddings", "ablation"),
    [
        ("gpt2", "merged", tp.Resample()),
        ("gpt2", "separate", tp.Resample()),
        ("gpt2", "kept", tp.Mean(task_of().discovery.validation().clean)),
        ("llama", "merged", tp.Mean(task_of().discovery.validation().clean)),
        ("gemma2", "merged", tp.Resample()),
        ("parallel", "merged", tp.Resample()),
    ],
)
def test_along_activations_edges_out_of_each_place_add_up_to_its_ablation(
    style: str, embeddings: Any, ablation: Any
) -> None:
    """All heads of a layer, an MLP, or the input: the loss with every edge out of it ablated, less the model's."""
    model, batch = model_of(style), task_of().discovery.train()
    method = tp.EAPIG(path="activations", points="middle", steps=24, embeddings=embeddings)
    scores = method.score(model, task_of(), ablation=ablation)
    graph = scores.graph
    full = loss_at(model, scores, batch, torch.zeros(len(scores.sites), dtype=torch.bool), ablation)
    places = [{*graph.embeddings}, {f"a0.h{head}" for head in range(4)}, {"m0"}, {f"a1.h{head}" for head in range(4)}]
    for place in filter(None, places):
        chosen = out_of(scores, place)
        expected = loss_at(model, scores, batch, chosen, ablation) - full
        assert float(scores.values[chosen].sum()) == pytest.approx(expected, rel=2e-2, abs=2e-3)


def loss_at(model: Any, scores: tp.Scores, batch: tp.Batch, ablated: Tensor, ablation: Any) -> float:
    masked = tp.Masked(model, tp.Circuit(scores.sites, ~ablated), ablation)
    logits = masked(batch)
    return float(LOSS(logits, batch, logits).detach())


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("path", ["inputs", "activations"])
def test_encoders_add_up_too(path: Any) -> None:
    model = classifier().double()
    task = classes(model)
    scores = tp.EAPIG(path=path, points="middle", steps=8).score(model, task)
    chosen, train = out_of(scores, {"input"}), task.discovery.train()
    full = plain_loss(model, train.clean, train)
    rise = plain_loss(model, train.corrupt, train) - full
    assert float(scores.values[chosen].sum()) == pytest.approx(rise, rel=2e-2)


# ---- which gradients it is a mean of


@pytest.mark.parametrize("path", ["inputs", "activations"])
@pytest.mark.parametrize("style", ["gpt2", "gemma2"])
def test_the_right_end_alone_is_eap(style: str, path: Any) -> None:
    found = tp.EAPIG(path=path, points="right", steps=1).score(model_of(style), task_of()).values
    assert apart(found, tp.EAP().score(model_of(style), task_of()).values) <= 1e-9


def test_both_ends_are_the_mean_of_clean_and_corrupted_gradients() -> None:
    """With the same differences: "clean-corrupted"."""
    model, batch = model_of("gpt2"), task_of().discovery.train()
    backend, graph = backend_of(model), Graph.of(model)
    sent, replaced = backend.observe(batch.clean), backend.observe(batch.corrupt)

    def loss(logits: Tensor) -> Tensor:
        return LOSS(logits, batch, logits)

    ends = [
        edge_gradients(backend, graph, tokens, replaced, loss, positions=batch.positions, sent=sent)
        for tokens in (batch.clean, batch.corrupt)
    ]
    assert apart(ends[0], ends[1]) > 0.1
    found = tp.EAPIG(points="ends", steps=1).score(model, task_of()).values
    assert apart(found, -(ends[0] + ends[1]) / 2) <= 1e-9


def test_paths_of_activations_and_of_inputs_are_not_the_same() -> None:
    model, task = model_of("gpt2"), task_of()
    pair = [tp.EAPIG(path=path).score(model, task).values for path in ("inputs", "activations")]
    assert apart(*pair) > 0.01
    graph = Graph.of(model)
    first = out_of(tp.Scores(tp.edges(model), pair[0]), {*graph.embeddings})
    assert error(pair[0][first], pair[1][first]) <= 1e-12  # of the input both are one


def test_kl_along_a_path_is_not_flat() -> None:
    model, task = model_of("gpt2"), task_of()
    kl = tp.EAPIG(objective=tp.KL(), points="middle", steps=64).score(model, task)
    batch = task.discovery.train()
    full, other = (
        backend_of(model).logits(own, batch.positions).log_softmax(-1) for own in (batch.clean, batch.corrupt)
    )
    expected = float(tp.KL()(other, batch, full).detach())
    assert float(kl.values[out_of(kl, {"input"})].sum()) == pytest.approx(expected, rel=1e-2)


# ---- what it finds


@pytest.mark.parametrize("path", ["inputs", "activations"])
@pytest.mark.parametrize("name", ["or", "and", "adder"])
def test_gates_are_found_along_a_path(name: str, path: Any) -> None:
    """Half way to the ablated model an OR gate is no longer saturated."""
    gate = built(name)
    scores = tp.EAPIG(path=path).score(gate.model, gate.task)
    assert scores.top(len(gate.circuit)) == gate.circuit


def test_unknown_words_are_refused() -> None:
    with refuses_choice("path must be one of inputs, activations but is 'both'"):
        tp.EAPIG(path="both")  # pyright: ignore
    with refuses_choice("points must be one of right, left, middle, ends but is 'all'"):
        tp.EAPIG(points="all")  # pyright: ignore


def test_zero_ablation_starts_from_nothing_and_gives_numbers() -> None:
    """The left end is the model on embeddings of 0, whose norm is that of its epsilon."""
    model, task = model_of("gpt2"), task_of()
    found = tp.EAPIG(points="left").score(model, task, ablation=tp.Zero()).values
    assert bool(found.isfinite().all())
    assert apart(found, masked_scores(model, task.discovery.train(), ablation=tp.Zero())) > 0.01
