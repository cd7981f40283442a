"""Random circuits have exactly the size asked for, and every edge of them is on a path."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from test_graph import GRAPHS, STORIES

from tlprune.graph import Architecture, Convention, Graph
from tlprune.random_circuits import connected_order, connected_random


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
