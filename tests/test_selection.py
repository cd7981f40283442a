"""Selections against brute force: every subset of tiny graphs, naive loops, and closed forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from styles import refuses_choice
from test_graph import GRAPHS, STORIES
from torch import Tensor

import tlprune as tp
from tlprune.graph import Architecture, Convention, Graph
from tlprune.methods.provenance import PARTS
from tlprune.sites import Nodes, Sites

TINY = {
    "plain": Graph(Architecture(1, 1, 1)),
    "two heads": Graph(Architecture(1, 2, 2), Convention(qkv="joined")),
    "grouped": Graph(Architecture(1, 2, 1)),
    "attention only": Graph(Architecture(2, 1, 1, has_mlp=False)),
    "parallel": Graph(Architecture(1, 1, 1, parallel=True)),
    "separate": Graph(Architecture(1, 1, 1, has_mlp=False, position_embedding=True), Convention("separate")),
    "kept": Graph(Architecture(2, 2, 2, has_mlp=False), Convention("kept", qkv="joined")),
}
each_tiny = pytest.mark.parametrize("name", TINY)
SELECTIONS = {
    "top": tp.Top("absolute"),
    "top connected": tp.TopConnected("absolute"),
    "threshold": tp.Threshold(0.5, by="absolute"),
    "bisected": tp.Bisected(sparsity=0.5),
    "ratio": tp.Ratio(0.3),
    "greedy": tp.Greedy("absolute"),
    "connected": tp.Connected(size="at_most"),
    "pruned": tp.Pruned(tp.Greedy(), size="effective"),
    "consistent": tp.Consistent(tp.Pruned(tp.Ratio(0.2)), rule="top", share=0.9),
}
each_selection = pytest.mark.parametrize("name", SELECTIONS)


def draw(graph: Graph, seed: int, *, ties: bool = False) -> tp.Scores:
    values = torch.randn(len(graph), generator=torch.Generator().manual_seed(seed))
    values = values.round() if ties else values
    return tp.Scores(Sites((graph,)), values, {"made": "by hand"}, torch.stack([values, values]))


@cache
def subsets(name: str) -> Tensor:
    """Every circuit of a tiny graph that has no edge off a path, the empty one among them."""
    graph = TINY[name]
    every = torch.arange(2 ** len(graph))[:, None] >> torch.arange(len(graph)) & 1
    return torch.stack([kept for kept in every.bool() if torch.equal(graph.effective(kept), kept)])


# ---- the integer program


@each_tiny
@pytest.mark.parametrize("size", ["exactly", "at_most"])
def test_no_connected_circuit_of_the_size_has_a_higher_total(name: str, size: Any) -> None:
    graph, circuits = TINY[name], subsets(name)
    sizes = circuits.sum(1)
    for seed, count in enumerate((1, 2, 3, 4, 5, len(graph) - 1, len(graph))):
        scores = draw(graph, seed)
        able = sizes == count if size == "exactly" else sizes <= count
        best = float((circuits[able].double() @ scores.values.double()).max())
        found = tp.Connected(size=size).select(scores, count)
        assert float(scores.values.double()[found.kept].sum()) == pytest.approx(best, abs=1e-9)
        assert found.n_effective == len(found)
        assert len(found) == count if size == "exactly" else len(found) <= count
        assert found.provenance["selection"]["gap"] == 0


def test_the_program_adds_up_sizes_where_it_is_told_to() -> None:
    scores = draw(TINY["attention only"], 0)
    circuits = subsets("attention only")
    best = (circuits[circuits.sum(1) == 4].float() @ scores.values.abs()).max()
    found = tp.Connected("absolute").select(scores, 4)
    assert float(scores.values.abs()[found.kept].sum()) == pytest.approx(float(best), abs=1e-6)


def test_small_scores_are_no_smaller_problem() -> None:
    """The solver's tolerances are absolute, and scores of 1e-9 lie below them."""
    scores = draw(TINY["attention only"], 3)
    small = tp.Scores(scores.sites, scores.values * 1e-9)
    assert tp.Connected().select(small, 4) == tp.Connected().select(scores, 4)


def test_scores_of_zero_have_connected_circuits_and_nothing_has_none() -> None:
    scores = tp.Scores(Sites((Graph(STORIES),)), torch.zeros(1701))
    assert tp.Connected().select(scores, 40).n_effective == 40
    assert len(tp.Connected().select(scores, 0)) == 0


def test_the_program_beats_other_connected_circuits_on_a_model_of_1701_edges() -> None:
    scores = draw(Graph(STORIES), 0)
    found = tp.Connected().select(scores, 30)
    others = [tp.Pruned(inner, size="effective").select(scores, 30) for inner in (tp.Top(), tp.Greedy())]
    others += [tp.connected_random(scores.graph, 30, seed=seed) for seed in range(3)]
    assert found.n_effective == 30
    assert all(scores.values[found.kept].sum() > scores.values[other.kept].sum() for other in others)


def test_no_time_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match=r"30 edges was not found in 1e-09 seconds .* seconds=\.\.\."):
        tp.Connected(seconds=1e-9).select(draw(Graph(STORIES), 0), 30)


# ---- greedy


def naive_greedy(graph: Graph, values: Tensor, count: int) -> Iterator[int]:
    """The definition by edge names: a head is reached by its name, its key/value head by any of its heads."""
    names, reached, kept = graph.edges(), {"logits"}, set[int]()
    group = graph.architecture.n_heads // graph.n_kv_readers
    for _ in range(count):
        best = None
        for edge, name in enumerate(names):
            reader = name.partition("->")[2].partition("<")[0]
            layer, _, kv = reader.partition(".kv")
            nodes = {f"{layer}.h{int(kv) * group + i}" for i in range(group)} if kv else {reader}
            if edge not in kept and nodes & reached and (best is None or values[edge] > values[best]):
                best = edge
        assert best is not None
        kept.add(best)
        reached.add(names[best].partition("->")[0])
        yield best


@pytest.mark.parametrize("graph", [GRAPHS[name] for name in GRAPHS if "kept" in name or "merged" in name])
@pytest.mark.parametrize("ties", [False, True])
def test_greedy_is_its_definition(graph: Graph, ties: bool) -> None:
    scores = draw(graph, 1, ties=ties)
    for by, values in (("signed", scores.values), ("absolute", scores.values.abs())):
        order = list(naive_greedy(graph, values, 25))
        for count in (0, 1, 7, 25):
            kept = tp.Greedy(by).select(scores, count).kept  # pyright: ignore[reportArgumentType]
            assert kept.nonzero().flatten().tolist() == sorted(order[:count])


def test_greedy_takes_everything_in_the_end() -> None:
    for graph in GRAPHS.values():
        assert len(tp.Greedy().select(draw(graph, 0), len(graph))) == len(graph)


# ---- pruned


@pytest.mark.parametrize("inner", [tp.Top(), tp.Greedy(), tp.Ratio(0.5)], ids=str)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_equal_effective_sizes_are_met_exactly(graph: Graph, inner: Any) -> None:
    for seed, count in enumerate((len(graph) // 3, len(graph) // 2, len(graph))):
        found = tp.Pruned(inner, size="effective").select(draw(graph, seed), count)
        assert found.n_effective == len(found) == count


@each_tiny
def test_the_smallest_prefix_that_is_large_enough_is_trimmed_edge_by_edge(name: str) -> None:
    graph = TINY[name]
    for seed in range(6):
        scores = draw(graph, seed, ties=seed > 3)
        for count in range(len(graph) + 1):
            found = tp.Pruned(tp.Top(), size="effective").select(scores, count)
            prefixes = [scores.top(size).effective for size in range(len(graph) + 1)]
            enough = next(one for one in prefixes if len(one) >= count)
            trimmed = trimmed_naively(graph, enough.kept, scores.values, count)
            if trimmed.sum() > count:
                trimmed = filled_naively(graph, [one for one in prefixes if len(one) < count][-1].kept, scores, count)
            assert torch.equal(found.kept, trimmed)
            assert found.n_effective == len(found)


def trimmed_naively(graph: Graph, kept: Tensor, values: Tensor, count: int) -> Tensor:
    """Ever again the worst edge whose loss costs no other, and no head or MLP; of equal ones the last."""
    while kept.sum() > count:
        order = sorted(kept.nonzero().flatten().tolist(), key=lambda edge: (float(values[edge]), -edge))
        without = [one for one in (less(kept, edge) for edge in order) if torch.equal(graph.effective(one), one)]
        without = [one for one in without if inner_nodes(graph, one) == inner_nodes(graph, kept)]
        if not without:
            break
        kept = without[0]
    return kept


def filled_naively(graph: Graph, kept: Tensor, scores: tp.Scores, count: int) -> Tensor:
    """The best edges of which each, by itself, is the only one that it brings to life."""
    order = scores.values.argsort(descending=True, stable=True).tolist()
    size = int(kept.sum())
    able = [edge for edge in order if not kept[edge] and int(graph.effective(more(kept, edge)).sum()) == size + 1]
    return kept.index_fill(0, torch.tensor(able[: count - size], dtype=torch.long), True)


def more(kept: Tensor, edge: int) -> Tensor:
    found = kept.clone()
    found[edge] = True
    return found


def inner_nodes(graph: Graph, kept: Tensor) -> set[str]:
    return {name.partition("->")[0] for name in graph.edges(kept)} - {*graph.embeddings}


def less(kept: Tensor, edge: int) -> Tensor:
    found = kept.clone()
    found[edge] = False
    return found


def test_a_nominal_size_is_of_what_is_taken_before() -> None:
    scores = draw(Graph(STORIES), 0)
    found = tp.Pruned(tp.Top("absolute")).select(scores, 600)
    assert found == tp.Top("absolute").select(scores, 600).effective
    assert found.provenance["selection"]["nominal"] == 600 > len(found)


def test_a_selection_that_takes_more_than_it_is_asked_for_has_no_effective_size() -> None:
    with pytest.raises(ValueError, match="took 110 effective ones instead of 5"):
        tp.Pruned(tp.Threshold(-9), size="effective").select(draw(Graph(Architecture(2, 4, 4)), 0), 5)


# ---- by rank


def test_ratio_is_both_kinds_of_top_at_its_ends_and_by_hand_between() -> None:
    sites = tp.Sites((Nodes("nodes", tuple("abcdef")),))
    scores = tp.Scores(sites, torch.tensor([5.0, -9.0, 3.0, -4.0, 2.0, 0.0]))
    for count in range(7):
        assert tp.Ratio(1).select(scores, count) == tp.Top().select(scores, count)
        assert tp.Ratio(0).select(scores, count) == tp.Top("absolute").select(scores, count)
    assert tp.Ratio(0.5).select(scores, 4).names == ["a", "b", "c", "d"]
    assert tp.Ratio(0.75).select(scores, 4).names == ["a", "b", "c", "e"]
    assert tp.Ratio(1).select(scores, 4).names == ["a", "c", "e", "f"]


def test_a_threshold_alone_decides_how_many() -> None:
    scores = draw(Graph(STORIES), 0)
    for count in (0, 5, 1701):
        assert tp.Threshold(1.0).select(scores, count) == scores.top(threshold=1.0)
        assert tp.Threshold(1.0, by="absolute").select(scores, count) == scores.absolute.top(threshold=1.0)


# ---- consistent


def two_samples(first: list[float], second: list[float]) -> tp.Scores:
    sites = Sites((Nodes("nodes", tuple("abcd")),))
    return tp.Scores.mean_of([tp.Scores(sites, torch.tensor(values)) for values in (first, second)])


def test_the_share_of_resamples_with_the_same_sign() -> None:
    """Of two samples a resample holds the first twice, the second twice, each with chance 1/4, or both."""
    scores = two_samples([9.0, 5.0, -1.0, 0.0], [-5.0, -9.0, -2.0, 0.0])
    shares = tp.Consistent(resamples=20_000).shares(scores, 2)
    assert shares.tolist() == pytest.approx([0.75, 0.75, 1, 0], abs=0.02)
    assert shares[2] == 1 and shares[3] == 0
    assert tp.Consistent(share=0.7).select(scores, 4).names == ["a", "b", "c"]
    assert tp.Consistent(share=0.7).select(scores, 2).names == ["a"]  # and d, whose score is never of any sign
    assert tp.Consistent(tp.Top("absolute")).select(scores, 1).names == ["c"]


def test_the_share_of_resamples_among_the_best() -> None:
    scores = two_samples([9.0, 5.0, 4.0, 0.0], [5.0, 1.0, 6.0, 0.0])
    assert tp.Consistent(rule="top", resamples=20_000).shares(scores, 1).tolist() == pytest.approx(
        [0.75, 0, 0.25, 0], abs=0.02
    )
    assert tp.Consistent(rule="top").select(scores, 1).names == []
    assert tp.Consistent(rule="top", share=0.7).select(scores, 1).names == ["a"]


def test_resamples_of_equal_samples_change_nothing_and_the_seed_repeats() -> None:
    scores = draw(Graph(STORIES), 0)
    assert tp.Consistent(tp.Greedy(), share=1).select(scores, 100) == tp.Greedy().select(scores, 100)
    noisy = tp.Scores.mean_of([draw(Graph(STORIES), seed) for seed in range(6)])
    first, again, other = (tp.Consistent(seed=seed, resamples=50).shares(noisy, 100) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_scores_without_samples_are_refused_with_the_way_to_make_some() -> None:
    scores = draw(Graph(STORIES), 0)
    for bare in (tp.Scores(scores.sites, scores.values), tp.Scores.mean_of([scores])):
        with pytest.raises(ValueError, match=r"several samples but has [01]\. .*tp\.Scores\.mean_of"):
            tp.Consistent().select(bare, 5)


# ---- all of them


@each_selection
def test_the_circuit_says_in_plain_data_how_it_was_taken(name: str) -> None:
    found = SELECTIONS[name].select(draw(Graph(STORIES), 0), 400)
    known = dict(found.provenance)
    assert json.loads(json.dumps(known)) == known
    assert known["made"] == "by hand"
    assert known["selection"]["name"] == type(SELECTIONS[name]).__name__
    assert len(found) > 0


@each_selection
def test_a_method_that_takes_it_is_given_back_by_its_circuit(name: str) -> None:
    """All but Consistent, which needs what random scores do not have."""
    planted, method = tp.planted("copy"), tp.Random(edges=20, selection=SELECTIONS[name])
    if name == "consistent":
        with pytest.raises(ValueError, match="several samples"):
            method.find(planted.model, planted.task)
        return
    found = method.find(planted.model, planted.task)
    assert tp.method_from(found.provenance) == method
    assert found.provenance["selection"]["name"] == type(SELECTIONS[name]).__name__


def test_every_selection_is_under_these_tests_and_may_be_a_part_of_a_method() -> None:
    own = {kind for kind in PARTS.values() if isinstance(kind, type) and hasattr(kind, "select")}
    of_weights = {tp.NM, tp.PerOutput, tp.PerTensor}  # test_weight_selection.py
    assert own - of_weights == {type(one) for one in SELECTIONS.values()}
    assert own >= of_weights
    assert all(isinstance(one, tp.Selection) for one in SELECTIONS.values())


@each_selection
@pytest.mark.parametrize("count", [-1, 1702])
def test_sizes_outside_the_graph_are_refused(name: str, count: int) -> None:
    if name in ("threshold", "bisected"):
        return
    with pytest.raises(ValueError, match="must lie between 0 and 1,701"):
        SELECTIONS[name].select(draw(Graph(STORIES), 0), count)


@pytest.mark.parametrize(
    "selection", [tp.Greedy(), tp.Connected(), tp.Pruned(size="effective"), tp.TopConnected()], ids=str
)
def test_what_follows_paths_refuses_sites_that_are_no_edges(selection: Any) -> None:
    model = tp.planted("copy").model
    spanned = tp.edges(model, spans=("a", "b"))
    for sites, said in (
        (tp.heads(model), "of heads"),
        (tp.edges(model) + tp.mlps(model), "edges \\+ mlps"),
        (spanned, "spans a, b"),
    ):
        if sites is spanned and isinstance(selection, tp.TopConnected):
            continue  # which follows paths from span to span
        with pytest.raises(ValueError, match=f"needs scores of edges alone.*{said}"):
            selection.select(tp.Scores(sites, torch.zeros(len(sites))), 2)


BAD = [
    (tp.Ratio, {"helpful": 50.0}, "lies between 0 and 1 but helpful is 50.0"),
    (tp.Connected, {"seconds": 0.0}, "needs time"),
    (tp.Connected, {"tolerance": -1.0}, "a gap of 0 or more"),
    (tp.Consistent, {"share": 0.5}, "share above 0.5"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD)
def test_bad_settings_are_refused_at_once(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


CHOICES = [
    (tp.Top, "by", "by must be"),
    (tp.Greedy, "by", "by must be"),
    (tp.TopConnected, "by", "by must be"),
    (tp.Connected, "by", "by must be"),
    (tp.Connected, "size", "'exactly' or 'at_most'"),
    (tp.Pruned, "size", "'nominal' or 'effective'"),
    (tp.Consistent, "rule", "'sign' or 'top'"),
]


@pytest.mark.parametrize(("kind", "name", "message"), CHOICES)
def test_words_that_are_no_choice_are_refused(kind: Any, name: str, message: str) -> None:
    with refuses_choice(message):
        kind(**{name: "rank"})


# ---- scores with samples


@pytest.mark.parametrize("file", ["scores.safetensors", "scores.json"])
def test_samples_are_kept_where_numbers_are_kept(file: str, tmp_path: Any) -> None:
    scores = tp.Scores.mean_of([draw(Graph(STORIES), seed) for seed in range(3)])
    scores.save(tmp_path / file)
    loaded = tp.Scores.load(tmp_path / file)
    assert torch.equal(loaded.values, scores.values)
    assert (loaded.samples is None) == file.endswith("json")
    if loaded.samples is not None and scores.samples is not None:
        assert torch.equal(loaded.samples, scores.samples)


def test_a_mean_of_scores_keeps_what_they_share_and_the_samples_of_a_kind_are_its_own() -> None:
    model = tp.planted("copy").model
    sites = tp.heads(model) + tp.mlps(model)
    provenances = [{"model": {"weights": "x"}, "seed": seed} for seed in (0, 1)]
    both = tp.Scores.mean_of(
        [tp.Scores(sites, torch.arange(10.0) * sign, one) for sign, one in zip((1, 3), provenances, strict=True)]
    )
    assert both.values.tolist() == [2.0 * number for number in range(10)]
    assert both.provenance == {"model": {"weights": "x"}, "operation": "mean", "of": provenances}
    mlps = both.of("mlps")
    assert mlps.samples is not None and mlps.samples.tolist() == [[8, 9], [24, 27]]


def test_scores_that_are_not_numbers_or_do_not_fit_are_refused() -> None:
    sites, values = Sites((Graph(STORIES),)), torch.zeros(1701)
    values[3] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 1,701 are NaN, input->a0\.h3<q> the first"):
        tp.Scores(sites, values)
    with pytest.raises((TypeError, ValueError), match="site"):
        tp.Scores(sites, torch.zeros(1701), samples=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="scores of the same sites but got 0"):
        tp.Scores.mean_of([])
    with pytest.raises(ValueError, match="scores of the same sites but got 2"):
        tp.Scores.mean_of([draw(Graph(STORIES), 0), draw(TINY["plain"], 0)])
