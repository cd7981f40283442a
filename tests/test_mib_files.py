"""MIB's files: what is written is what EAP-IG's graphs are saved as, and what is read is what was written."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import model_of

import tlprune as tp
from tlprune.graph import Convention, Graph
from tlprune.scores import Scores
from tlprune.sites import Sites

ENDINGS = (".json", ".pt")
MIB = Convention(kv="per_query_head")


def mib_graph(style: str) -> Graph:
    return Graph.of(model_of(style), MIB if style == "llama" else Convention())


def random_scores(graph: Graph) -> Scores:
    return Scores(Sites((graph,)), torch.randn(len(graph), generator=torch.Generator().manual_seed(0)))


def by_hand(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A model of one layer of two heads, and its file as EAP-IG would write it, spelt out here."""
    model: Any = model_of("gpt2")
    heads, layers = model.cfg.n_heads, model.cfg.n_layers
    writers, edges = ["input"], []
    for layer in range(layers):
        own = [f"a{layer}.h{head}" for head in range(heads)]
        edges += [f"{writer}->{head}<{letter}>" for writer, head, letter in product(writers, own, "qkv")]
        writers += own
        edges += [f"{writer}->m{layer}" for writer in writers]
        writers += [f"m{layer}"]
    edges += [f"{writer}->logits" for writer in writers]
    cfg = {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": False, "d_model": model.cfg.d_model}
    numbers = {name: {"score": index / 8 - 3, "in_graph": index % 3 == 0} for index, name in enumerate(edges)}
    nodes = {name: {"in_graph": index % 2 == 0} for index, name in enumerate([*writers, "logits"])}
    return model, {"cfg": cfg, "nodes": nodes, "edges": numbers}


def written(path: Path, data: Any) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(data))
    else:
        torch.save(data, path)
    return path


def as_tensors(data: dict[str, Any]) -> dict[str, Any]:
    """The same file in the other format, entry by entry, in the order of EAP-IG: all q, all k, all v, then the MLP."""
    cfg, source = data["cfg"], [name for name in data["nodes"] if name != "logits"]
    heads = range(cfg["n_heads"])
    target = []
    for layer in range(cfg["n_layers"]):
        target += [f"a{layer}.h{head}<{letter}>" for letter in "qkv" for head in heads] + [f"m{layer}"]
    target.append("logits")
    scores, inside = torch.zeros(len(source), len(target)), torch.zeros(len(source), len(target), dtype=torch.bool)
    for name, value in data["edges"].items():
        row, column = (names.index(part) for names, part in zip((source, target), name.split("->"), strict=True))
        scores[row, column], inside[row, column] = value["score"], value["in_graph"]
    nodes = torch.tensor([data["nodes"][name]["in_graph"] for name in source])
    tensors = {"edges_scores": scores, "edges_in_graph": inside, "nodes_in_graph": nodes}
    return {"cfg": cfg, "src_nodes": source, "dst_nodes": target, **tensors}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_written_by_hand_is_read(tmp_path: Path, ending: str) -> None:
    model, data = by_hand(tmp_path)
    found = tp.from_mib(written(tmp_path / f"g{ending}", data if ending == ".json" else as_tensors(data)), model)
    assert found.scores is not None
    assert found.node_scores is None
    assert found.scores.sites == found.circuit.sites == tp.edges(model)
    for name, value in data["edges"].items():
        assert found.scores[name] == value["score"]
        assert (name in found.circuit) == value["in_graph"]
    assert found.nodes.names == [
        name for name, value in data["nodes"].items() if value["in_graph"] and name != "logits"
    ]
    assert found.circuit.provenance["file"]["name"] == f"g{ending}"


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("style", ["gpt2", "llama", "parallel"])
def test_scores_and_circuits_come_back(tmp_path: Path, style: str, ending: str) -> None:
    model, scores = model_of(style), random_scores(mib_graph(style))
    path = tmp_path / f"found{ending}"
    tp.to_mib(scores, path, model=model)
    found = tp.from_mib(path, model)
    assert found.scores is not None
    assert found.scores.sites == scores.sites
    assert torch.equal(found.scores.values, scores.values)
    assert len(found.circuit) == len(found.nodes) == 0
    circuit = scores.top(fraction=0.3)
    tp.to_mib(circuit, path, model=model)
    found = tp.from_mib(path, model)
    assert found.circuit == circuit
    assert found.scores is not None
    assert torch.equal(found.scores.values, circuit.kept.float())


def test_both_formats_are_written_as_eap_ig_writes_them(tmp_path: Path) -> None:
    model, data = by_hand(tmp_path)
    found = tp.from_mib(written(tmp_path / "given.json", data), model)
    assert found.scores is not None
    tp.to_mib(found.scores, tmp_path / "mine.json", model=model)
    mine = json.loads((tmp_path / "mine.json").read_text())
    assert mine["cfg"] == data["cfg"]
    assert set(mine["nodes"]) == set(data["nodes"])
    assert {name: value["score"] for name, value in mine["edges"].items()} == {
        name: value["score"] for name, value in data["edges"].items()
    }
    tp.to_mib(found.scores, tmp_path / "mine.pt", model=model)
    mine, theirs = torch.load(tmp_path / "mine.pt", weights_only=True), as_tensors(data)
    assert set(mine) == set(theirs)
    assert (mine["cfg"], mine["src_nodes"], mine["dst_nodes"]) == (
        data["cfg"],
        theirs["src_nodes"],
        theirs["dst_nodes"],
    )
    assert torch.equal(mine["edges_scores"], theirs["edges_scores"])
    assert mine["edges_in_graph"].dtype == mine["nodes_in_graph"].dtype == torch.bool


def test_shared_keys_and_values_are_written_for_each_query_head(tmp_path: Path) -> None:
    model: Any = model_of("llama")
    path, scores = tmp_path / "shared.json", random_scores(Graph.of(model))
    tp.to_mib(scores, path, model=model)
    edges = json.loads(path.read_text())["edges"]
    assert len(edges) == len(Graph.of(model, MIB)) > len(scores.values)
    for head in range(4):
        assert edges[f"m0->a1.h{head}<v>"]["score"] == scores[f"m0->a1.kv{head // 2}<v>"]
    found = tp.from_mib(path, model).scores
    assert found is not None
    assert torch.equal(tp.convert(found, Convention()).values, scores.values)


def test_nodes_of_a_circuit_have_edges_on_both_sides(tmp_path: Path) -> None:
    model = model_of("gpt2")
    edges = ["input->a0.h1<k>", "a0.h1->logits", "input->m0", "a1.h0->logits", "a0.h1->a2.h2<q>"]
    tp.to_mib(tp.Circuit.from_edges(model, edges), tmp_path / "c.pt", model=model)
    found = tp.from_mib(tmp_path / "c.pt", model)
    assert found.nodes.names == ["input", "a0.h1"]
    assert set(found.circuit.edges) == set(edges)


@pytest.mark.parametrize("ending", ENDINGS)
def test_nodes_come_back_with_the_edges_between_them(tmp_path: Path, ending: str) -> None:
    model, path = model_of("llama"), tmp_path / f"nodes{ending}"
    sites = tp.nodes(model)
    scores = Scores(sites, torch.randn(len(sites), generator=torch.Generator().manual_seed(3)))
    tp.to_mib(scores, path, model=model)
    found = tp.from_mib(path, model)
    assert found.node_scores is not None
    assert found.node_scores.sites == sites
    assert torch.equal(found.node_scores.values, scores.values)
    kept = tp.Circuit.from_names(sites, ["input", "a1.h2", "m2"])
    tp.to_mib(kept, path, model=model)
    found = tp.from_mib(path, model)
    assert found.nodes == kept
    into = [f"a1.h2<{letter}>" for letter in "qkv"]
    assert found.circuit.edges == [
        *(f"input->{reader}" for reader in into),
        *("input->m2", "a1.h2->m2"),
        *("input->logits", "a1.h2->logits", "m2->logits"),
    ]


def test_nodes_without_a_score_are_kept_first(tmp_path: Path) -> None:
    model, data = by_hand(tmp_path)
    tensors = as_tensors(data)
    scores = torch.arange(len(tensors["src_nodes"])).float()
    scores[3] = torch.nan
    torch.save({**tensors, "nodes_scores": scores}, tmp_path / "n.pt")
    found = tp.from_mib(tmp_path / "n.pt", model).node_scores
    assert found is not None
    assert found.top(2).names == [tensors["src_nodes"][3], tensors["src_nodes"][-1]]


def test_a_circuit_file_without_scores_is_read(tmp_path: Path) -> None:
    model, data = by_hand(tmp_path)
    inside = {name: {"in_graph": True} for name in ("input->m0", "m0->logits")}
    found = tp.from_mib(written(tmp_path / "c.json", {**data, "edges": inside}), model)
    assert (found.circuit.edges, found.scores) == (["input->m0", "m0->logits"], None)


def changed(data: dict[str, Any], kind: str) -> dict[str, Any]:
    """The file with one thing wrong, or without the entry of that name."""
    changes = {
        "another model": {"cfg": {**data["cfg"], "n_heads": 2}},
        "another width": {"cfg": {**data["cfg"], "d_model": 64}},
        "unknown edge": {"edges": {**data["edges"], "m9->logits": {"score": 0.0, "in_graph": True}}},
        "no score": {"edges": {**data["edges"], "m0->logits": {"in_graph": True}}},
        "neurons": {"nodes": {**data["nodes"], "m0": {"in_graph": True, "neurons": [1.0]}}},
        "a list": {"nodes": []},
    }
    return {key: value for key, value in {**data, **changes.get(kind, {})}.items() if key != kind}


BROKEN = {
    "another model": "n_heads 2 but this one has n_heads 4",
    "another width": "d_model 64 but this one has d_model 32",
    "unknown edge": "1 edges that this model does not have, such as 'm9->logits'",
    "no score": "none for 1 of .*, such as 'm0->logits'",
    "neurons": "single dimensions",
    "a list": "not laid out",
    "cfg": "needs cfg, nodes, edges",
    "edges": "needs cfg, nodes, edges",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, kind: str) -> None:
    model, data = by_hand(tmp_path)
    with pytest.raises(ValueError, match=BROKEN[kind]):
        tp.from_mib(written(tmp_path / "bad.json", changed(data, kind)), model)


def test_files_of_tensors_are_checked(tmp_path: Path) -> None:
    model, data = by_hand(tmp_path)
    tensors, path = as_tensors(data), tmp_path / "bad.pt"
    wrong = {
        "x .* edges": {"edges_scores": tensors["edges_scores"][:-1]},
        "in their order": {"src_nodes": tensors["src_nodes"][::-1]},
        "single dimensions": {"neurons_in_graph": torch.ones(2)},
        "cut, or holds more": {"cfg": Graph.of(model)},
    }
    for message, change in wrong.items():
        torch.save({**tensors, **change}, path)
        with pytest.raises(ValueError, match=message):
            tp.from_mib(path, model)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="cut, or holds more"):
        tp.from_mib(path, model)
    for name, message in (("gone.json", "Cannot read"), ("gone.pt", "Cannot read"), ("g.bin", "end in .json or .pt")):
        with pytest.raises(ValueError, match=message):
            tp.from_mib(tmp_path / name, model)
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ValueError, match="is not a file of MIB"):
        tp.from_mib(tmp_path / "text.json", model)


def test_what_mib_cannot_say_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "g.json", model_of("llama")
    with pytest.raises(ValueError, match="without MLPs"):
        tp.to_mib(tp.Circuit.from_edges(model_of("attention_only"), []), path, model=model_of("attention_only"))
    refused: list[tuple[tp.Sites, str]] = [
        (tp.heads(model), "edges, or nodes"),
        (tp.edges(model) + tp.heads(model), "edges, or nodes"),
        (tp.edges(model, spans=("name",)), "by span"),
        (tp.nodes(model, "a*"), "all 16 nodes"),
        (tp.edges(model_of("gpt2")), "are of a model of"),
    ]
    for sites, message in refused:
        with pytest.raises(ValueError, match=message):
            tp.to_mib(Scores(sites, torch.zeros(len(sites))), path, model=model)
    with pytest.raises(ValueError, match="llama3 but 'bert' was given"):
        tp.to_mib(tp.Circuit.from_edges(model, []), path, model="bert")
    assert not path.exists()
