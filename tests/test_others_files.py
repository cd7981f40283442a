"""Files of ACDC, auto-circuit and Edge Pruning, written here as these tools write them."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tlprune as tp
from tlprune.graph import Architecture, Convention, Graph

PLAIN = Architecture(n_layers=2, n_heads=3, n_kv_heads=3, position_embedding=True)
GROUPED = Architecture(n_layers=2, n_heads=4, n_kv_heads=2)
ATTENTION = Architecture(n_layers=2, n_heads=3, n_kv_heads=3, has_mlp=False)
PARALLEL = Architecture(n_layers=2, n_heads=3, n_kv_heads=3, parallel=True)


# ---- ACDC


class TorchIndex:
    """What ACDC's own class holds."""

    def __init__(self, places: list[Any]) -> None:
        self.as_index = tuple(slice(None) if place is None else place for place in places)
        self.hashable_tuple = tuple(places)


@pytest.fixture
def acdc(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module under whose name ACDC pickles its index."""
    module = ModuleType("acdc.TLACDCEdge")
    module.TorchIndex = TorchIndex  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(TorchIndex, "__module__", "acdc.TLACDCEdge")
    monkeypatch.setitem(sys.modules, "acdc", ModuleType("acdc"))
    monkeypatch.setitem(sys.modules, "acdc.TLACDCEdge", module)


WHOLE, HEAD_2 = [None], [None, None, 2]
EDGES = [
    ("blocks.1.hook_resid_post", WHOLE, "blocks.1.attn.hook_result", HEAD_2, "a1.h2->logits"),
    ("blocks.1.hook_q_input", HEAD_2, "blocks.0.hook_mlp_out", WHOLE, "m0->a1.h2<q>"),
    ("blocks.0.hook_mlp_in", WHOLE, "blocks.0.hook_resid_pre", WHOLE, "input->m0"),
    ("blocks.1.hook_resid_mid", WHOLE, "blocks.0.attn.hook_result", HEAD_2, "a0.h2->m1"),
    ("blocks.1.hook_v_input", [None, None, 0], "blocks.0.attn.hook_result", HEAD_2, "a0.h2->a1.h0<v>"),
]
INSIDE = [
    ("blocks.1.attn.hook_q", HEAD_2, "blocks.1.hook_q_input", HEAD_2),
    ("blocks.1.attn.hook_result", HEAD_2, "blocks.1.attn.hook_q", HEAD_2),
    ("blocks.0.hook_mlp_out", WHOLE, "blocks.0.hook_mlp_in", WHOLE),
]
NAMES = {name for *_, name in EDGES}


def pickled(path: Path, edges: list[Any], protocol: int | None = None) -> Path:
    entries = [((to, TorchIndex(at), by, TorchIndex(of)), 0.25) for to, at, by, of in edges]
    path.write_bytes(pickle.dumps(entries, protocol))
    return path


@pytest.mark.usefixtures("acdc")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_edges_of_acdc(tmp_path: Path, protocol: int) -> None:
    path = pickled(tmp_path / "another_final_edges.pkl", [edge[:4] for edge in EDGES] + INSIDE, protocol)
    found = tp.from_acdc(path, Graph(PLAIN))
    assert set(found.edges) == NAMES
    assert found.graph == Graph(PLAIN)
    assert found.provenance["internal_edges"] == 3
    assert found.provenance["file"]["format"] == "ACDC"


def test_a_subgraph_of_acdc_tells_which_edges_are_kept(tmp_path: Path) -> None:
    every = [edge[:4] for edge in EDGES] + INSIDE
    data = OrderedDict(((to, tuple(at), by, tuple(of)), place % 2 == 0) for place, (to, at, by, of) in enumerate(every))
    torch.save(data, tmp_path / "subgraph.pth")
    found = tp.from_acdc(tmp_path / "subgraph.pth", Graph(PLAIN))
    assert set(found.edges) == {name for place, (*_, name) in enumerate(EDGES) if place % 2 == 0}
    assert found.provenance["internal_edges"] == 1


@pytest.mark.usefixtures("acdc")
def test_acdc_with_position_nodes_or_grouped_queries(tmp_path: Path) -> None:
    edges = [("blocks.0.hook_mlp_in", WHOLE, f"hook_{name}", WHOLE) for name in ("embed", "pos_embed")]
    path = pickled(tmp_path / "edges.pth", edges)
    assert tp.from_acdc(path, Graph(PLAIN)).edges == ["embed->m0", "pos_embed->m0"]
    head = ("blocks.1.hook_k_input", [None, None, 3], "blocks.0.hook_mlp_out", WHOLE)
    found = tp.from_acdc(pickled(path, [head]), Graph(GROUPED))
    assert (found.edges, found.graph.convention) == (["m0->a1.h3<k>"], Convention(kv="per_query_head"))


WRONG = {
    "not behind the last": ("blocks.0.hook_resid_post", WHOLE, "blocks.0.hook_mlp_out", WHOLE),
    "no place where ACDC's edges end": ("blocks.0.hook_scale", WHOLE, "blocks.0.hook_mlp_out", WHOLE),
    "no place where ACDC's edges begin": ("blocks.1.hook_mlp_in", WHOLE, "blocks.0.hook_z", WHOLE),
    r"needs an index \[:, :, head\]": ("blocks.1.hook_mlp_in", WHOLE, "blocks.0.attn.hook_result", WHOLE),
    "same at all positions": ("blocks.1.hook_mlp_in", [None, 4], "blocks.0.hook_mlp_out", WHOLE),
    "runs backwards": ("blocks.0.hook_mlp_in", WHOLE, "blocks.1.hook_mlp_out", WHOLE),
    "is not a writer": ("blocks.1.hook_mlp_in", WHOLE, "blocks.0.attn.hook_result", [None, None, 7]),
}


@pytest.mark.usefixtures("acdc")
@pytest.mark.parametrize("message", WRONG)
def test_edges_that_acdc_cannot_mean_here(tmp_path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tp.from_acdc(pickled(tmp_path / "edges.pkl", [WRONG[message]]), Graph(PLAIN))


class Malicious:
    """Runs a command when it is unpickled, unless that is refused."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("save", [torch.save, lambda data, path: path.write_bytes(pickle.dumps(data))])
def test_code_in_files_is_not_run(tmp_path: Path, save: Any) -> None:
    path, mark = tmp_path / "edges.pkl", tmp_path / "ran"
    save([Malicious(mark)], path)
    for read in (tp.from_acdc, tp.from_auto_circuit):
        with pytest.raises(ValueError, match=r"edges.pkl is not a file of"):
            read(path, Graph(PLAIN))
    with pytest.raises(ValueError, match="cut, or holds more"):
        tp.from_mib(path.rename(tmp_path / "g.pt"), "gpt2")
    assert not mark.exists()


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], [(("a", (None,), "b"), 0.1)], [((1, (None,), "b", (None,)), 0)]])
def test_pickles_of_other_things(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "edges.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="is not a file of ACDC"):
        tp.from_acdc(path, Graph(PLAIN))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    for read in (tp.from_acdc, tp.from_auto_circuit, tp.from_edge_pruning):
        with pytest.raises(ValueError, match="Cannot read"):
            read(tmp_path / "gone", Graph(PLAIN))
        (tmp_path / "cut").write_bytes(b"\x80\x04")
        with pytest.raises(ValueError, match="cut is not a"):
            read(tmp_path / "cut", Graph(PLAIN))


# ---- auto-circuit


def prune_scores(architecture: Architecture, *, joined: bool = False) -> dict[str, torch.Tensor]:
    """Random scores in auto-circuit's layout: sources counted in the order of the model, the embedding first."""
    generator, shape, found = torch.Generator().manual_seed(0), architecture, {}
    sources = 1
    for layer in range(shape.n_layers):
        places = ["hook_attn_in"] if joined else [f"hook_{letter}_input" for letter in "qkv"]
        for place in places:
            found[f"blocks.{layer}.{place}"] = torch.randn(shape.n_heads, sources, generator=generator)
        before_mlp = sources + (0 if shape.parallel else shape.n_heads)
        if shape.has_mlp:
            found[f"blocks.{layer}.hook_mlp_in"] = torch.randn(before_mlp, generator=generator)
        sources += shape.n_heads + int(shape.has_mlp)
    found[f"blocks.{shape.n_layers - 1}.hook_resid_post"] = torch.randn(sources, generator=generator)
    return found


def source(architecture: Architecture, name: str) -> int:
    """auto-circuit's number of a writer."""
    names = ["input"]
    for layer in range(architecture.n_layers):
        names += [f"a{layer}.h{head}" for head in range(architecture.n_heads)] + [f"m{layer}"] * architecture.has_mlp
    return names.index(name)


@pytest.mark.parametrize("architecture", [PLAIN, GROUPED, ATTENTION, PARALLEL])
def test_scores_of_auto_circuit(tmp_path: Path, architecture: Architecture) -> None:
    data = prune_scores(architecture)
    torch.save(data, tmp_path / "scores.pkl")
    found = tp.from_auto_circuit(tmp_path / "scores.pkl", Graph(architecture))
    assert len(found.values) == sum(tensor.numel() for tensor in data.values())
    head, letter = architecture.n_heads - 1, "v"
    expected = data[f"blocks.1.hook_{letter}_input"][head, source(architecture, "a0.h1")]
    assert found[f"a0.h1->a1.h{head}<{letter}>"] == expected
    assert found["input->a0.h0<q>"] == data["blocks.0.hook_q_input"][0, 0]
    assert found["a1.h1->logits"] == data["blocks.1.hook_resid_post"][source(architecture, "a1.h1")]
    if architecture.has_mlp:
        assert found["m0->m1"] == data["blocks.1.hook_mlp_in"][source(architecture, "m0")]
    assert found.graph.convention.kv == ("per_query_head" if architecture is GROUPED else "shared")


def test_joined_scores_and_scores_by_task_and_algorithm(tmp_path: Path) -> None:
    data = {"ioi": {"EAP": prune_scores(PLAIN, joined=True), "SP": prune_scores(PLAIN)}}
    data["ioi"]["SP"] = {name: tensor > 0 for name, tensor in data["ioi"]["SP"].items()}
    path = tmp_path / "task-prune-scores.pkl"
    torch.save(data, path)
    joined = tp.from_auto_circuit(path, Graph(PLAIN), algorithm="EAP")
    assert joined.graph.convention.qkv == "joined"
    assert joined["m0->a1.h2"] == data["ioi"]["EAP"]["blocks.1.hook_attn_in"][2, 4]
    assert (joined.provenance["task"], joined.provenance["algorithm"]) == ("ioi", "EAP")
    chosen = tp.from_auto_circuit(path, Graph(PLAIN), task="ioi", algorithm="SP")
    assert set(chosen.values.tolist()) == {0.0, 1.0}
    for wrong, message in (({}, "algorithm for 'EAP', 'SP'"), ({"task": "gt", "algorithm": "SP"}, "task for 'ioi'")):
        with pytest.raises(ValueError, match=message):
            tp.from_auto_circuit(path, Graph(PLAIN), **wrong)
    torch.save(data["ioi"]["SP"], path)
    with pytest.raises(ValueError, match="by algorithm for none but needs 'SP'"):
        tp.from_auto_circuit(path, Graph(PLAIN), algorithm="SP")


def test_scores_of_another_layout_are_refused(tmp_path: Path) -> None:
    data, path = prune_scores(PLAIN), tmp_path / "scores.pkl"
    unfactorized = {"blocks.0.hook_resid_mid": torch.ones(4), "blocks.1.hook_resid_post": torch.ones(4)}
    by_position = {name: tensor.expand(5, *tensor.shape) for name, tensor in data.items()}
    wrong = {
        "factorized scores": unfactorized,
        "same at all positions": by_position,
        "tensors by the names": {"a": 1},
        "is missing": {name: tensor for name, tensor in data.items() if "mlp" not in name},
    }
    for message, content in wrong.items():
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            tp.from_auto_circuit(path, Graph(PLAIN))


# ---- Edge Pruning

PAIRS = [["a0.h1", "m0"], ["a0.h2", "a1.h0.k"], ["m0", "a1.h1.q"], ["m1", "resid_post"], ["a1.h0", "m1"]]
EDGES_OF_PAIRS = {"a0.h1->m0", "a0.h2->a1.h0<k>", "m0->a1.h1<q>", "m1->logits", "a1.h0->m1"}


def written(folder: Path, content: Any) -> Path:
    path = folder / "edges.json"
    path.write_text(json.dumps(content, indent=4))
    return path


def test_edges_of_edge_pruning(tmp_path: Path) -> None:
    kept = tp.from_edge_pruning(written(tmp_path, PAIRS), Graph(PLAIN))
    assert (set(kept.edges), kept.graph.convention) == (EDGES_OF_PAIRS, Convention("kept"))
    embeddings = [["tok_embeds", "a0.h1.v"], ["pos_embeds", "resid_post"]]
    separate = tp.from_edge_pruning(written(tmp_path, PAIRS + embeddings), Graph(PLAIN))
    assert set(separate.edges) == EDGES_OF_PAIRS | {"embed->a0.h1<v>", "pos_embed->logits"}
    assert separate.graph.convention == Convention("separate")
    stated = tp.from_edge_pruning(written(tmp_path, PAIRS), Graph(PLAIN), embeddings="separate")
    assert (set(stated.edges), stated.graph.convention) == (EDGES_OF_PAIRS, Convention("separate"))


def test_edges_of_a_pruned_llama(tmp_path: Path) -> None:
    pairs = [["embeds", "a0.h3.q"], ["a0.h2", "a1.h1.k"], ["m0", "a1.h1.v"], ["a1.h3", "resid_post"]]
    found = tp.from_edge_pruning(written(tmp_path, pairs), Graph(GROUPED))
    assert set(found.edges) == {"embed->a0.h3<q>", "a0.h2->a1.kv1<k>", "m0->a1.kv1<v>", "a1.h3->logits"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"edges": []}, "is not a list of pairs"),
        ([["m0"]], "is not a list of pairs"),
        ([["m7", "resid_post"]], "'m7' is not a writer"),
        ([["m0", "a1.h9.q"]], "'a1.h9<q>' is not a reader"),
        ([["m1", "m0"]], "runs backwards"),
        ([["m0", "a1.h0"]], "'a1.h0' is not a reader"),
    ],
)
def test_what_edge_pruning_cannot_mean_here(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tp.from_edge_pruning(written(tmp_path, content), Graph(PLAIN))
