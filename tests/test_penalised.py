"""Subnetwork probing and uniform gradient sampling: what a price does, at both levels, and under learned constants."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from styles import fresh, random_batch

import tlprune as tp
from tlprune.methods.alive import DeadCircuitError
from tlprune.methods.penalised import Penalised
from tlprune.methods.subnetwork_probing import INITIAL
from tlprune.models.planted import Planted
from tlprune.selection.top_connected import TopConnected
from tlprune.task import Stream, Tokenisation

QUICK = {"steps": 12, "samples": 1, "rate": 0.2}
EACH = pytest.mark.parametrize("kind", [tp.SubnetworkProbing, tp.UGS])


@cache
def built(name: str, seed: int = 0) -> Planted:
    return tp.planted(name, seed=seed)


@cache
def random_model(style: str = "lnpre") -> Any:
    return fresh(style, torch.float32)


def random_task() -> tp.Task:
    stream = Stream(*(random_batch(8, seed=seed) for seed in (1, 2, 3)))
    return tp.Task("random", {"main": stream}, Tokenisation(prepend_bos=True))


# ---- the price


@EACH
def test_the_higher_the_price_the_fewer_are_kept(kind: Any) -> None:
    """What costs nothing stays, but for a few that a random model is better off without."""
    runs = [kind(regularisation=price, **QUICK).find(random_model(), random_task()) for price in (0.0, 10.0)]
    assert len(runs[0].sites) * 0.9 < len(runs[0]) > len(runs[1]) > 0
    with pytest.raises(DeadCircuitError, match="none of its 0 edges") as told:
        kind(regularisation=3000.0, **QUICK).find(random_model(), random_task())
    assert len(told.value.circuit) == 0 and told.value.scores.values.max() < 0


@EACH
@pytest.mark.parametrize("name", ["copy", "induction", "adder"])
def test_the_price_alone_finds_what_was_planted_without_being_told_its_size(kind: Any, name: str) -> None:
    one = built(name)
    assert kind(steps=40).find(one.model, one.task).edges == one.circuit.edges


def test_the_noise_of_one_sample_closes_an_input_of_an_and_gate_that_four_keep_open() -> None:
    one = built("and")
    found = tp.SubnetworkProbing(steps=60).find(one.model, one.task)
    assert found.edges == one.circuit.edges
    assert len(tp.SubnetworkProbing(steps=60, samples=1).find(one.model, one.task)) < len(found)


@EACH
def test_both_branches_of_an_or_gate_are_kept_since_each_stands_in_for_the_noise_of_the_other(kind: Any) -> None:
    """Either would do for a hard circuit, and a price that is high enough closes one."""
    one = built("or", 1)
    assert kind(steps=40).find(one.model, one.task).edges == one.circuit.edges


@EACH
def test_a_size_takes_the_gates_that_are_most_likely_open(kind: Any) -> None:
    method = kind(edges=7, **QUICK)
    scores = method.score(random_model(), random_task())
    assert method.find(random_model(), random_task()) == TopConnected().select(scores, 7)
    free = dataclasses.replace(method, edges=None).find(random_model(), random_task())
    assert torch.equal(free.kept, scores.values > 0)


@EACH
def test_the_objective_is_the_one_that_is_asked_for(kind: Any) -> None:
    scores = [
        kind(objective=objective, **QUICK).score(random_model(), random_task())
        for objective in (tp.KL(), tp.CrossEntropy(), 2 * tp.CrossEntropy())
    ]
    assert not torch.allclose(scores[0].values, scores[1].values)
    assert not torch.allclose(scores[1].values, scores[2].values)
    told = scores[2].provenance["method"]["objective"]
    assert tp.method_from(scores[2].provenance).objective == 2 * tp.CrossEntropy(), told


def test_published_starts() -> None:
    """A gate whose noise is at its median has the value 0.9; UGS starts at log-odds of 1."""
    gate = tp.SubnetworkProbing().gate()
    assert gate.low + (gate.high - gate.low) * torch.sigmoid(torch.tensor(INITIAL)) == pytest.approx(0.9)
    assert tp.UGS().gate().initial == 1


# ---- nodes


@EACH
@pytest.mark.parametrize("name", ["copy", "induction"])
def test_heads_and_mlps_of_a_planted_circuit_are_found(kind: Any, name: str) -> None:
    one = built(name)
    found = kind(level="nodes", steps=30).find(one.model, one.task)
    assert found.sites == tp.nodes(one.model, "a*|m*")
    assert found.names == [node for node in one.circuit.nodes if node != "input"]
    assert found.provenance["convention"] is None


@EACH
def test_a_number_of_nodes_is_exact(kind: Any) -> None:
    found = kind(level="nodes", nodes=3, **QUICK).find(random_model(), random_task())
    assert len(found) == 3
    with pytest.raises(ValueError, match="keep a number of edges but were given nodes=3"):
        kind(nodes=3)
    with pytest.raises(ValueError, match="level must be 'edges' or 'nodes'"):
        kind(level="heads")
    with pytest.raises(ValueError, match="lie between 0 and 10"):
        kind(level="nodes", nodes=11).find(random_model(), random_task())


def test_conventions_are_those_asked_for() -> None:
    method: Penalised = tp.UGS(embeddings="separate", kv="per_query_head", steps=1, samples=1)
    graph = method.find(fresh("gpt2", torch.float32), random_task()).graph
    assert graph.convention == tp.Convention("separate", "per_query_head")


# ---- learned constants


def constant_of(model: Any, task: tp.Task) -> tp.Constant:
    return tp.Constant(model, tp.Mean(task.discovery.train().corrupt))


def kl_of(one: Any, task: tp.Task, circuit: tp.Circuit, constant: tp.Constant) -> float:
    with torch.no_grad():
        batch = task.discovery.train()
        logits = circuit.on(one, ablation=constant)(batch)
        reference = tp.Masked(one, circuit).cache(batch).reference(batch)
        return float(tp.KL()(logits, batch, reference))


def test_constants_are_trained_in_place_and_a_new_one_gives_the_same_again() -> None:
    model, task = random_model(), random_task()
    method = tp.UGS(edges=20, **QUICK)
    first, second, start = (constant_of(model, task) for _ in range(3))
    found = method.find(model, task, ablation=first)
    assert found == method.find(model, task, ablation=second)
    moved = [not torch.equal(a, b) for a, b in zip(first.parameters(), start.parameters(), strict=True)]
    assert all(moved[:-1]), "the last MLP is read by the logits alone"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert found.provenance["ablation"] == first.as_dict() == second.as_dict() != start.as_dict()
    with pytest.raises(ValueError, match=rf"hash is {first.values_hash}\. Give the object that it was found with"):
        found.on(model)
    assert found.on(model, ablation=first)(task.test).isfinite().all()


def test_constants_of_a_finished_circuit_are_fitted_and_nothing_else_is() -> None:
    model, task = random_model(), random_task()
    circuit = tp.Random(edges=40).find(model, task)
    constant, kept = constant_of(model, task), circuit.kept.clone()
    before = kl_of(model, task, circuit, constant)
    history = tp.fit_constant(constant, model, circuit, task.discovery, steps=30, validate_every=30)
    assert kl_of(model, task, circuit, constant) < before
    assert torch.equal(circuit.kept, kept)
    assert {round(record.expected_kept) for record in history} == {40}
    assert history[-1].hard is not None


def test_best_constants_of_nothing_predict_the_mean() -> None:
    """With every edge gone logits are the same for all prompts, and the KL from them is least at the mean prediction.

    Without norms any logits can be had, and the loss is convex in the constants.
    """
    model, task = random_model("no_norm"), random_task()
    nothing = tp.Circuit.from_edges(model, [])
    constant, batch = constant_of(model, task), task.discovery.train()
    reference = tp.Masked(model, nothing).cache(batch).reference(batch)
    mean = reference.exp().mean(0, keepdim=True).log()
    least = float((reference.exp() * (reference - mean)).sum(-1).mean())
    assert kl_of(model, task, nothing, constant) > 1.05 * least
    tp.fit_constant(constant, model, nothing, task.discovery, steps=150, rate=0.05)
    assert least <= kl_of(model, task, nothing, constant) <= 1.01 * least
