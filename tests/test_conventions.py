"""Conversions between conventions keep what a circuit computes, and refuse what the other convention cannot say."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from styles import model_of, random_batch

import tlprune as tp
from tlprune.graph import Architecture, Convention, Graph
from tlprune.scores import Scores
from tlprune.sites import Sites

GROUPED = Architecture(n_layers=2, n_heads=4, n_kv_heads=2, position_embedding=True)
ALL = [
    Convention(embeddings, kv, qkv)
    for embeddings, kv, qkv in product(
        ("merged", "separate", "kept"), ("shared", "per_query_head"), ("split", "joined")
    )
]
FINEST = Convention("separate", "per_query_head")


def random_circuit(graph: Graph, seed: int = 0) -> tp.Circuit:
    kept = torch.rand(len(graph), generator=torch.Generator().manual_seed(seed)) < 0.5
    return tp.Circuit(Sites((graph,)), kept)


def random_scores(graph: Graph, seed: int = 0) -> Scores:
    return Scores(Sites((graph,)), torch.randn(len(graph), generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("convention", ALL, ids=str)
def test_to_the_finest_and_back_is_the_circuit(convention: Convention) -> None:
    circuit = random_circuit(Graph(GROUPED, convention))
    fine = tp.convert(circuit, FINEST)
    assert fine.graph.convention == FINEST
    assert tp.convert(fine, convention) == circuit


@pytest.mark.parametrize("convention", [one for one in ALL if one.embeddings != "kept"], ids=str)
def test_to_the_finest_and_back_are_the_scores(convention: Convention) -> None:
    scores = random_scores(Graph(GROUPED, convention))
    fine = tp.convert(scores, FINEST)
    assert len(set(fine.values.tolist())) == len(scores.values)
    assert torch.equal(tp.convert(fine, convention).values, scores.values)
    assert torch.allclose(tp.convert(fine, convention, reduce="mean").values, scores.values)


def test_samples_go_along() -> None:
    scores = Scores.mean_of([random_scores(Graph(GROUPED), seed) for seed in range(3)])
    fine = tp.convert(scores, FINEST)
    assert fine.samples is not None
    assert torch.allclose(fine.samples.mean(0), fine.values)
    for seed in range(3):
        assert torch.equal(fine.samples[seed], tp.convert(random_scores(Graph(GROUPED), seed), FINEST).values)


def test_copies_are_of_the_edges_with_the_same_meaning() -> None:
    """Checked by names, which the conversion itself does not use."""
    scores = random_scores(Graph(GROUPED))
    fine = tp.convert(scores, FINEST)
    for index, value in enumerate(fine.values.tolist()):
        writer, _, reader = fine.sites.name(index).partition("->")
        layer, _, rest = reader.partition(".h")
        head, _, letter = rest.partition("<")
        shared = f"{layer}.kv{int(head) // 2}<{letter}" if letter[:1] in ("k", "v") else reader
        assert scores[f"{'input' if 'embed' in writer else writer}->{shared}"] == value


def test_an_edge_that_stands_for_several_gets_what_is_asked_for() -> None:
    graph = Graph(GROUPED, Convention(kv="per_query_head"))
    scores = Scores(Sites((graph,)), torch.zeros(len(graph)))
    scores.values[graph.index("a0.h1->a1.h2<k>")] = 3.0
    scores.values[graph.index("a0.h1->a1.h3<k>")] = -1.0
    with pytest.raises(ValueError, match=r"'a0.h1->a1.kv1<k>' range from -1 to 3\. Give reduce="):
        tp.convert(scores, Convention())
    ways = ("mean", "sum", "max", "min")
    found = {way: tp.convert(scores, Convention(), reduce=way)["a0.h1->a1.kv1<k>"] for way in ways}
    assert found == {"mean": 1.0, "sum": 2.0, "max": 3.0, "min": -1.0}
    shared = tp.convert(scores, Convention(), reduce="sum")
    assert torch.equal(tp.convert(shared, Convention(), reduce="sum").values, shared.values)
    circuit = tp.Circuit.from_edges(graph, ["a0.h1->a1.h2<k>"])
    assert tp.convert(circuit, Convention(), reduce="max").edges == ["a0.h1->a1.kv1<k>"]
    assert tp.convert(circuit, Convention(), reduce="min").edges == []
    with pytest.raises(ValueError, match="a circuit can be reduced by max, min but 'mean'"):
        tp.convert(circuit, Convention(), reduce="mean")


def test_embeddings_that_are_always_there() -> None:
    kept = tp.Circuit.from_edges(Graph(GROUPED, Convention("kept")), ["m1->logits"])
    merged = tp.convert(kept, Convention())
    assert {edge for edge in merged.edges if edge.startswith("input")} == {
        edge for edge in merged.graph.edges() if edge.startswith("input")
    }
    assert len(merged) == 1 + len([edge for edge in merged.graph.edges() if edge.startswith("input")])
    with pytest.raises(ValueError, match="this one lacks some"):
        tp.convert(tp.Circuit.from_edges(Graph(GROUPED), ["input->m0"]), Convention("kept"))
    for one, other in ((Convention("kept"), Convention()), (Convention(), Convention("kept"))):
        with pytest.raises(ValueError, match="one counts edges from embeddings"):
            tp.convert(random_scores(Graph(GROUPED, one)), other)
    scores = random_scores(Graph(GROUPED, Convention("kept")))
    assert tp.convert(scores, Convention("kept", "per_query_head"))["m0->a1.h3<v>"] == scores["m0->a1.kv1<v>"]


def test_other_sites_and_spans_stay() -> None:
    model = model_of("llama")
    for spans in ((), ("name",)):
        sites = tp.heads(model) + tp.edges(model, spans=spans) + tp.mlps(model)
        kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(1)) < 0.5
        circuit = tp.Circuit(sites, kept, {"seed": 1})
        there = tp.convert(circuit, Convention(kv="per_query_head"))
        assert there.sites == tp.heads(model) + tp.edges(model, kv="per_query_head", spans=spans) + tp.mlps(model)
        assert there.names_of("heads") == circuit.names_of("heads")
        assert there.provenance["seed"] == 1
        assert there.provenance["converted"]["to"] == "embeddings merged, kv per_query_head"
        assert Convention(**there.provenance["convention"]) == there.graph.convention
        assert tp.convert(there, Convention()) == circuit


CASES = [
    ("llama", Convention(), Convention(kv="per_query_head")),
    ("llama", Convention(qkv="joined"), Convention(kv="per_query_head")),
    ("gpt2", Convention(), Convention("separate")),
    ("gpt2", Convention("kept", qkv="joined"), Convention("separate")),
    ("gpt2", Convention("kept"), Convention("merged")),
]


@pytest.mark.parametrize(("style", "source", "target"), CASES)
def test_a_converted_circuit_computes_the_same(style: str, source: Convention, target: Convention) -> None:
    model: Any = model_of(style)
    circuit, batch = random_circuit(Graph.of(model, source)), random_batch()
    converted = tp.convert(circuit, target)
    first, second = (tp.Masked(model, found, tp.Resample())(batch) for found in (circuit, converted))
    whole = tp.Masked(model, circuit.complement, tp.Resample())(batch)
    assert torch.allclose(first, second, atol=1e-9)
    assert not torch.allclose(first, whole, atol=1e-3)


def test_an_encoder_has_no_finer_embeddings() -> None:
    graph = Graph(Architecture(1, 2, 2, post_norm=True), Convention(qkv="joined"))
    circuit = random_circuit(graph)
    split = tp.convert(circuit, Convention())
    assert len(split) > len(circuit)
    assert tp.convert(split, Convention(qkv="joined")) == circuit
