"""Exact patching is a loop over single runs, in both directions, and sees of logical gates what such a loop can see."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import STYLES, backend_of_style, error, fresh, model_of, random_batch, refuses_choice
from test_encoder_methods import classifier, task_of
from test_node_theorems import point_of
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.graph import Graph
from tlprune.learning.objectives import logit_difference
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.plain import plain_run
from tlprune.models.planted import Planted
from tlprune.task import Stream, Tokenisation

TRAIN = random_batch(5, seed=1)
TASK = tp.Task("random", {"main": Stream(TRAIN, random_batch(2), random_batch(2))}, Tokenisation(prepend_bos=True))
ABLATIONS = {"resample": tp.Resample(), "zero": tp.Zero(), "mean": tp.Mean(TRAIN.corrupt)}
each_style = pytest.mark.parametrize("style", STYLES)


@cache
def built(name: str) -> Planted:
    return tp.planted(name)


def loss(logits: Tensor) -> Tensor:
    """The negative logit difference at the answer."""
    return -logit_difference(logits[:, -1:], TRAIN).mean()


# ---- against runs one at a time


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize(
    ("ablation", "direction"), [*((one, "noising") for one in ABLATIONS), ("resample", "denoising")]
)
@each_style
def test_edges_are_those_of_the_plain_reference_one_at_a_time(style: str, ablation: str, direction: Any) -> None:
    model = model_of(style)
    found = tp.EdgePatching(edges=1, direction=direction).score(model, TASK, ablation=ABLATIONS[ablation])
    graph, sign = Graph.of(model), 1 if direction == "noising" else -1
    into, other = (TRAIN.clean, TRAIN.corrupt)[::sign]
    replaced = ABLATIONS[ablation].replaced(backend_of_style(style), into, other)
    ones = torch.ones(len(graph), dtype=torch.float64)
    whole = loss(plain_run(model, graph, into, ones, replaced))
    places = torch.randperm(len(graph), generator=torch.Generator().manual_seed(3))[:12]
    without = [ones.index_fill(0, place, 0) for place in places]
    expected = sign * torch.stack([loss(plain_run(model, graph, into, mask, replaced)) - whole for mask in without])
    assert error(found.values[places], expected.detach()) <= 1e-9
    assert expected.abs().max() > 1e-3


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("direction", ["noising", "denoising"])
@each_style
def test_nodes_are_activation_patching_by_hooks(style: str, direction: str) -> None:
    model, method = model_of(style), tp.NodePatching(nodes=1, direction=direction)
    found = method.score(model, TASK)
    into, other = (TRAIN.clean, TRAIN.corrupt) if direction == "noising" else (TRAIN.corrupt, TRAIN.clean)
    _, seen = model.run_with_cache(other.ids)
    changes = []
    for name in (found.sites.name(index) for index in range(len(found.sites))):
        point, place = point_of(name)

        def patch(value: Tensor, hook: Any, place: Any = place) -> Tensor:
            value = value.clone()
            value[place] = seen[hook.name][place]
            return value

        changes.append(loss(model.run_with_hooks(into.ids, fwd_hooks=[(point, patch)])) - loss(model(into.ids)))
    expected = torch.stack(changes) * (1 if direction == "noising" else -1)
    assert error(found.values, expected.detach()) <= 1e-9
    assert expected.abs().min() > 1e-6


@pytest.mark.parametrize("method", [tp.NodePatching(), tp.EdgePatching(), tp.EdgePatching(direction="denoising")])
def test_the_number_of_pairs_per_pass_changes_nothing(method: Any) -> None:
    """Less than the examples of one mask, and those of several masks."""
    found = [dataclasses.replace(method, batch_size=size).score(model_of("lnpre"), TASK) for size in (3, 64)]
    assert error(found[0].values, found[1].values) <= 1e-12


def test_kl_is_of_the_full_model_in_both_directions() -> None:
    """Without any node patched it is 0 in the clean run; in the twin's, restoring the input restores everything."""
    model = model_of("gpt2")
    noising = tp.NodePatching(nodes=1, objective=tp.KL()).score(model, TASK)
    assert noising.values.min() > 0
    denoising = tp.NodePatching(nodes=1, objective=tp.KL(), direction="denoising").score(model, TASK)
    full, twin = (model(tokens.ids)[:, -1].detach().log_softmax(-1) for tokens in (TRAIN.clean, TRAIN.corrupt))
    assert denoising["input"] == pytest.approx(float((full.exp() * (full - twin)).sum(-1).mean()), rel=1e-9)
    assert noising["input"] == pytest.approx(denoising["input"], rel=1e-9)


def test_an_objective_is_of_its_own_stream() -> None:
    streams = {"main": TASK.streams["main"], "other": Stream(random_batch(3, seed=7), TRAIN, TRAIN)}
    both = dataclasses.replace(TASK, streams=streams)
    alone = dataclasses.replace(TASK, streams={"main": streams["other"]})
    model = model_of("attention_only")
    found = tp.NodePatching(nodes=1, objective=tp.LogitDifference(on="other")).score(model, both)
    assert torch.equal(found.values, tp.NodePatching(nodes=1).score(model, alone).values)


def test_effects_on_the_logits_alone_add_up_where_no_norm_mixes_them() -> None:
    """A logit difference is linear in what the logits read."""
    model = model_of("no_norm")
    found = tp.EdgePatching(edges=1).score(model, TASK)
    masked = Masked(model, Masks(found.sites))
    (last,) = (readers for readers in found.graph.readers if readers.kind == "logits")
    without = torch.ones(len(found.sites), dtype=torch.float64)
    without[last.start :] = 0
    together = loss(masked(TRAIN, mask=without)) - loss(model(TRAIN.clean.ids))
    assert float(found.values[last.start :].sum()) == pytest.approx(float(together.detach()), rel=1e-9)


@NEEDS_HOOKED_TRANSFORMER
def test_encoders_are_patched_in_their_own_engine() -> None:
    model = classifier()
    task = task_of(model)
    found, train = tp.EdgePatching(edges=1).score(model, task), task.discovery.train()
    masked, ones = Masked(model, Masks(found.sites)), torch.ones(len(found.sites))
    expected = torch.stack([
        -logit_difference(masked(train, mask=ones.index_fill(0, torch.tensor(place), 0)), train).mean()
        for place in range(len(found.sites))
    ]) + logit_difference(masked(train, mask=ones), train).mean()  # fmt: skip
    assert error(found.values, expected.detach()) <= 1e-5
    assert {"input->a0.h1<v>", "a0.h1->logits"} <= set(found.top(5).edges)
    others = [float(found[f"a0.h{head}->logits"]) for head in (0, 2, 3)]
    assert max(map(abs, others)) <= 1e-6  # these heads write nothing


# ---- gates


def moved(method: Any, planted: str) -> set[str]:
    """The sites whose score is not 0; those that help, because none harms."""
    found = method.score(built(planted).model, built(planted).task)
    assert found.values.min() > -1e-4
    return set(found.top(threshold=1e-2).names)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("gate", ["and", "or", "adder"])
def test_each_direction_sees_its_gates_and_no_false_site(gate: str, direction: str) -> None:
    """Losing one input breaks an AND but no OR; bringing one back mends an OR but no AND."""
    circuit = built(gate).circuit
    behind = {edge for edge in circuit.edges if edge.startswith("m1")}
    misses = {"and": "denoising", "or": "noising"}.get(gate) == direction
    assert moved(tp.EdgePatching(edges=1, direction=direction), gate) == (behind if misses else set(circuit.edges))
    nodes = {"input", "m1"} if misses else set(circuit.nodes)
    assert moved(tp.NodePatching(nodes=1, direction=direction), gate) == nodes


# ---- what is refused


@pytest.mark.parametrize("ablation", [tp.Zero(), tp.Mean()], ids=["zero", "mean"])
@pytest.mark.parametrize("method", [tp.EdgePatching, tp.NodePatching])
def test_denoising_needs_a_twin_to_run_on(method: Any, ablation: Any) -> None:
    with pytest.raises(ValueError, match="needs Resample ablation, but got"):
        method(direction="denoising").score(model_of("gpt2"), TASK, ablation=ablation)


def test_a_direction_is_one_of_two() -> None:
    with refuses_choice("'noising' or 'denoising' but is 'both'"):
        tp.EdgePatching(direction="both")  # pyright: ignore[reportArgumentType]


def test_a_logit_difference_without_foils_is_refused() -> None:
    without = dataclasses.replace(TRAIN, foils=torch.full_like(TRAIN.foils, -100))
    task = dataclasses.replace(TASK, streams={"main": Stream(without, without, without)})
    with pytest.raises(ValueError, match="needs a foil for each answer"):
        tp.NodePatching(nodes=1).score(model_of("gpt2"), task)
    assert tp.NodePatching(nodes=1, objective=tp.CrossEntropy()).score(model_of("gpt2"), task).values.abs().max() > 0


def test_noise_on_edges_is_refused() -> None:
    with pytest.raises(ValueError, match="Gaussian noise is added to heads, MLPs and neurons"):
        tp.EdgePatching(edges=1).score(model_of("gpt2"), TASK, ablation=tp.GaussianNoise())


def test_what_is_not_a_number_is_no_score() -> None:
    """Of a token that only twins have, in a model that was sound when it was first looked at."""
    model = fresh("gpt2")
    tp.NodePatching(nodes=1).score(model, TASK)
    only = {*TRAIN.corrupt.ids.flatten().tolist()} - {*TRAIN.clean.ids.flatten().tolist()}
    with torch.no_grad():
        backend_of(model).parameters()["embed.W_E"][min(only)] = float("nan")
    with pytest.raises(FloatingPointError, match="scores are not numbers"):
        tp.NodePatching(nodes=1).score(model, TASK)
