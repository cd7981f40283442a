"""Files of Edge Pruning's released code, out and in: edges, and gates among the weights of what it pruned."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tlprune as tp
from tlprune.graph import Architecture, Convention, Graph
from tlprune.sites import Sites

GPT2 = Architecture(n_layers=2, n_heads=3, n_kv_heads=3, position_embedding=True)
LLAMA = Architecture(n_layers=2, n_heads=4, n_kv_heads=2)
CONVENTIONS = [Convention("separate"), Convention("kept")]


def random_circuit(graph: Graph, seed: int) -> tp.Circuit:
    kept = torch.rand(len(graph), generator=torch.Generator().manual_seed(seed)) < 0.3
    return tp.Circuit(Sites((graph,)), kept)


# ---- edges


@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
@pytest.mark.parametrize("architecture", [GPT2, LLAMA])
def test_what_is_written_is_read_again(tmp_path: Path, architecture: Architecture, convention: Convention) -> None:
    path = tmp_path / "edges.json"
    for seed in range(5):
        circuit = random_circuit(Graph(architecture, convention), seed)
        tp.to_edge_pruning(circuit, path)
        assert tp.from_edge_pruning(path, Graph(architecture)) == circuit


def their_edges(architecture: Architecture, *, with_embedding_nodes: bool) -> Iterator[tuple[str, str]]:
    """All names, in the loops of the description of the format."""
    gpt2 = architecture.position_embedding
    before = (["tok_embeds", "pos_embeds"] if gpt2 else ["embeds"]) if with_embedding_nodes else []
    for layer in range(architecture.n_layers):
        heads = [f"a{layer}.h{head}" for head in range(architecture.n_heads)]
        shared = [f"a{layer}.h{head}" for head in range(architecture.n_kv_heads)]
        readers = [f"{head}.q" for head in heads] + [f"{head}.{letter}" for letter in "kv" for head in shared]
        yield from ((writer, reader) for reader in readers for writer in before)
        yield from ((writer, f"m{layer}") for writer in before + heads)
        before = [*before, *heads, f"m{layer}"]
    yield from ((writer, "resid_post") for writer in before)


@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
@pytest.mark.parametrize("architecture", [GPT2, LLAMA])
def test_every_edge_has_the_name_of_the_original(
    tmp_path: Path, architecture: Architecture, convention: Convention
) -> None:
    graph = Graph(architecture, convention)
    tp.to_edge_pruning(tp.Circuit(Sites((graph,)), torch.ones(len(graph), dtype=torch.bool)), tmp_path / "edges.json")
    pairs = [tuple(pair) for pair in json.loads((tmp_path / "edges.json").read_text())]
    assert len(pairs) == len(graph)
    assert set(pairs) == set(their_edges(architecture, with_embedding_nodes=convention.embeddings == "separate"))


@pytest.mark.parametrize(
    "convention", [Convention(), Convention("separate", kv="per_query_head"), Convention("kept", qkv="joined")], ids=str
)
def test_other_conventions_are_refused_with_the_way_out(tmp_path: Path, convention: Convention) -> None:
    circuit, path = random_circuit(Graph(LLAMA, convention), 0), tmp_path / "edges.json"
    with pytest.raises(
        ValueError, match=r"this circuit has: .*tp.convert\(circuit, tp.Convention\('(separate|kept)'\)"
    ):
        tp.to_edge_pruning(circuit, path)
    assert not path.exists()
    said = Convention("kept" if convention.embeddings == "kept" else "separate")
    converted = tp.convert(circuit, said, reduce="max")
    tp.to_edge_pruning(converted, path)
    assert tp.from_edge_pruning(path, Graph(LLAMA)) == converted


def test_other_units_are_refused(tmp_path: Path) -> None:
    model = tp.planted("copy").model
    for sites in (tp.heads(model), tp.edges(model, embeddings="separate", spans=("end",))):
        with pytest.raises(ValueError, match=r"needs a circuit of edges that are the same at all positions"):
            tp.to_edge_pruning(tp.Circuit(sites, torch.ones(len(sites), dtype=torch.bool)), tmp_path / "edges.json")


# ---- gates


def gates_of(architecture: Architecture, *, embedding_nodes: bool, seed: int = 0) -> dict[str, Tensor]:
    """Random gates by the names of the original, with rows for all writers in each tensor."""
    generator, shape = torch.Generator().manual_seed(seed), architecture
    stem, blocks = ("transformer", "h") if shape.position_embedding else ("model", "layers")
    embeddings = (2 if shape.position_embedding else 1) * embedding_nodes
    writers = embeddings + shape.n_layers * (shape.n_heads + 1)

    def values(*size: int) -> Tensor:
        return 4 * torch.randn(size, generator=generator)

    found = {f"{stem}.final_read_log_alphas": values(writers)}
    found |= {f"{stem}.{name}_write_log_alpha": values(1) for name in ("token", "pos")[:embeddings]}
    for layer in range(shape.n_layers):
        block = f"{stem}.{blocks}.{layer}"
        found[f"{block}.q_read_log_alphas"] = values(writers, shape.n_heads)
        found |= {f"{block}.{letter}_read_log_alphas": values(writers, shape.n_kv_heads) for letter in "kv"}
        found[f"{block}.mlp_read_log_alphas"] = values(writers)
        found |= {f"{block}.attn_write_log_alphas": values(shape.n_heads), f"{block}.mlp_write_log_alphas": values(1)}
        found[f"{block}.mlp.weight"] = torch.zeros(2)
    return found


def masks_of(values: Tensor) -> list[float]:
    """The published mask of one tensor, number by number: a sigmoid, and as many zeros as are expected."""
    numbers = values.flatten().tolist()
    zeros = round(sum(1 / (1 + math.exp(-(2 / 3 * math.log((0 + 0.1) / 1.1) - one))) for one in numbers))
    masks = [1 / (1 + math.exp(-one * 1.5 * 0.8)) for one in numbers]
    for place in sorted(range(len(numbers)), key=lambda place: numbers[place])[:zeros]:
        masks[place] = 0.0
    return masks


def their_circuit(
    architecture: Architecture, gates: dict[str, Tensor], *, embedding_nodes: bool
) -> set[tuple[str, str]]:
    """What the original keeps, edge by edge by name."""
    shape = architecture
    stem, blocks = ("transformer", "h") if shape.position_embedding else ("model", "layers")
    names = ["tok_embeds", "pos_embeds"] if shape.position_embedding else ["embeds"]
    nodes = {
        name: masks_of(gates[f"{stem}.{own}_write_log_alpha"])[0]
        for name, own in zip(names, ("token", "pos"), strict=False)
        if embedding_nodes
    }
    writers, edges = list(nodes), dict[tuple[str, str], float]()

    def read(tensor: str, readers: list[str], before: int) -> None:
        masks = masks_of(gates[tensor])
        for row, writer in enumerate(writers[:before]):
            for column, reader in enumerate(readers):
                edges[writer, reader] = masks[row * len(readers) + column]

    for layer in range(shape.n_layers):
        block, heads = f"{stem}.{blocks}.{layer}", [f"a{layer}.h{head}" for head in range(shape.n_heads)]
        for letter, count in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
            readers = [f"a{layer}.h{head}.{letter}" for head in range(count)]
            read(f"{block}.{letter}_read_log_alphas", readers, len(writers))
        nodes |= dict(zip(heads, masks_of(gates[f"{block}.attn_write_log_alphas"]), strict=True))
        writers += heads
        read(f"{block}.mlp_read_log_alphas", [f"m{layer}"], len(writers))
        nodes[f"m{layer}"] = masks_of(gates[f"{block}.mlp_write_log_alphas"])[0]
        writers.append(f"m{layer}")
    read(f"{stem}.final_read_log_alphas", ["resid_post"], len(writers))
    above = searched(list(edges.values()))
    node_above = searched([mask for name, mask in nodes.items() if name != "pos_embeds"])
    return {edge for edge, mask in edges.items() if mask > above and nodes[edge[0]] > node_above}


def searched(masks: list[float]) -> float:
    """The published bisection."""
    wanted, low, high, middle = 1 - sum(masks) / len(masks), 0.0, 1.0, 0.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        if 1 - sum(mask > middle for mask in masks) / len(masks) > wanted:
            high = middle
        else:
            low = middle
    return middle


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("embedding_nodes", [False, True])
@pytest.mark.parametrize("architecture", [GPT2, LLAMA])
def test_the_circuit_at_its_own_thresholds(
    tmp_path: Path, architecture: Architecture, embedding_nodes: bool, seed: int
) -> None:
    gates = gates_of(architecture, embedding_nodes=embedding_nodes, seed=seed)
    found = tp.from_edge_pruning_gates(gates, Graph(architecture)).circuit
    tp.to_edge_pruning(found, tmp_path / "edges.json")
    pairs = {tuple(pair) for pair in json.loads((tmp_path / "edges.json").read_text())}
    assert pairs == their_circuit(architecture, gates, embedding_nodes=embedding_nodes)
    assert 0 < len(pairs) < len(found.kept)


def test_gates_in_graph_order_and_circuits_of_any_size() -> None:
    gates = gates_of(LLAMA, embedding_nodes=True)
    found = tp.from_edge_pruning_gates(gates, Graph(LLAMA))
    writer = found.scores.graph.writers.index("a0.h2")
    assert found.scores["a0.h2->a1.kv1<v>"] == gates["model.layers.1.v_read_log_alphas"][writer, 1]
    assert found.scores["a0.h2->logits"] == gates["model.final_read_log_alphas"][writer]
    assert found.nodes["a1.h3"] == gates["model.layers.1.attn_write_log_alphas"][3]
    assert found.nodes["embed"] == gates["model.token_write_log_alpha"][0]
    kept = {name.partition("->")[0] for name in found.at(sparsity=0.0, node_sparsity=None).edges}
    few = found.at(edges=9)
    best = sorted(found.scores.graph.edges(), key=lambda name: -found.scores[name])
    assert set(few.edges) == set([name for name in best if name.partition("->")[0] in kept][:9])
    assert len(found.at(edges=40, node_sparsity=0.0)) == 40
    with pytest.raises(ValueError, match="those of kept writers, but is 137"):
        found.at(edges=137)
    with pytest.raises(ValueError, match="has one size"):
        found.at(edges=3, sparsity=0.5)


def test_gates_from_files(tmp_path: Path) -> None:
    gates = gates_of(GPT2, embedding_nodes=True)
    expected = tp.from_edge_pruning_gates(gates, Graph(GPT2))
    names = sorted(gates)
    for number, half in enumerate((names[::2], names[1::2])):
        save_file({name: gates[name] for name in half}, tmp_path / f"model-{number}.safetensors")
    torch.save(gates, tmp_path / "weights.bin")
    for source in (tmp_path, tmp_path / "weights.bin"):
        found = tp.from_edge_pruning_gates(source, Graph(GPT2))
        assert torch.equal(found.scores.values, expected.scores.values)
        assert found.circuit == expected.circuit
        assert found.circuit.provenance["file"]["sha256"]


def test_gates_of_another_model_are_refused(tmp_path: Path) -> None:
    gates, graph = gates_of(GPT2, embedding_nodes=True), Graph(GPT2)
    deeper = Graph(Architecture(3, 3, 3, position_embedding=True))
    with pytest.raises(ValueError, match=r"final_read|has shape"):
        tp.from_edge_pruning_gates(gates, deeper)
    with pytest.raises(ValueError, match=r"mlp_read of layer 1 of shape .* but it is missing"):
        tp.from_edge_pruning_gates({n: v for n, v in gates.items() if "1.mlp_read" not in n}, graph)
    with pytest.raises(ValueError, match="q_read of layer 7 beside those"):
        tp.from_edge_pruning_gates({**gates, "transformer.h.7.q_read_log_alphas": torch.zeros(8, 3)}, graph)
    with pytest.raises(ValueError, match="none of 1 tensors is"):
        tp.from_edge_pruning_gates({"wte.weight": torch.zeros(2)}, graph)
    with pytest.raises(ValueError, match=r"has no .safetensors or .bin"):
        tp.from_edge_pruning_gates(tmp_path, graph)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is not a model that Edge Pruning saved"):
        tp.from_edge_pruning_gates(tmp_path, graph)
    with pytest.raises(ValueError, match="Cannot read"):
        tp.from_edge_pruning_gates(tmp_path / "gone.safetensors", graph)


def test_bisection_of_ones_own_gates_finds_the_published_threshold() -> None:
    sites = Sites((Graph(Architecture(2, 4, 2)),))
    scores = tp.Scores(sites, 4 * torch.randn(len(sites), generator=torch.Generator().manual_seed(1)))
    masks = masks_of(scores.values)
    found = tp.Bisected().select(scores, 0)
    assert found.kept.tolist() == [mask > searched(masks) for mask in masks]
    removed = 1 - len(tp.Bisected(sparsity=0.9).select(scores, 0)) / len(sites)
    assert abs(removed - 0.9) <= 1 / len(sites)
    with pytest.raises(ValueError, match=r"lies between 0 and 1 but is 1\.2"):
        tp.Bisected(sparsity=1.2)


def test_a_state_dict_may_have_other_prefixes_and_the_names_of_the_tracr_model() -> None:
    gates = gates_of(GPT2, embedding_nodes=True)
    renamed: dict[str, Any] = {}
    for name, value in gates.items():
        other = (
            name.replace("transformer.", "")
            .replace("attn_write", "attn.write")
            .replace("final_read_log_alphas", "final_read_log_alpha")
        )
        renamed[other.replace("mlp_", "mlp.mlp_").replace(".q_", ".attn.q_")] = value
    expected, found = (tp.from_edge_pruning_gates(one, Graph(GPT2)) for one in (gates, renamed))
    assert found.circuit == expected.circuit
    assert torch.equal(found.nodes.values, expected.nodes.values)
