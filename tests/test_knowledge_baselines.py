"""Baselines of knowledge-critical subnetworks: as many weights of each matrix, and which ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from knowledge_worlds import random_weights
from styles import fresh

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.knowledge.baselines import weights_of


@pytest.fixture(scope="module")
def model() -> Any:
    return fresh("llama", torch.float32)


def counts(circuit: tp.Circuit) -> list[int]:
    return [int(part.sum()) for part in circuit.kept.split(weights_of(circuit).sizes)]


@pytest.mark.parametrize(
    ("unit", "kind"),
    [(unit, kind) for unit in ("weight", "row", "column") for kind in ("random", "rows", "magnitude")
     if (unit, kind) != ("column", "rows")],
)  # fmt: skip
def test_each_matrix_loses_as_many_sites(model: Any, unit: Any, kind: Any) -> None:
    circuit = random_weights(model, unit=unit, share=0.3)
    baseline = tp.knowledge_baseline(model, circuit, kind=kind, seed=1)
    assert counts(baseline) == counts(circuit)
    assert len({*counts(circuit)}) > 3
    assert baseline.sites == circuit.sites
    if kind != "magnitude":
        assert baseline != tp.knowledge_baseline(model, circuit, kind=kind, seed=2)
        assert baseline == tp.knowledge_baseline(model, circuit, kind=kind, seed=1)


def test_random_weights_are_spread_over_a_matrix(model: Any) -> None:
    """By chance every input loses about its share; a mean of 200 draws is within 6 of its standard errors."""
    circuit = random_weights(model)
    (first, *_), (count, *_) = weights_of(circuit).matrices, counts(circuit)
    size = torch.Size(first.shape).numel()
    drawn = torch.stack([tp.knowledge_baseline(model, circuit, seed=seed).kept[:size] for seed in range(200)])
    assert (drawn.double().mean(0) - count / size).abs().max() < 6 * (count / size / 200) ** 0.5


def test_rows_are_whole_input_neurons_but_for_the_last(model: Any) -> None:
    circuit = random_weights(model, share=0.3)
    found = tp.knowledge_baseline(model, circuit, kind="rows", seed=3)
    group = weights_of(circuit)
    for matrix in group.matrices:
        part = group.split(found.kept)[matrix.name]
        inputs, outputs = matrix.inputs, [axis for axis in range(part.dim()) if axis not in matrix.inputs]
        by_row = part.permute(*inputs, *outputs).flatten(0, len(inputs) - 1).flatten(1)
        filled = by_row.sum(1)
        assert int(((filled > 0) & (filled < by_row.shape[1])).sum()) <= 1
        whole = (filled == by_row.shape[1]).nonzero().flatten()
        assert len(whole) == int(part.sum()) // by_row.shape[1]
        assert whole.tolist() != [*range(len(whole))], "in random order"


def test_magnitude_takes_the_largest(model: Any) -> None:
    circuit = random_weights(model)
    found = tp.knowledge_baseline(model, circuit, kind="magnitude")
    weights, group = backend_of(model).parameters(), weights_of(circuit)
    for name, part in group.split(found.kept).items():
        assert weights[name].abs()[part].min() >= weights[name].abs()[~part].max()
    rows = tp.knowledge_baseline(model, random_weights(model, unit="row", share=0.3), kind="magnitude")
    part = weights_of(rows).split(rows.kept)["blocks.1.mlp.W_in"].flatten()
    sums = weights["blocks.1.mlp.W_in"].abs().sum(1)
    assert sums[part].min() >= sums[~part].max()


def test_where_the_subnetwork_comes_from_is_told(model: Any) -> None:
    told = {"model": backend_of(model).fingerprint(), "ablation": {"name": "zero"}, "method": {"name": "other"}}
    circuit = random_weights(model)
    found = tp.knowledge_baseline(model, circuit.like(circuit.kept, told), seed=4)
    assert found.provenance == {"model": told["model"], "ablation": {"name": "zero"}, "baseline": "random", "seed": 4}


def test_bad_input_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="kind must be one of random, rows, magnitude but is 'large'"):
        tp.knowledge_baseline(model, random_weights(model), kind="large")
    with pytest.raises(ValueError, match="this circuit is of columns"):
        tp.knowledge_baseline(model, random_weights(model, unit="column"), kind="rows")
    heads = tp.heads(model)
    with pytest.raises(ValueError, match="is of weights but this circuit is of"):
        tp.knowledge_baseline(model, tp.Circuit(heads, torch.ones(len(heads), dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"blocks\."):
        tp.knowledge_baseline(fresh("attention_only"), random_weights(model))
