"""Paths by span: held to all paths of tiny graphs, and to models, whose logits change by what counts alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import error, fresh, model_of, random_batch

import tlprune as tp
from tlprune.connecting import best_path, connecting_size, fewest_edges
from tlprune.flow import Flow
from tlprune.graph import Architecture, Convention, Graph
from tlprune.masking.sites import follow
from tlprune.methods.alive import alive
from tlprune.placing import flow_of
from tlprune.scores import first
from tlprune.sites import Nodes, Sites
from tlprune.spans import Spanned
from tlprune.task import MAIN, Batch, Discovery, Tokens

ALL = ("s", "t", "rest")
FLOWS = {
    "everywhere": None,
    "in a row": Flow(ALL, (("s", "t"), ("s", "rest"), ("t", "rest")), ("rest",)),
    "two read": Flow(ALL, (("rest", "s"), ("t", "s")), ("s", "t")),
    "apart": Flow(ALL, (), ("t",)),
}
GRAPHS = {
    "plain": Graph(Architecture(2, 1, 1)),
    "shared": Graph(Architecture(1, 2, 1)),
    "joined": Graph(Architecture(2, 1, 1), Convention(qkv="joined")),
    "layers": Graph(Architecture(2, 2, 2, has_mlp=False), Convention(heads="joined")),
    "kept": Graph(Architecture(2, 1, 1, parallel=True), Convention(embeddings="kept")),
}
each_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
each_flow = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)


def spanned(graph: Graph, flow: Flow | None) -> Spanned:
    return Spanned(graph, ("s", "t"), flow)


def feeds(graph: Graph, node: str, reader: str) -> bool:
    """Whether a reader, by its name, reads for a node."""
    own = reader.partition("<")[0]
    if ".kv" in own:
        layer, _, number = own.partition(".kv")
        size = graph.architecture.n_heads // graph.architecture.n_kv_heads
        return node.startswith(f"{layer}.h") and int(node.partition(".h")[2]) // size == int(number)
    return own == node


def paths(group: Spanned, edges: set[str], node: str, span: str) -> Iterator[list[str]]:
    """Every path of these edges from an embedding to what a node gives at a span, from its end on, by names alone."""
    graph, flow = group.group, group.flows
    assert isinstance(graph, Graph)
    if node in graph.embeddings:
        yield []
        return
    if not graph.embeddings and node != "logits":
        yield []
    for name in edges:
        writer, _, rest = name.partition("->")
        reader, _, place = rest.partition("@")
        if not feeds(graph, node, reader):
            continue
        stays = reader.startswith(("m", "logits")) or reader.endswith("<q>")
        if place == span or (not stays and (place, span) in flow.moves):
            for before in paths(group, edges, writer, place):
                yield [name, *before]


def all_paths(group: Spanned, edges: set[str]) -> list[list[str]]:
    return [path for span in group.flows.read for path in paths(group, edges, "logits", span)]


def some(group: Graph | Spanned, seed: int, share: float) -> torch.Tensor:
    return torch.rand(len(group), generator=torch.Generator().manual_seed(seed)) < share


def names_of(group: Spanned, kept: torch.Tensor) -> set[str]:
    return {group.name(index) for index in kept.nonzero().flatten().tolist()}


@each_graph
@each_flow
def test_what_counts_is_on_some_path(graph: Graph, flow: Flow | None) -> None:
    group, found = spanned(graph, flow), 0
    for seed in range(12):
        circuit = tp.Circuit(Sites((group,)), some(group, seed, 0.35))
        on_paths = {edge for path in all_paths(group, set(circuit.edges)) for edge in path}
        assert set(circuit.effective.edges) == on_paths
        found += 0 < len(on_paths) < len(circuit)
    assert found > 3


@each_graph
@each_flow
def test_the_best_path_is_the_best_of_all(graph: Graph, flow: Flow | None) -> None:
    group = spanned(graph, flow)
    for seed in range(6):
        values = torch.rand(len(group), generator=torch.Generator().manual_seed(seed))
        values = (4 * values).round() if seed % 2 else values
        able = some(group, seed, 0.4)
        whole = [[group.index(edge) for edge in path] for path in all_paths(group, names_of(group, able))]
        for most in (1, 2, 9):
            open_ = [path for path in whole if 0 < len(path) <= most]
            path = best_path(group, values, most=most, able=able)
            if not open_:
                assert path is None
                continue
            best = max(float(values[own].min()) for own in open_)
            assert path is not None
            assert path[::-1] in open_
            assert float(values[path].min()) == best
            assert len(path) == min(len(own) for own in open_ if float(values[own].min()) == best)
        assert fewest_edges(group, able) == min(map(len, whole), default=None)
        sizes = [k for k in range(len(group) + 1) if tp.Circuit(Sites((group,)), first(values, k)).n_effective]
        assert connecting_size(group, values) == sizes[0]


@each_graph
def test_one_span_for_all_is_no_span(graph: Graph) -> None:
    for seed in range(5):
        kept = torch.rand(len(graph), generator=torch.Generator().manual_seed(seed)) < 0.3
        by_span = tp.Circuit(Sites((Spanned(graph, ("..",)),)), kept)
        assert torch.equal(by_span.effective.kept, graph.effective(kept))


def test_nodes_are_removed_at_their_span() -> None:
    graph = GRAPHS["plain"]
    flow = FLOWS["in a row"]
    sites = Sites((Spanned(Nodes("heads", ("a0.h0", "a1.h0")), ("s", "t"), flow), Spanned(graph, ("s", "t"), flow)))
    edges = {"input->a0.h0<v>@s", "a0.h0->logits@rest", "a0.h0->a1.h0<k>@t", "a1.h0->logits@rest", "input->m0@t"}
    heads = {f"a{layer}.h0@{span}" for layer in (0, 1) for span in ALL}
    for gone, void in (
        ("a0.h0@s", set[str]()),
        ("a0.h0@t", {"a0.h0->a1.h0<k>@t", "a1.h0->logits@rest"}),
        ("a0.h0@rest", {"a0.h0->logits@rest"}),
        ("a1.h0@rest", {"a0.h0->a1.h0<k>@t", "a1.h0->logits@rest"}),
    ):
        found = tp.Circuit.from_names(sites, edges | heads - {gone})
        assert set(found.effective.names) == edges - {"input->m0@t"} - void | heads - {gone}


def test_edges_without_spans_beside_nodes_by_span_count_at_any() -> None:
    graph = GRAPHS["plain"]
    sites = Sites((Spanned(Nodes("heads", ("a0.h0",)), ("s", "t"), FLOWS["in a row"]), graph))
    edges = {"input->a0.h0<q>", "a0.h0->logits"}
    for spans, count in ((("s", "t"), 0), (("rest",), 2), (("s", "rest"), 2)):
        heads = {f"a0.h0@{span}" for span in spans}
        assert tp.Circuit.from_names(sites, edges | heads).effective.count("edges") == count
    values = torch.rand(len(sites), generator=torch.Generator().manual_seed(0))
    masks = tp.Masks(sites, start=values)
    assert masks.circuit(edges=3, heads=1).effective.count("edges") > 0


def test_heads_and_neurons_go_with_their_layer_at_its_span() -> None:
    heads = Spanned(Nodes("heads", ("a0.h0", "a1.h0")), ("s",))
    layers = Spanned(Nodes("layers", ("a0",)), ("s",))
    found = tp.Circuit.from_names(Sites((heads, layers)), ["a0.h0@s", "a0.h0@rest", "a1.h0@s", "a0@rest"])
    assert found.effective.names == ["a1.h0@s", "a0.h0@rest", "a0@rest"]
    bare = tp.Circuit.from_names(Sites((heads.group, layers)), ["a0.h0", "a0@rest"])
    assert bare.effective.names == ["a0.h0", "a0@rest"]
    assert tp.Circuit.from_names(Sites((heads.group, layers)), ["a0.h0"]).n_effective == 0


# ---- what prompts say


NAMES = ("subject", "verb")
SPANS = torch.tensor([[-1, -1, 0, 0, 1, 1], [-1, -1, 0, 0, 0, 1], [-1, -1, 0, 1, 1, 1]])


def spanned_batch(spans: torch.Tensor = SPANS) -> Batch:
    return dataclasses.replace(random_batch(), spans=spans, span_names=NAMES)


def discovery_of(*batches: Batch) -> Discovery:
    return Discovery("mine", {MAIN: (batches[0], batches[-1])}, {"name": "mine", "fingerprint": "x"}, NAMES)


def brute_flow(batch: Batch, *, causal: bool) -> tuple[set[tuple[str, str]], set[str]]:
    moves, read = set(), set()
    names = [*NAMES, "rest"]
    assert batch.spans is not None
    for row, own in enumerate(batch.spans.tolist()):
        mask = batch.clean.attention_mask
        real = [p for p in range(len(own)) if mask is None or mask[row, p]]
        read |= {names[own[p]] for p in batch.positions[row].tolist()}
        moves |= {(names[own[a]], names[own[b]]) for a in real for b in real if a <= b or not causal}
    return moves, read


@pytest.mark.parametrize("causal", [True, False])
def test_flow_is_what_positions_see(causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        batch = spanned_batch(torch.randint(-1, 2, (3, 6), generator=generator))
        mask = torch.ones(3, 6, dtype=torch.long)
        mask[0, :2] = 0
        positions = torch.randint(2, 6, (3, 1), generator=generator)
        batch = dataclasses.replace(batch, clean=Tokens(batch.clean.ids, mask), positions=positions)
        flow = flow_of(discovery_of(batch), NAMES, causal=causal)
        assert flow is not None
        assert (set(flow.moves), set(flow.read)) == brute_flow(batch, causal=causal)
    alone = flow_of(discovery_of(batch.rows(torch.tensor([1])), batch.rows(torch.tensor([2]))), NAMES, causal=causal)
    both = flow_of(discovery_of(batch.rows(torch.tensor([1, 2]))), NAMES, causal=causal)
    assert alone == both


def test_answers_that_fill_up_are_not_read() -> None:
    batch = spanned_batch()
    batch = dataclasses.replace(
        batch,
        positions=torch.tensor([[5, 0], [5, 0], [5, 2]]),
        answers=torch.tensor([[1, -100], [1, -100], [1, 1]]),
        foils=torch.full((3, 2), -100),
    )
    flow = flow_of(discovery_of(batch), NAMES)
    assert flow is not None
    assert set(flow.read) == {"verb", "subject"}
    assert flow_of(discovery_of(random_batch()), NAMES) is None


def test_a_task_gives_its_spans_with_their_flow(tmp_path: Path, testbed: Any) -> None:
    planted = tp.planted("and")
    sites = tp.edges(planted.model, spans=planted.task)
    assert sites == tp.edges(planted.model, spans=planted.task.span_names)
    assert sites.flow == flow_of(planted.task.discovery, planted.task.span_names)
    beside = sites + tp.heads(planted.model, spans=planted.task)
    kept = some(sites.edges, 1, 0.3)
    circuit = tp.Circuit(sites, kept)
    for name in ("it.json", "it.safetensors"):
        circuit.save(tmp_path / name)
        again = tp.Circuit.load(tmp_path / name)
        assert again == circuit
        assert again.sites.flow == sites.flow == beside.flow
        assert again.n_effective == circuit.n_effective < tp.Circuit(sites.flowing(None), kept).n_effective
    bare = dataclasses.replace(planted.task, span_names=())
    with pytest.raises(ValueError, match=r"need a task that names spans of its prompts but 'planted-and' names none"):
        tp.edges(planted.model, spans=bare)
    with pytest.raises(ValueError, match="between the spans s, rest but the one given is between s, t, rest"):
        Spanned(GRAPHS["plain"], ("s",), FLOWS["in a row"])
    with pytest.raises(ValueError, match="names 'u'"):
        Flow(ALL, (("s", "u"),), ())


def test_methods_know_the_flow_of_what_they_are_given() -> None:
    planted = tp.planted("copy")
    names = planted.task.span_names
    flow = flow_of(planted.task.discovery, names)
    for method in (tp.EAP(edges=5, spans=names), tp.EdgePruning(edges=5, steps=5, spans=names)):
        assert method.find(planted.model, planted.task).sites.flow == flow
        assert method.score(planted.model, planted.task).sites.flow == flow


# ---- models


BIDIRECTIONAL = fresh("no_norm", attention_dir="bidirectional")
CASES = {
    "gpt2": (model_of("gpt2"), {}),
    "llama": (model_of("llama"), {}),
    "joined": (model_of("llama"), {"qkv": "joined"}),
    "layers": (model_of("gpt2"), {"heads": "joined"}),
    "parallel": (model_of("parallel"), {}),
    "kept": (model_of("gpt2"), {"embeddings": "kept"}),
    "bidirectional": (BIDIRECTIONAL, {}),
}


@pytest.mark.parametrize("middle", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_what_does_not_count_changes_no_logit(case: str, middle: bool) -> None:
    """Kept or not: the circuit of what counts computes the same where answers are read."""
    model, convention = CASES[case]
    batch = spanned_batch()
    if middle:
        batch = dataclasses.replace(batch, positions=torch.tensor([[3], [2], [2]]))
    discovery = discovery_of(batch)
    sites = tp.edges(model, spans=discovery, **convention)
    fewer = 0
    for seed in range(8):
        circuit = tp.Circuit(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(seed)) < 0.3)
        found, alone = (tp.Masked(model, one, tp.Resample())(batch) for one in (circuit, circuit.effective))
        assert error(found, alone) <= 1e-12
        fewer += circuit.n_effective < tp.Circuit(sites.flowing(None), circuit.kept).n_effective
    assert fewer or (case == "bidirectional" and not middle)


@pytest.mark.parametrize("case", ["gpt2", "joined", "bidirectional"])
def test_what_counts_changes_logits(case: str) -> None:
    """In a random model each edge on a path of prompts that are all alike moves the answer."""
    model, convention = CASES[case]
    batch = dataclasses.replace(spanned_batch(SPANS[:1].expand(3, -1).clone()), positions=torch.tensor([[3]] * 3))
    sites = tp.edges(model, spans=discovery_of(batch), **convention)
    everything = tp.Circuit(sites, torch.ones(len(sites), dtype=torch.bool))
    whole = tp.Masked(model, everything, tp.Resample())(batch)
    counts = everything.effective.kept
    assert 0 < int(counts.sum()) < len(sites)
    for index in range(0, len(sites), 7):
        kept = everything.kept.clone()
        kept[index] = False
        moved = float((tp.Masked(model, everything.like(kept), tp.Resample())(batch) - whole).abs().max())
        assert (moved > 1e-9) == bool(counts[index]), sites.name(index)


def test_heads_by_span_beside_edges_by_span() -> None:
    model, batch = model_of("gpt2"), spanned_batch()
    discovery = discovery_of(batch)
    sites = tp.edges(model, spans=discovery) + tp.heads(model, spans=discovery) + tp.mlps(model)
    for seed in range(6):
        circuit = tp.Circuit(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(seed)) < 0.6)
        found, alone = (tp.Masked(model, one, tp.Resample())(batch) for one in (circuit, circuit.effective))
        assert 0 < circuit.n_effective < len(circuit)
        assert error(found, alone) <= 1e-12


# ---- circuits that are sure of a path


def backwards(sites: Sites) -> torch.Tensor:
    """Scores whose best edges end at a span that is not read."""
    names = [sites.name(index) for index in range(len(sites))]
    return torch.linspace(1, 0.5, len(sites)) + torch.tensor([float(name.endswith("@copied")) for name in names])


def test_top_connected_keeps_a_path_that_prompts_have() -> None:
    planted = tp.planted("copy")
    sites = tp.edges(planted.model, spans=planted.task)
    scores = tp.Scores(sites, backwards(sites))
    for count in (1, 2, 5, 110):
        top, found = scores.top(count), tp.TopConnected().select(scores, count)
        assert top.n_effective == 0
        assert len(found) == count
        assert found.n_effective > 0
    assert tp.Circuit(sites.flowing(None), scores.top(110).kept).n_effective > 0
    needed = connecting_size(scores.sites.edges, scores.values)
    assert needed is not None
    wider = tp.TopConnected().select(scores, needed)
    assert wider.n_effective > scores.top(needed).n_effective > 0
    masks = tp.Masks(sites, start=scores.values)
    assert masks.circuit(edges=5) == tp.TopConnected().select(scores, 5)
    assert masks.circuit(edges=5).provenance["connected"] == {"smallest_top": needed}
    with pytest.raises(tp.DeadCircuitError, match=rf"The {needed:,} edges of the highest score are the fewest"):
        alive(scores.top(110), scores, count=110)
    with pytest.raises(ValueError, match=r"Greedy follows paths.*scores\.without_spans\(\)"):
        tp.Greedy().select(scores, 5)


def test_sites_follow_a_task_later() -> None:
    planted = tp.planted("copy")
    plain = tp.edges(planted.model, spans=planted.task.span_names)
    assert follow(plain, planted.model, planted.task).flow == tp.edges(planted.model, spans=planted.task).flow
    assert follow(tp.edges(planted.model), planted.model, planted.task) == tp.edges(planted.model)
