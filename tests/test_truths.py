"""Ground truths: the published counts, other conventions, refusals, and truths that hold by construction."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch

import tlprune as tp
from tlprune.graph import Architecture, Convention, Graph
from tlprune.tasks import TASKS
from tlprune.truths import TRUTHS, truth, with_internal
from tlprune.truths.ioi import HEADS, MOVERS
from tlprune.truths.stating import linked

GPT2 = Architecture(12, 12, 12, position_embedding=True)
ATTENTION_ONLY = Architecture(4, 8, 8, has_mlp=False, position_embedding=True)
SHAPES = {"ioi": GPT2, "greater-than": GPT2, "docstring": ATTENTION_ONLY}
# As given by Conmy et al. 2023, and less the edges from q, k and v into their own heads.
COUNTS = {"ioi": (1041, 963), "greater-than": (262, 235), "docstring": (37, 24)}
each_published = pytest.mark.parametrize("name", SHAPES)


def published(name: str, convention: Convention | None = None) -> tp.Circuit:
    return truth(name, Graph(SHAPES[name], convention))


@each_published
def test_counts_are_the_published_ones(name: str) -> None:
    circuit = published(name)
    assert (with_internal(circuit), len(circuit)) == COUNTS[name]
    assert circuit.provenance["counts"] == {"with_internal": COUNTS[name][0], "edges": COUNTS[name][1]}
    assert f"{COUNTS[name][0]} edges with those inside of heads" in TRUTHS[name].convention


def test_inside_heads_ioi_has_three_edges_for_each_of_26_heads() -> None:
    circuit = published("ioi")
    heads = [head for kind in HEADS.values() for head in kind]
    assert len(heads) == len(set(heads)) == 26
    assert sorted(circuit.heads) == sorted(heads)
    assert 1041 - len(circuit) == 3 * 26


@each_published
def test_every_edge_is_on_a_path_from_the_embedding_to_the_logits(name: str) -> None:
    circuit = published(name)
    assert circuit.n_effective == len(circuit)


def test_ioi_says_who_reads_whom_through_what() -> None:
    circuit = published("ioi")
    between_heads = Counter[tuple[str, str, str]]()
    kinds = {head: kind for kind, heads in HEADS.items() for head in heads}
    for edge in circuit.edges:
        writer, reader = edge.split("->")
        node, _, part = reader.rstrip(">").partition("<")
        if writer in kinds and node in kinds:
            between_heads[kinds[writer], kinds[node], part] += 1
    assert between_heads == {
        # Every class lies in layers before those of the classes that read it.
        **{("previous token", "induction", part): 8 for part in "kv"},
        **{("induction", "S-inhibition", part): 16 for part in "kv"},
        **{("duplicate token", "S-inhibition", part): 12 for part in "kv"},
        **{("S-inhibition", mover, "q"): 4 * len(HEADS[mover]) for mover in MOVERS},
    }
    movers = (head for mover in MOVERS for head in HEADS[mover])
    assert writers_into(circuit, "logits") == {"input", *(f"m{layer}" for layer in range(12)), *movers}
    assert "input->a7.h3<q>" in circuit and "input->a7.h3<k>" not in circuit


def test_ioi_has_every_mlp_before_and_behind_every_node_of_the_circuit() -> None:
    circuit, graph = published("ioi"), Graph(GPT2)
    inside = {"input", "logits", *circuit.nodes}
    for edge in graph.edges():
        writer, reader = edge.split("->")
        node = reader.partition("<")[0]
        if writer.startswith("m") or node.startswith("m"):
            assert (edge in circuit) == ({writer, node} <= inside), edge


def test_greater_than_compares_in_late_mlps_what_the_year_heads_bring() -> None:
    circuit = published("greater-than")
    years = {"a5.h5", "a6.h1", "a6.h9", "a7.h10", "a8.h11", "a9.h1"}
    assert writers_into(circuit, "m9") == {*years, "m8"}
    assert writers_into(circuit, "logits") == {*years, "m8", "m9", "m10", "m11"}
    beyond = writers_into(circuit, "a9.h1<q>") - writers_into(circuit, "a9.h1<k>")
    assert beyond == {"m4", "m5", "m6", "m7", "m8"}


def writers_into(circuit: tp.Circuit, reader: str) -> set[str]:
    return {edge.split("->")[0] for edge in circuit.edges if edge.endswith(f"->{reader}")}


def test_docstring_movers_are_told_where_by_k_and_what_by_v() -> None:
    circuit = published("docstring")
    assert circuit.heads == ["a0.h5", "a1.h2", "a1.h4", "a2.h0", "a3.h0", "a3.h6"]
    assert [edge for edge in circuit.edges if "->a3.h6" in edge] == [
        "a1.h4->a3.h6<q>",
        "a1.h2->a3.h6<k>",
        "a2.h0->a3.h6<k>",
        "input->a3.h6<v>",
        "a0.h5->a3.h6<v>",
    ]


@each_published
def test_other_conventions_carry_the_same(name: str) -> None:
    merged = published(name)
    from_input = [edge for edge in merged.edges if edge.startswith("input->")]
    separate, kept, joined = (
        published(name, convention)
        for convention in (Convention("separate"), Convention("kept"), Convention(qkv="joined"))
    )
    assert len(separate) == len(merged) + len(from_input)
    assert {f"{half}->{edge[7:]}" for edge in from_input for half in ("embed", "pos_embed")} <= set(separate.edges)
    assert set(kept.edges) == set(merged.edges) - set(from_input)
    assert set(joined.edges) == {edge.partition("<")[0] for edge in merged.edges}
    assert separate.n_effective == len(separate) and joined.n_effective == len(joined)
    # Under kept embeddings every reader is reached, so an edge matters if it leads to the logits.
    assert kept.n_effective == len(kept)


@each_published
def test_a_model_of_another_shape_is_refused(name: str) -> None:
    for shape in (Architecture(12, 12, 4), Architecture(4, 8, 8), Architecture(12, 12, 12, parallel=True)):
        with pytest.raises(ValueError, match=rf"{name!r} is of .* layers of .* but this model has .* Load that model"):
            truth(name, Graph(shape))
    with pytest.raises(ValueError, match="12 layers of 12 heads with MLPs, learned positions, but this model has 2 "):
        truth("ioi", tp.planted().model)


@each_published
def test_provenance_is_plain_data_that_names_the_source(name: str, tmp_path: Any) -> None:
    circuit = published(name)
    assert json.loads(json.dumps(circuit.provenance)) == circuit.provenance
    assert circuit.provenance["source"] == TRUTHS[name].source
    circuit.save(tmp_path / "truth.json")
    assert tp.Circuit.load(tmp_path / "truth.json") == circuit


@pytest.mark.parametrize(("gate", "seed"), [("and", 0), ("or", 4), ("induction", 1)])
def test_a_planted_truth_is_read_from_its_model(gate: str, seed: int) -> None:
    state = torch.random.get_rng_state()
    planted = tp.planted(gate, seed=seed)
    assert truth("planted", planted.model) == planted.circuit
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_planted_truth_needs_a_planted_model() -> None:
    with pytest.raises(ValueError, match=r"truth needs a planted model .* but this one is 'testbed'"):
        truth("planted", tp.load("testbed"))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no truth 'ner'; there are ioi, greater-than, docstring, planted"):
        truth("ner", Graph(GPT2))


def test_truths_have_the_names_of_their_tasks() -> None:
    assert {name: known.task for name, known in TRUTHS.items()} == {name: name for name in TRUTHS}
    assert set(TRUTHS) <= set(TASKS)


def test_links_go_forwards_only() -> None:
    graph = Graph(Architecture(2, 1, 1))
    assert linked(graph, {"heads": ["a0.h0", "a1.h0"]}, {("heads", "heads"): "q"}) == ["a0.h0->a1.h0<q>"]
