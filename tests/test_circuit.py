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

from tlprune.circuit import Circuit, Scores, edges_text, write_whole
from tlprune.graph import Architecture, Graph
from tlprune.models.planted import planted

GRAPH = GRAPHS["plain-merged-shared"]
PROVENANCE = {"method": {"name": "by hand", "nested": [1, 2.5, None, True]}, "seed": 3}


def random_circuit(graph: Graph = GRAPH, seed: int = 0) -> Circuit:
    kept = torch.rand(graph.n_edges, generator=torch.Generator().manual_seed(seed)) < 0.2
    return Circuit(graph, kept, PROVENANCE)


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
        Circuit(GRAPH, random_circuit().kept, {"not data": torch.zeros(1)}).save(path)
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert Circuit.load(path) == random_circuit(seed=1)
    assert list(tmp_path.iterdir()) == [path]


def changed(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: data | fields


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: {key: value for key, value in data.items() if key != name}


EDITS = {
    "another version": (changed(version=99), "format version 99"),
    "another format": (changed(format="other"), "not a tlprune circuit"),
    "an edge too few": (lambda data: data | {"edges": data["edges"][1:]}, "was cut or edited"),
    "an edge twice": (lambda data: data | {"edges": [*data["edges"][1:], data["edges"][1]]}, "was cut or edited"),
    "an unknown edge": (lambda data: data | {"edges": [*data["edges"][1:], "m9->logits"]}, "not a whole circuit.*m9"),
    "another total": (changed(total=7), "was cut or edited"),
    "no edges": (without("edges"), "not a whole circuit.*edges"),
    "no provenance": (without("provenance"), "not a whole circuit.*provenance"),
    "no architecture": (without("architecture"), "not a whole circuit.*architecture"),
    "another architecture": (changed(architecture={"layers": 3}), "not a whole circuit"),
    "an unknown convention": (changed(convention={"embeddings": "both"}), "(?s)not a whole circuit.*both"),
    "edges of another type": (changed(edges=None), "not a whole circuit"),
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
    with pytest.raises(ValueError, match=rf"needs a mask of {GRAPH.n_edges} edges but got shape \(3,\)"):
        Circuit(GRAPH, torch.ones(3, dtype=torch.bool))


def test_intersection_over_union_by_sets() -> None:
    circuits = [random_circuit(seed=seed) for seed in range(4)]
    for one in circuits:
        for other in circuits:
            first, second = set(one.edges), set(other.edges)
            assert one.iou(other) == len(first & second) / len(first | second)
        assert one.iou(one.complement) == 0
    empty = Circuit.from_edges(GRAPH, [])
    assert empty.iou(empty) == 1
    with pytest.raises(ValueError, match="need one graph to be compared"):
        empty.iou(Circuit.from_edges(Graph(Architecture(1, 1, 1)), []))


@pytest.mark.parametrize("count", [0, 1, 7, GRAPH.n_edges])
def test_top_keeps_exactly_so_many_and_the_highest(count: int) -> None:
    values = torch.randint(4, (GRAPH.n_edges,), generator=torch.Generator().manual_seed(0)).float()
    circuit = Scores(GRAPH, values, PROVENANCE).top(count)
    ranked = sorted(range(GRAPH.n_edges), key=lambda edge: (-values[edge], edge))
    assert circuit.kept.nonzero().flatten().tolist() == sorted(ranked[:count])
    assert dict(circuit.provenance) == PROVENANCE


@pytest.mark.parametrize("count", [-1, GRAPH.n_edges + 1])
def test_a_count_outside_the_graph_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="number of edges must lie between 0 and"):
        Scores(GRAPH, torch.zeros(GRAPH.n_edges)).top(count)


def test_counts_are_written_one_way() -> None:
    assert edges_text(1234, 32491) == "1,234 of 32,491 edges"
