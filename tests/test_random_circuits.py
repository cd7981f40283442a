"""Random circuits have exactly the size asked for, and every edge of them is on a path."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from test_graph import GRAPHS, STORIES

import tlprune as tp
from tlprune.evaluation.overlap import overlap
from tlprune.flow import Flow
from tlprune.graph import Architecture, Convention, Graph
from tlprune.random_circuits import connected_order, connected_random, random_like
from tlprune.sites import Sites
from tlprune.spans import Spanned


@pytest.mark.parametrize("share", [0.05, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_exactly_so_many_edges_and_all_effective(graph: Graph, share: float) -> None:
    count = max(2, round(share * graph.n_edges))
    for seed in range(5):
        circuit = connected_random(graph, count, seed=seed)
        assert len(circuit) == count
        assert circuit.n_effective == count, seed


@pytest.mark.parametrize("embeddings", ["merged", "kept"])
def test_a_head_that_reads_once_has_one_edge_in_and_one_out(embeddings: Literal["merged", "kept"]) -> None:
    graph = Graph(STORIES, Convention(embeddings, qkv="joined"))
    for count in (1, 2, 3, 50, len(graph)):
        assert connected_random(graph, count).n_effective == count


@pytest.mark.parametrize("count", [1, 2, 3, 5, 170])
def test_small_sizes_are_connected_too(count: int) -> None:
    for seed in range(20):
        assert connected_random(Graph(STORIES), count, seed=seed).n_effective == count, seed


def test_a_seed_repeats_and_another_differs() -> None:
    first, again, other = (connected_random(Graph(STORIES), 50, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first.provenance["method"] == {"name": "connected_random", "seed": 0}


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    connected_random(Graph(STORIES), 50)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_edge_can_be_met() -> None:
    """A control that never draws some edges would not be a random circuit."""
    graph = GRAPHS["plain-merged-shared"]
    met = torch.stack([connected_random(graph, 12, seed=seed).kept for seed in range(400)]).any(0)
    assert met.all()


@pytest.mark.parametrize("count", [-1, 1702])
def test_a_size_outside_the_graph_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="number of edges must lie between"):
        connected_random(Graph(STORIES), count)


@pytest.mark.parametrize("seed", range(3))
def test_an_order_has_every_edge_once_and_grows_a_connected_circuit(seed: int) -> None:
    graph = Graph(Architecture(3, 4, 2))
    order = connected_order(graph, seed=seed)
    assert sorted(order.tolist()) == list(range(len(graph)))
    kept = torch.zeros(len(graph), dtype=torch.bool)
    for size, edge in enumerate(order.tolist(), start=1):
        kept[edge] = True
        assert int(graph.effective(kept).sum()) >= size - 1
    assert order.tolist() == connected_order(graph, seed=seed).tolist() != connected_order(graph, seed=9).tolist()


FLOW = Flow(("s", "t", "rest"), (("rest", "s"), ("rest", "t"), ("s", "t")), ("t",))
BY_SPAN = {
    "plain": Graph(Architecture(3, 2, 2)),
    "shared": Graph(Architecture(2, 4, 2)),
    "joined": Graph(Architecture(2, 2, 2), Convention(qkv="joined")),
    "kept": Graph(Architecture(2, 2, 2), Convention("kept")),
}


@pytest.mark.parametrize("flow", [FLOW, None], ids=["known", "unknown"])
@pytest.mark.parametrize("name", BY_SPAN)
def test_by_span_each_edge_is_on_a_path_that_prompts_can_have(name: str, flow: Flow | None) -> None:
    edges = Spanned(BY_SPAN[name], ("s", "t"), flow)
    able = tp.Circuit(Sites((edges,)), torch.ones(len(edges), dtype=torch.bool)).n_effective
    met = torch.zeros(len(edges), dtype=torch.bool)
    for seed in range(30):
        for count in (1, 2, 7, 40):
            found = connected_random(edges, count, seed=seed)
            assert len(found) == found.n_effective == count
            met |= found.kept
    assert all(bool(own.any()) for own in edges.table(met))
    assert connected_random(edges, able).n_effective == able
    if flow is not None:
        assert able < len(edges)
        more = connected_random(edges, able + 3)
        assert (len(more), more.n_effective) == (able + 3, able)
    order = connected_order(edges, seed=3)
    assert sorted(order.tolist()) == list(range(len(edges)))
    for size in range(1, able + 1, 5):
        kept = torch.zeros(len(edges), dtype=torch.bool)
        kept[order[:size]] = True
        assert tp.Circuit(Sites((edges,)), kept).n_effective >= size - 1


def test_by_span_a_random_circuit_is_a_baseline_and_a_method() -> None:
    planted = tp.planted("and")
    method = tp.Random(edges=20, spans=planted.task.span_names)
    found = method.find(planted.model, planted.task)
    assert found.n_effective >= 19
    assert found.sites.flow == tp.edges(planted.model, spans=planted.task).flow
    assert tp.method_from(found.provenance) == method
    like = random_like(found, seed=4)
    assert (len(like), like.n_effective) == (20, 20)
    table = tp.evaluate(planted.model, found, planted.task)
    assert (table["random"].kept, table["random"].effective) == (20, 20)
    assert table["random"].distinct == len(random_like(found).without_spans())
    own, other = (tp.Random(edges=20, shape="free", spans=("x",), seed=seed) for seed in (0, 1))
    scores = own.score(planted.model, planted.task)
    assert len(scores.values) == 220
    assert not torch.equal(scores.values, other.score(planted.model, planted.task).values)


def test_chance_of_overlap_by_span_depends_on_the_order_of_spans() -> None:
    sites = Sites((Spanned(BY_SPAN["plain"], ("s", "t"), FLOW),))
    known = connected_random(sites.edges, 12, seed=500)
    unknown = tp.Circuit(sites.flowing(None), known.kept)
    expected = [
        sum(one.iou(connected_random(one.sites.edges, 12, seed=seed)) for seed in range(20)) / 20
        for one in (known, unknown)
    ]
    found = [overlap(one, one, samples=20).chance for one in (known, unknown)]
    assert found == pytest.approx(expected)
    assert found[0] != found[1]
