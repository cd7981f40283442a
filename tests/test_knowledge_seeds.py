"""Subnetworks over seeds, sizes and prices: counted by hand, and chance by simulation."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from knowledge_worlds import random_weights, small_world
from styles import fresh

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.evaluation.overlap import overlap
from tlprune.knowledge.baselines import weights_of
from tlprune.knowledge.finding import read_seeds
from tlprune.knowledge.resizing import resized
from tlprune.knowledge.seeds import expected_iou


@pytest.fixture(scope="module")
def model() -> Any:
    return fresh("gpt2", torch.float32)


def counts(circuit: tp.Circuit) -> list[int]:
    return [int(part.sum()) for part in circuit.kept.split(weights_of(circuit).sizes)]


# ---- seeds


def test_intersection_floral_and_union_by_hand(model: Any) -> None:
    circuits = {seed: random_weights(model, share=0.3, seed=seed) for seed in (1, 2, 3, 4)}
    found = tp.KnowledgeSeeds(circuits)
    for place in range(0, len(found[1].sites), 37):
        number = sum(bool(one.kept[place]) for one in circuits.values())
        kept = [bool(one.kept[place]) for one in found.combined.values()]
        assert kept == [number == 4, number >= 2, number >= 1]
    assert found.iou == pytest.approx(
        np.mean([one.iou(other) for one, other in itertools.combinations(circuits.values(), 2)])
    )
    assert found.as_dict()["shared"]["floral"]["sites"] == len(found.floral)
    (line,) = (line for line in str(found).splitlines() if line.startswith("floral (at least 2 of 4)"))
    assert line.split()[-2:] == [f"{len(found.floral):,}", f"{found.expected(2):,.1f}"]


def test_chance_is_that_of_simulated_subnetworks(model: Any) -> None:
    """Random ones with each matrix's counts; means of 150 draws of three, within five standard errors."""
    found = tp.KnowledgeSeeds({seed: uneven(model, seed) for seed in (1, 2, 3)})
    drawn = [
        tp.KnowledgeSeeds({
            seed: tp.knowledge_baseline(model, one, seed=10 * number + seed) for seed, one in found.items()
        })
        for number in range(150)
    ]  # fmt: skip
    told = {"iou": (found.chance, [one.iou for one in drawn])}
    for name, number in {"intersection": 3, "floral": 2, "union": 1}.items():
        told[name] = (found.expected(number), [len(one.in_at_least(number)) for one in drawn])
    for expected, values in told.values():
        assert abs(np.mean(values) - expected) < 5 * np.std(values) / len(values) ** 0.5
        assert np.std(values) < 0.2 * expected


def uneven(model: Any, seed: int) -> tp.Circuit:
    """Some matrices with half of their weights and others with few, so chance by matrix is another."""
    circuit = random_weights(model, share=0.5, seed=seed)
    parts = [
        part & (torch.arange(len(part)) % (1 + 9 * (place % 2)) == 0)
        for place, part in enumerate(circuit.kept.split(weights_of(circuit).sizes))
    ]
    return circuit.like(torch.cat(parts))


def test_chance_of_a_single_matrix_is_that_of_overlap(model: Any) -> None:
    sites = tp.weights(model, "blocks.1.mlp.W_in")
    first, second = (tp.Circuit(sites, torch.arange(len(sites)) < count) for count in (300, 700))
    expected = overlap(first, second, chance="uniform").chance
    assert expected_iou([300], [700], [len(sites)]) == pytest.approx(expected, rel=1e-9)
    assert expected_iou([0, 0], [0, 0], [5, 5]) == 1
    assert expected_iou([5, 0], [5, 0], [5, 5]) == 1
    assert expected_iou([100], [100], [100_000]) < expected_iou([100, 0], [100, 0], [1000, 99_000]) / 20


def test_too_few_or_different_subnetworks_are_refused(model: Any) -> None:
    circuit = random_weights(model)
    with pytest.raises(ValueError, match="needs two subnetworks at least but there are 1"):
        tp.KnowledgeSeeds({1: circuit})
    with pytest.raises(ValueError, match="need the same sites"):
        tp.KnowledgeSeeds({1: circuit, 2: random_weights(model, unit="row")})
    heads = tp.heads(model)
    nodes = tp.Circuit(heads, torch.ones(len(heads), dtype=torch.bool))
    with pytest.raises(ValueError, match="is of weights"):
        tp.KnowledgeSeeds({1: nodes, 2: nodes})


# ---- sizes


def test_a_resized_subnetwork_is_nested_and_of_the_right_size_in_each_matrix(model: Any) -> None:
    circuit = random_weights(model, share=0.3)
    some = [resized(circuit, scale, seed=5) for scale in (0, 0.25, 0.5, 1, 2, 10)]
    for smaller, larger in itertools.pairwise(some):
        assert bool((smaller.kept <= larger.kept).all())
    assert some[3] == circuit
    assert counts(some[1]) == [round(0.25 * count) for count in counts(circuit)]
    assert counts(some[4]) == [2 * count for count in counts(circuit)]
    assert len(some[0]) == 0
    assert len(some[5]) == len(circuit.sites)
    assert resized(circuit, 0.5, seed=6) != some[2]
    with pytest.raises(ValueError, match=r"-1 was asked for"):
        resized(circuit, -1)


def test_sensitivity_has_the_figures_of_each_size(model: Any) -> None:
    pytest.importorskip("plotly")
    circuit, task = random_weights(model), small_world()
    found = tp.knowledge_sensitivity(model, circuit, task, scales=[2, 0.5, 1], resamples=50)
    assert list(found.names) == [0.5, 1, 2]
    own = tp.knowledge_figures(model, resized(circuit, 0.5), task, kinds=["remaining"], resamples=50)
    assert found.figures.at("text", circuit="x 0.5").as_dict() == own.at("text").as_dict()
    lines = found.plot().data
    assert [line.name for line in lines] == ["target", "control", "text"]
    assert list(lines[0].x) == [len(resized(circuit, scale)) for scale in found.names]
    assert lines[2].y[0] == own.at("text").ratio.value
    assert found.as_dict()["scales"] == {"x 0.5": 0.5, "x 1": 1, "x 2": 2}
    assert f"{own.at().ratio.value:.3f}" in str(found)


# ---- prices, and searches in files


@pytest.fixture(scope="module")
def method() -> tp.KnowledgeSubnetwork:
    return tp.KnowledgeSubnetwork(steps=4, layers="1-2")


def test_a_tradeoff_finds_one_for_each_price(model: Any, method: Any, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    task = small_world()
    found = tp.knowledge_tradeoff(model, task, method, prices=[900, 0.1], out=tmp_path, resamples=50)
    assert list(found.circuits) == [0.1, 900]
    told = [one.provenance["method"] for one in found.circuits.values()]
    assert [(one["price"], one["last_price"]) for one in told] == [(0.1, pytest.approx(0.15)), (900, 1350)]
    assert len(found.circuits[0.1]) > len(found.circuits[900])
    own = tp.knowledge_figures(model, found.circuits[900], task, kinds=["remaining"], resamples=50)
    assert found.figures.at(circuit="price 900").as_dict() == own.at().as_dict()
    lines = found.plot().data
    assert list(lines[0].x) == [len(one) for one in found.circuits.values()]
    assert lines[1].y[1] == own.at("control").ratio.value
    assert "price 0.1" in lines[0].text
    assert f"{len(found.circuits[900]):,}" in str(found)
    assert found.as_dict()["prices"] == {"price 0.1": 0.1, "price 900": 900}
    for wrong in ([], [0.0], [-1.0]):
        with pytest.raises(ValueError, match="needs prices above 0"):
            tp.knowledge_tradeoff(model, task, method, prices=wrong)


def test_a_search_goes_on_where_it_was_and_only_with_the_same_settings(
    model: Any, method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small_world()
    found = tp.knowledge_subnetworks(model, task, method, seeds=[3, 1], out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "seed-1.jsonl", "seed-1.safetensors", "seed-3.jsonl", "seed-3.safetensors",
    ]  # fmt: skip
    assert found[3] != found[1]
    assert read_seeds(tmp_path) == {1: found[1], 3: found[3]}
    with pytest.raises(ValueError, match="is of another method"):
        tp.knowledge_subnetworks(model, task, tp.KnowledgeSubnetwork(steps=5), seeds=[1], out=tmp_path)
    with pytest.raises(ValueError, match="is of another model"):
        tp.knowledge_subnetworks(fresh("gpt2"), task, method, seeds=[1], out=tmp_path)
    monkeypatch.setattr(tp.KnowledgeSubnetwork, "find", None)  # found ones are read
    assert tp.knowledge_subnetworks(model, task, method, seeds=[3, 1], out=tmp_path) == found
    with pytest.raises(ValueError, match="needs a seed"):
        tp.knowledge_subnetworks(model, task, method, seeds=[])
    with pytest.raises(ValueError, match="must hold subnetworks but has none"):
        read_seeds(tmp_path / "elsewhere")
    assert backend_of(model).fingerprint()["weights"] == found[1].provenance["model"]["weights"]
