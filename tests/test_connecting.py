"""Paths from the embeddings to the logits, held to all sets of edges of tiny graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from test_selection import TINY, draw, each_tiny, subsets
from torch import Tensor

import tlprune as tp
from tlprune.connecting import best_path, connected, connecting_size, fewest_edges, longest
from tlprune.graph import Architecture, Graph
from tlprune.methods.alive import alive
from tlprune.methods.scoring import EdgeScoring
from tlprune.scores import first
from tlprune.sites import Nodes, Sites


def sets_with_a_path(name: str) -> Tensor:
    """Every set of edges of a tiny graph that all lie on paths; any set with a path contains one of them."""
    return subsets(name)[subsets(name).any(1)]


def some(graph: Graph, seed: int) -> Tensor:
    return torch.rand(len(graph), generator=torch.Generator().manual_seed(seed)) < 0.5


@each_tiny
def test_no_fewer_edges_have_a_path(name: str) -> None:
    graph, sets = TINY[name], sets_with_a_path(name)
    assert fewest_edges(graph) == int(sets.sum(1).min()) == 1
    for seed in range(4):
        able = some(graph, seed)
        inside = sets[(sets & ~able).sum(1) == 0]
        expected = int(inside.sum(1).min()) if len(inside) else None
        assert fewest_edges(graph, able) == expected


@each_tiny
@pytest.mark.parametrize("ties", [False, True])
def test_the_smallest_budget_that_connects(name: str, ties: bool) -> None:
    graph = TINY[name]
    for seed in range(4):
        values = draw(graph, seed, ties=ties).values
        sizes = [k for k in range(len(graph) + 1) if graph.effective(first(values, k)).any()]
        assert connecting_size(graph, values) == sizes[0]
        able = some(graph, seed)
        kept = [first(values.masked_fill(~able, -torch.inf), k) & able for k in range(int(able.sum()) + 1)]
        sizes = [k for k, own in enumerate(kept) if graph.effective(own).any()]
        assert connecting_size(graph, values, able) == (sizes[0] if sizes else None)


@each_tiny
@pytest.mark.parametrize("ties", [False, True])
def test_no_set_of_so_many_edges_with_a_path_has_a_better_worst_edge(name: str, ties: bool) -> None:
    graph, sets = TINY[name], sets_with_a_path(name)
    for seed in range(3):
        values, able = draw(graph, seed, ties=ties).values, some(graph, seed)
        for most in range(1, longest(graph) + 2):
            for allowed in (None, able):
                inside = sets[sets.sum(1) <= most]
                inside = inside if allowed is None else inside[(inside & ~allowed).sum(1) == 0]
                path = best_path(graph, values, most=most, able=allowed)
                if not len(inside):
                    assert path is None
                    continue
                assert path is not None
                best = max(float(values[own].min()) for own in inside)
                assert float(values[path].min()) == best
                smallest = min(int(own.sum()) for own in inside if float(values[own].min()) == best)
                assert len(path) == smallest
                marked = torch.zeros(len(graph), dtype=torch.bool)
                marked[path] = True
                assert torch.equal(graph.effective(marked), marked)


@each_tiny
def test_longest_is_the_most_edges_that_a_path_may_need(name: str) -> None:
    graph, sets = TINY[name], sets_with_a_path(name)
    whole = [own for own in sets if torch.equal(graph.effective(own), own)]
    without = [
        own for own in whole if not any(graph.effective(own & ~one(graph, edge)).any() for edge in own.nonzero())
    ]
    assert max(int(own.sum()) for own in without) == longest(graph)


def one(graph: Graph, edge: Tensor) -> Tensor:
    return torch.arange(len(graph)) == edge


# ---- a selection that always has a path


@each_tiny
@pytest.mark.parametrize("by", ["signed", "absolute"])
def test_edges_on_no_path_make_room_for_the_best_that_lie_on_one(name: str, by: Any) -> None:
    """Against a loop over all larger sizes; where no size within the number has a path, the best path comes first."""
    graph = TINY[name]
    for seed in range(3):
        scores = draw(graph, seed, ties=seed > 1)
        values = scores.values.abs() if by == "absolute" else scores.values
        for count in range(1, len(graph) + 1):
            found, top = (kind(by).select(scores, count) for kind in (tp.TopConnected, tp.Top))
            assert len(found) == count
            assert found.n_effective >= max(1, top.n_effective)
            assert not bool((top.effective.kept & ~found.kept).any())
            if top.n_effective == count:
                assert found == top
            live = [graph.effective(first(values, size)) for size in range(count, len(graph) + 1)]
            taken = [own for own in live if int(own.sum()) <= count][-1]
            if not taken.any():
                taken = torch.zeros(len(graph), dtype=torch.bool)
                taken[best_path(graph, values, most=count)] = True
            rest = first(values.masked_fill(taken, -torch.inf), count - int(taken.sum()))
            assert torch.equal(found.kept, taken | rest)


@pytest.mark.parametrize("end", [torch.inf, -torch.inf])
def test_infinite_scores_are_ranked_like_others(end: float) -> None:
    graph = TINY["kept"]
    for count in range(1, len(graph) + 1):
        values = torch.linspace(1, 0.5, len(graph))
        values[: len(graph) // 2] = end
        large = values.nan_to_num(posinf=9.0, neginf=-9.0)
        found, expected = (
            tp.TopConnected().select(tp.Scores(tp.Sites((graph,)), own), count) for own in (values, large)
        )
        assert found.n_effective == expected.n_effective
        assert len(found) == count


def test_a_budget_of_nothing_is_refused_with_the_smallest_that_can() -> None:
    with pytest.raises(ValueError, match="at least 1 edge but 0 were asked for"):
        tp.TopConnected().select(draw(TINY["kept"], 0), 0)


# ---- beside nodes, and by span


def test_paths_go_round_removed_nodes() -> None:
    graph = Graph(Architecture(1, 2, 2))
    sites = Sites((Nodes("heads", ("a0.h0", "a0.h1")), graph))
    values = torch.zeros(len(sites))
    for name, value in (("input->a0.h0<q>", 9), ("a0.h0->logits", 3), ("input->a0.h1<v>", 2), ("a0.h1->logits", 1)):
        values[sites.index(name)] = value
    values[[sites.index(name) for name in ("input->logits", "input->m0")]] = -1
    kept = torch.zeros(len(sites), dtype=torch.bool)
    kept[[sites.index(name) for name in ("a0.h1", "input->a0.h0<q>", "a0.h0->logits")]] = True
    found = tp.Circuit(sites, connected(sites, kept, values))
    assert found.names == ["a0.h1", "input->a0.h1<v>", "a0.h1->logits"]
    assert found.n_effective == 3
    assert torch.equal(connected(sites, kept, values, fixed=2), kept)


def test_a_path_takes_the_best_span_of_each_edge() -> None:
    model = tp.planted("copy").model
    sites = tp.edges(model, spans=("a", "b"))
    names = ["input->a0.h2<v>@a", "a0.h2->logits@rest", "a0.h1->m0@b"]
    values = torch.full((len(sites),), -9.0)
    for name, value in zip(names, (2, 1, 3), strict=True):
        values[sites.index(name)] = value
    two = torch.zeros(len(sites), dtype=torch.bool)
    two[[sites.index(name) for name in ("a0.h1->m0@b", "a0.h1->m0@a")]] = True
    found = tp.Circuit(sites, connected(sites, two, values))
    assert set(found.names) == set(names[:2])


# ---- methods and masks


def dead_scores(model: Any) -> tp.Scores:
    """Ranked so that the first edges lead nowhere: every edge out of the embedding and into the logits comes last."""
    sites = tp.edges(model)
    names = [sites.name(edge) for edge in range(len(sites))]
    ends = torch.tensor([name.startswith("input") or name.endswith("logits") for name in names])
    return tp.Scores(sites, torch.linspace(1, 0.5, len(sites)) - ends.float())


@dataclass(frozen=True, kw_only=True)
class Given(EdgeScoring):
    """A method whose scores are those of :func:`dead_scores`."""

    def values(self, model: Any, discovery: Any, sites: Any, ablation: Any, *, progress: bool) -> Tensor:
        return dead_scores(model).values


def test_a_method_says_which_budget_would_have_had_a_path() -> None:
    planted = tp.planted("copy")
    scores = dead_scores(planted.model)
    needed = next(k for k in range(len(scores.sites) + 1) if scores.top(k).n_effective)
    provenance = (tp.Random(edges=5).score(planted.model, planted.task)).provenance
    for count in (1, needed - 1):
        with pytest.raises(
            ValueError, match=rf"none of its {count} edges lies on one\. The {needed} edges of the highest"
        ):
            method_found(planted, count, tp.Top(), provenance)
        found = method_found(planted, count, tp.TopConnected(), provenance)
        assert len(found) == count
        assert found.n_effective
    assert method_found(planted, needed, tp.Top(), provenance) == scores.top(needed)
    assert len(method_found(planted, 0, tp.Top(), provenance)) == 0


def method_found(planted: Any, count: int, selection: Any, provenance: Any) -> tp.Circuit:
    method = Given(edges=count, selection=selection)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlprune.methods.scoring.provenance_of", lambda *_, **__: provenance)
        return method.find(planted.model, planted.task)


def test_masks_spend_no_number_of_edges_on_a_dead_graph() -> None:
    scores = dead_scores(tp.planted("copy").model)
    masks = tp.Masks(scores.sites, start=scores.values)
    needed = connecting_size(scores.graph, scores.values)
    for count in (1, 5, 20):
        found = masks.circuit(edges=count, provenance={"seed": 3})
        assert found == tp.TopConnected().select(scores, count)
        changed = int((scores.top(count).kept & ~found.kept).sum())
        assert found.provenance == {"seed": 3, "on_no_path": changed, "connected": {"smallest_top": needed}}
        assert not scores.top(count).n_effective
    wider = masks.circuit(edges=needed)
    assert wider.n_effective > scores.top(needed).n_effective > 0
    assert wider.provenance == {"on_no_path": int((scores.top(needed).kept & ~wider.kept).sum())}
    whole = masks.circuit(edges=len(scores.sites))
    assert (len(whole), whole.provenance) == (len(scores.sites), {})
    assert len(masks.circuit(edges=0)) == 0
    assert masks.circuit(threshold=1.0).n_effective == 0  # what is asked for by a threshold stays


def test_masks_among_a_circuit_take_its_path_or_none() -> None:
    scores = dead_scores(tp.planted("copy").model)
    path = ["input->a0.h1<v>", "a0.h1->m1", "m1->logits"]
    among = tp.Circuit.from_names(scores.sites, [*path, "m0->m1", "a0.h0->m1"])
    masks = tp.Masks(scores.sites, start=scores.values, among=among)
    assert set(masks.circuit(edges=3).edges) == set(path)
    assert masks.circuit(edges=2).n_effective == 0
    assert masks.circuit(edges=2) == masks.scores().top(2)


def test_gates_that_close_every_path_are_an_error() -> None:
    planted = tp.planted("copy")
    scores = dead_scores(planted.model)
    found = scores.top(threshold=0.6)
    with pytest.raises(ValueError, match=rf"The {connecting_size(scores.graph, scores.values)} edges of the highest"):
        alive(found, scores, count=None)
    heads = tp.heads(planted.model)
    none = tp.Circuit(heads, torch.zeros(len(heads), dtype=torch.bool))
    assert alive(none, tp.Scores(heads, torch.zeros(len(heads))), count=None) is none
