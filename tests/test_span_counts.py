"""Circuits and scores with spans and without: counts both ways, and the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import error, model_of
from test_span_paths import NAMES, discovery_of, spanned_batch

import tlprune as tp
from tlprune.tasks import covered

TOGETHER = {
    "edges": tp.edges,
    "edges and heads": lambda model: tp.edges(model) + tp.heads(model),
    "nodes and neurons": lambda model: tp.nodes(model) + tp.neurons(model),
}


def some(sites: Any, seed: int) -> tp.Circuit:
    return tp.Circuit(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(seed)) < 0.3)


@pytest.mark.parametrize("kind", TOGETHER)
def test_a_circuit_at_every_span_computes_the_same(kind: str) -> None:
    model, batch = model_of("llama"), spanned_batch()
    circuit = some(TOGETHER[kind](model), 1)
    wide = circuit.with_spans(NAMES)
    assert len(wide) == 3 * len(circuit)
    assert wide.without_spans() == circuit
    found, same = (tp.Masked(model, one, tp.Resample())(batch) for one in (wide, circuit))
    assert error(found, same) <= 1e-9
    flow = tp.edges(model, spans=discovery_of(batch)).flow
    assert circuit.with_spans(NAMES, flow=flow).sites.flow == flow


def test_without_spans_is_the_smallest_that_has_all() -> None:
    model = model_of("llama")
    sites = tp.edges(model, spans=NAMES) + tp.mlps(model)
    for seed in range(4):
        circuit = some(sites, seed)
        bare = circuit.without_spans()
        assert bare.sites == tp.edges(model) + tp.mlps(model)
        assert set(bare.edges) == {name.partition("@")[0] for name in circuit.edges}
        assert bare.names_of("mlps") == circuit.names_of("mlps")
        assert set(bare.nodes) == set(circuit.nodes)
        total = len(tp.edges(model))
        text = (
            f"{circuit.count('edges'):,} of {3 * total:,} edges by span ({bare.count('edges'):,} of {total:,} distinct)"
        )
        text += f" + {bare.count('mlps')} of 3 mlps, "
        assert text in repr(circuit)
        assert bare.without_spans() is bare
    assert set(bare.provenance) == {"operation", "of"}


def test_spans_are_put_on_what_has_none() -> None:
    model = model_of("llama")
    with pytest.raises(ValueError, match=r"these differ by subject, verb\. Take without_spans"):
        tp.edges(model, spans=NAMES).with_spans(NAMES)
    with pytest.raises(ValueError, match="these are weights, which all positions share"):
        tp.weights(model, "*.W_O").with_spans(NAMES)


def test_files_and_tables_have_both_counts(tmp_path: Path) -> None:
    planted = tp.planted("adder")
    task = covered(planted.task)
    circuit = some(tp.edges(planted.model, spans=task), 0)
    circuit.save(tmp_path / "it.json")
    distinct = len(circuit.without_spans())
    assert json.loads((tmp_path / "it.json").read_text())["n_distinct"] == distinct < len(circuit)
    found = tp.evaluate(planted.model, circuit, task)
    assert [row.distinct for row in found.rows][:2] == [110, distinct]
    assert found.as_dict()["rows"][1]["distinct"] == distinct
    header, _, line, low, *_ = str(found).splitlines()
    assert header.split()[:3] == ["kept", "effective", "distinct"]
    assert line.split()[:4] == ["circuit", str(len(circuit)), str(circuit.n_effective), str(distinct)]
    assert len(low) == len(header)
    bare = tp.evaluate(planted.model, circuit.without_spans(), task)
    assert "distinct" not in str(bare)
    assert "distinct" not in bare.as_dict()["rows"][1]


def test_scores_by_span_add_up_with_their_samples() -> None:
    planted = tp.planted("induction", seed=1)
    by_span = tp.EAP(edges=5, spans=planted.task.span_names).score(planted.model, planted.task)
    bare, together = by_span.without_spans(), tp.EAP(edges=5).score(planted.model, planted.task)
    assert bare.sites == together.sites
    assert error(bare.values, together.values) <= 1e-5
    assert bare.samples is not None
    assert together.samples is not None
    assert error(bare.samples, together.samples) <= 1e-5
    assert bare.without_spans() is bare
    sites = tp.edges(planted.model, spans=("a",)) + tp.mlps(planted.model)
    mixed = tp.Scores(sites, torch.arange(float(len(sites))))
    assert mixed.without_spans()["m1"] == mixed["m1"]
    assert mixed.without_spans()["m0->m1"] == mixed["m0->m1@a"] + mixed["m0->m1@rest"]
