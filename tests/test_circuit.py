"""Circuits: sets of edges, their files, and the errors of files that are not whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hooked import NEEDS_HOOKED_TRANSFORMER
from test_graph import GRAPHS

from tlprune.circuit import Circuit, edges_text
from tlprune.files import write_whole
from tlprune.graph import Architecture, Graph
from tlprune.models.planted import planted
from tlprune.scores import Scores
from tlprune.sites import Matrix, Neurons, Nodes, Sites, Weights

GRAPH = GRAPHS["plain-merged-shared"]
PROVENANCE = {"method": {"name": "by hand", "nested": [1, 2.5, None, True]}, "seed": 3}


def random_circuit(graph: Graph = GRAPH, seed: int = 0) -> Circuit:
    kept = torch.rand(graph.n_edges, generator=torch.Generator().manual_seed(seed)) < 0.2
    return Circuit(Sites((graph,)), kept, PROVENANCE)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_a_saved_circuit_is_the_same_circuit(graph: Graph, tmp_path: Path) -> None:
    circuit = random_circuit(graph)
    circuit.save(tmp_path / "circuit.json")
    loaded = Circuit.load(tmp_path / "circuit.json")
    assert loaded == circuit
    assert hash(loaded) == hash(circuit)
    assert dict(loaded.provenance) == PROVENANCE
    assert repr(loaded) == repr(circuit)


def test_saving_replaces_whole_files_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    for seed in range(2):
        random_circuit(seed=seed).save(path)
    assert Circuit.load(path) == random_circuit(seed=1)
    with pytest.raises(TypeError):
        Circuit(Sites((GRAPH,)), random_circuit().kept, {"not data": torch.zeros(1)}).save(path)
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert Circuit.load(path) == random_circuit(seed=1)
    assert list(tmp_path.iterdir()) == [path]


def changed(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: data | fields


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: {key: value for key, value in data.items() if key != name}


def with_edges(edges: Callable[[list[str]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: data | {"kept": {"edges": edges(data["kept"]["edges"])}}


def with_sites(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: data | {"sites": [data["sites"][0] | fields]}


EDITS = {
    "another version": (changed(version=99), "format version 99"),
    "another format": (changed(format="other"), "not a tlprune circuit"),
    "an edge too few": (with_edges(lambda edges: edges[1:]), "was cut or edited"),
    "an edge twice": (with_edges(lambda edges: [*edges[1:], edges[1]]), "was cut or edited"),
    "an unknown edge": (with_edges(lambda edges: [*edges[1:], "m9->logits"]), "not a whole circuit.*m9"),
    "another total": (changed(total=7), "was cut or edited"),
    "nothing kept": (without("kept"), "not a whole circuit.*kept"),
    "no provenance": (without("provenance"), "not a whole circuit.*provenance"),
    "no sites": (without("sites"), "not a whole circuit.*sites"),
    "another architecture": (with_sites(architecture={"layers": 3}), "not a whole circuit"),
    "an unknown convention": (with_sites(convention={"embeddings": "both"}), "(?s)not a whole circuit.*both"),
    "an unknown kind": (with_sites(kind="moods"), "not a whole circuit.*moods"),
    "edges of another type": (with_edges(lambda edges: None), "not a whole circuit"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_file_says_what_is_wrong(edit: str, tmp_path: Path) -> None:
    change, message = EDITS[edit]
    path = tmp_path / "circuit.json"
    random_circuit().save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message) as raised:
        Circuit.load(path)
    assert "circuit.json" in str(raised.value)


@pytest.mark.parametrize(("text", "message"), [("{", "it is not JSON"), ("[1]", "not a tlprune"), ("\xff", "not JSON")])
def test_another_file_says_so(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        Circuit.load(path)


def test_a_missing_file_or_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Cannot read the circuit .*nowhere.json: No such file"):
        Circuit.load(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match=r"Cannot read the circuit .*Is a directory"):
        Circuit.load(tmp_path)


def test_a_circuit_is_a_set_of_edges() -> None:
    circuit = random_circuit()
    assert Circuit.from_edges(GRAPH, reversed(circuit.edges)) == circuit
    assert len(circuit) == len(circuit.edges) == int(circuit.kept.sum())
    assert all((edge in circuit) == bool(kept) for edge, kept in zip(GRAPH.edges(), circuit.kept, strict=True))
    assert circuit.complement.complement == circuit
    assert not circuit.kept.logical_and(circuit.complement.kept).any()
    assert circuit.effective.effective == circuit.effective
    assert len(circuit.effective) == circuit.n_effective <= len(circuit)
    assert circuit != circuit.edges


@NEEDS_HOOKED_TRANSFORMER
def test_a_circuit_by_model_is_a_circuit_by_graph() -> None:
    model = planted("copy").model
    assert Circuit.from_edges(model, ["m0->logits"]) == Circuit.from_edges(Graph.of(model), ["m0->logits"])
    with pytest.raises(ValueError, match="runs backwards"):
        Circuit.from_edges(model, ["m1->m0"])


def test_a_mask_of_another_graph_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"needs one value for each of {GRAPH.n_edges} sites but got shape \(3,\)"):
        Circuit(Sites((GRAPH,)), torch.ones(3, dtype=torch.bool))


def test_intersection_over_union_by_sets() -> None:
    circuits = [random_circuit(seed=seed) for seed in range(4)]
    for one in circuits:
        for other in circuits:
            first, second = set(one.edges), set(other.edges)
            assert one.iou(other) == len(first & second) / len(first | second)
        assert one.iou(one.complement) == 0
    empty = Circuit.from_edges(GRAPH, [])
    assert empty.iou(empty) == 1
    with pytest.raises(ValueError, match="need the same sites to be compared"):
        empty.iou(Circuit.from_edges(Graph(Architecture(1, 1, 1)), []))


@pytest.mark.parametrize("count", [0, 1, 7, GRAPH.n_edges])
def test_top_keeps_exactly_so_many_and_the_highest(count: int) -> None:
    values = torch.randint(4, (GRAPH.n_edges,), generator=torch.Generator().manual_seed(0)).float()
    circuit = Scores(Sites((GRAPH,)), values, PROVENANCE).top(count)
    ranked = sorted(range(GRAPH.n_edges), key=lambda edge: (-values[edge], edge))
    assert circuit.kept.nonzero().flatten().tolist() == sorted(ranked[:count])
    assert dict(circuit.provenance) == PROVENANCE


@pytest.mark.parametrize("count", [-1, GRAPH.n_edges + 1])
def test_a_count_outside_the_graph_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="number of edges must lie between 0 and"):
        Scores(Sites((GRAPH,)), torch.zeros(GRAPH.n_edges)).top(count)


def test_counts_are_written_one_way() -> None:
    assert edges_text(1234, 32491) == "1,234 of 32,491 edges"


def test_algebra_is_that_of_sets() -> None:
    one, other = random_circuit(seed=1), random_circuit(seed=2)
    first, second = set(one.edges), set(other.edges)
    assert set((one & other).edges) == first & second
    assert set((one | other).edges) == first | second
    assert set((one - other).edges) == first - second
    assert (one | one.complement).kept.all()
    smaller = Circuit.from_edges(Graph(Architecture(1, 1, 1)), [])
    for operation in (lambda: one & smaller, lambda: one | smaller, lambda: one - smaller):
        with pytest.raises(ValueError, match="need the same sites"):
            operation()


def test_what_is_made_of_circuits_says_of_which() -> None:
    graph = GRAPH

    def found(weights: str, seed: int) -> Circuit:
        return Circuit.from_edges(
            graph, [], provenance={"model": {"weights": weights}, "ablation": {"name": "zero"}, "seed": seed}
        )

    both = found("abc", 1) & found("abc", 2)
    assert both.provenance["model"] == {"weights": "abc"}
    assert both.provenance["ablation"] == {"name": "zero"}
    assert [origin["seed"] for origin in both.provenance["of"]] == [1, 2]
    assert "model" not in (found("abc", 1) | Circuit.from_edges(graph, [])).provenance
    with pytest.raises(ValueError, match="need one model to be compared"):
        found("abc", 1).iou(found("def", 1))


def test_nodes_and_heads_are_those_that_kept_edges_leave() -> None:
    circuit = Circuit.from_edges(GRAPH, ["input->a0.h1<q>", "a0.h1->m1", "a1.h0->logits", "a0.h1->logits"])
    assert set(circuit.nodes) == {"input", "a0.h1", "a1.h0"}
    assert circuit.heads == ["a0.h1", "a1.h0"]
    nodes = Circuit.from_nodes(GRAPH, ["m1", "a1.h1", "a0.h0"])
    assert nodes.names == nodes.nodes == ["a0.h0", "a1.h1", "m1"]
    assert nodes.heads == ["a0.h0", "a1.h1"]
    assert nodes.edges == []
    with pytest.raises(ValueError, match="needs edges but the sites are nodes"):
        _ = nodes.graph
    with pytest.raises(ValueError, match=r"'a9\.h9' is not one of these"):
        Circuit.from_nodes(GRAPH, ["a9.h9"])


ALL_KINDS = Sites(
    (GRAPH, Nodes("nodes", GRAPH.writers), Neurons((0, 2), 5), Weights((Matrix("blocks.0.mlp.W_in", (4, 5), (0,)),)))
)


@pytest.mark.parametrize("name", ["circuit.json", "circuit.safetensors"])
def test_circuits_of_every_kind_are_saved(name: str, tmp_path: Path) -> None:
    kept = torch.rand(len(ALL_KINDS), generator=torch.Generator().manual_seed(3)) < 0.4
    circuit = Circuit(ALL_KINDS, kept, PROVENANCE)
    circuit.save(tmp_path / name)
    loaded = Circuit.load(tmp_path / name)
    assert loaded == circuit
    assert loaded.provenance == PROVENANCE
    assert [circuit.count(kind) for kind in ALL_KINDS.kinds] == [len(circuit.names_of(k)) for k in ALL_KINDS.kinds]
    assert sum(map(circuit.count, ALL_KINDS.kinds)) == len(circuit) == len(circuit.names)


@pytest.mark.parametrize("name", ["scores.json", "scores.safetensors"])
def test_scores_are_saved(name: str, tmp_path: Path) -> None:
    values = torch.randn(len(ALL_KINDS), generator=torch.Generator().manual_seed(4))
    scores = Scores(ALL_KINDS, values, PROVENANCE)
    scores.save(tmp_path / name)
    loaded = Scores.load(tmp_path / name)
    assert torch.equal(loaded.values, values)
    assert loaded.sites == ALL_KINDS
    assert loaded["m2.n3"] == float(values[ALL_KINDS.index("m2.n3")])
    assert torch.equal(loaded.of("neurons").values, values[ALL_KINDS.part("neurons")])


def test_a_cut_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "circuit.safetensors"
    Circuit(ALL_KINDS, torch.ones(len(ALL_KINDS), dtype=torch.bool)).save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not a circuit"):
        Circuit.load(path)
    with pytest.raises(ValueError, match="Cannot read the circuit"):
        Circuit.load(tmp_path / "none.safetensors")


def test_top_by_count_fraction_and_threshold_agree() -> None:
    values = torch.randn(GRAPH.n_edges, generator=torch.Generator().manual_seed(0))
    scores = Scores(Sites((GRAPH,)), values)
    half = scores.top(fraction=0.5)
    assert len(half) == round(GRAPH.n_edges / 2)
    assert scores.top(threshold=float(values.sort(descending=True).values[len(half)])) == half
    assert scores.absolute.top(1).kept.nonzero().item() == values.abs().argmax().item()
    for wrong in ({}, {"count": 1, "fraction": 0.5}):
        with pytest.raises(ValueError, match="exactly one of"):
            scores.top(**wrong)
    with pytest.raises(ValueError, match="fraction lies between 0 and 1"):
        scores.top(fraction=1.5)
