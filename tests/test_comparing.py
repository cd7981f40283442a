"""Methods held against each other and against known circuits: closed forms, brute force, runs one by one."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import model_of, random_batch
from test_graph import STORIES

import tlprune as tp
from tlprune.evaluation.bench import Bench
from tlprune.graph import Architecture, Graph
from tlprune.sites import Nodes, Sites

PLANTED = tp.planted("induction")
TRUTH, TASK = PLANTED.circuit, PLANTED.task
SITES = TRUTH.sites
BEST = tp.Scores(SITES, TRUTH.kept.float())
NOISE = tp.Scores(SITES, torch.rand(110, generator=torch.Generator().manual_seed(0)))


def drawn(seed: int, *, ties: bool = False) -> tuple[tp.Scores, tp.Circuit]:
    """Random scores and a random known circuit, of nodes without any model."""
    generator = torch.Generator().manual_seed(seed)
    sites = Sites((Nodes("nodes", tuple(f"n{place}" for place in range(40))),))
    values = torch.randn(40, generator=generator)
    kept = torch.rand(40, generator=generator) < 0.3
    return tp.Scores(sites, values.round() if ties else values), tp.Circuit(sites, kept)


# ---- equal sizes


@pytest.fixture(scope="module")
def table() -> Any:
    candidates = {"best": BEST, "noise": NOISE, "true": TRUTH, "seeds": [chance(20, 0), chance(11, 1)]}
    return tp.equal_sizes(PLANTED.model, candidates, TASK, shares=(0.1,), counts=[5, 20], against="best")


def chance(count: int, seed: int) -> tp.Circuit:
    found = tp.connected_random(TRUTH.graph, count, seed=seed)
    return tp.Circuit(SITES, found.kept)


def test_every_method_has_the_size_and_each_row_is_its_circuit_alone(table: Any) -> None:
    assert [(placed.size, placed.row.name) for placed in table.rows] == [
        (5, "best"), (5, "noise"), (5, "true"), (11, "best"), (11, "noise"), (11, "seeds"),
        (20, "best"), (20, "noise"), (20, "seeds"),
    ]  # fmt: skip
    for placed in table.rows:
        assert placed.row.effective == placed.row.kept <= placed.size
    circuits = {(5, "best"): TRUTH, (5, "true"): TRUTH, (11, "seeds"): chance(11, 1), (20, "seeds"): chance(20, 0)}
    for (size, name), circuit in circuits.items():
        alone = tp.evaluate(PLANTED.model, circuit, TASK)["circuit"]
        row = table.at(size)[name].row
        assert row.faithfulness.value == pytest.approx(alone.faithfulness.value, abs=1e-5)
        assert row.means()["kl"] == pytest.approx(alone.means()["kl"], abs=1e-5)
    whole = tp.Pruned(tp.Top(), size="effective").select(NOISE, 20)
    assert table.at(20)["noise"].row.kept == len(whole) == 20


def test_differences_are_paired_and_better_needs_an_interval_without_zero(table: Any) -> None:
    at = table.at(5)
    best, noise = at["best"], at["noise"]
    assert best.behind.keys() == set() or best.behind["kl"].value == pytest.approx(0, abs=1e-6)
    assert noise.better("faithfulness") is False and noise.better("kl") is False
    expected = noise.row.performance.less(best.row.performance)["kl"]
    assert noise.behind["kl"].value == pytest.approx(expected.value, abs=1e-6)
    shares = noise.row.faithfulness.value - best.row.faithfulness.value
    assert noise.behind["faithfulness"].value == pytest.approx(shares, abs=1e-6)
    assert at["true"].better("kl") is None and at["true"].better("faithfulness") is None


def test_a_named_method_is_what_others_are_held_against() -> None:
    found = tp.equal_sizes(
        PLANTED.model, {"noise": NOISE, "best": BEST}, TASK, shares=(), counts=[5], against="noise"
    ).at(5)
    assert found["noise"].behind == {}
    assert found["best"].better("faithfulness") is True and found["best"].better("kl") is True


def test_the_table_reads_and_is_plain_data(table: Any) -> None:
    text = str(table)
    assert "nan" not in text and "undefined" not in text
    assert len(text.splitlines()) == 1 + len(table.rows) + 1
    assert f"{len(TASK.test)} test examples; 110 edges (embeddings merged, kv shared) in all; resample ablation" in text
    again = json.loads(json.dumps(table.as_dict(), allow_nan=False))
    assert again["rows"][1]["behind"]["kl"]["better"] is False


def twins(batch: tp.Batch) -> tp.Batch:
    return dataclasses.replace(batch, corrupt=batch.clean)


def test_undefined_faithfulness_is_none_everywhere_and_never_not_a_number() -> None:
    same = twins(TASK.test)
    found = tp.equal_sizes(PLANTED.model, {"best": BEST, "noise": NOISE}, same, shares=(), counts=[5])
    assert all(placed.row.faithfulness is None and "faithfulness" not in placed.behind for placed in found.rows)
    assert "undefined" in str(found) and "nan" not in str(found)
    json.dumps(found.as_dict(), allow_nan=False)
    flat = tp.faithfulness_areas(PLANTED.model, BEST, same)
    assert all(area.value is None for area in flat.areas) and "nan" not in str(flat)
    json.dumps(flat.as_dict(), allow_nan=False)
    spread = tp.spread(PLANTED.model, [TRUTH], {"same": same})
    assert spread.value is None and "undefined" in str(spread)


def test_what_cannot_be_compared_is_refused() -> None:
    model, other = PLANTED.model, tp.planted("copy")
    with pytest.raises(ValueError, match="needs candidates"):
        tp.equal_sizes(model, {}, TASK)
    with pytest.raises(ValueError, match="one of these or 'best', but got best ones and 'worst'"):
        tp.equal_sizes(model, {"best ones": BEST}, TASK, against="worst")
    with pytest.raises(ValueError, match="Sizes must lie between 1 and 110"):
        tp.equal_sizes(model, {"best": BEST}, TASK, shares=(), counts=[111])
    with pytest.raises(ValueError, match="No candidate has a circuit of any of the sizes"):
        tp.equal_sizes(model, {"true": TRUTH}, TASK, shares=(), counts=[50])
    heads = tp.heads(model)
    mixed = {"edges": TRUTH, "heads": tp.Circuit(heads, torch.arange(8) < 5)}
    with pytest.raises(ValueError, match="same sites to be compared"):
        tp.equal_sizes(model, mixed, TASK, shares=(), counts=[5])
    under_zero = tp.Circuit(SITES, TRUTH.kept, {"ablation": {"name": "zero"}})
    with pytest.raises(ValueError, match=r"one ablation to be compared .*ablation=\.\.\."):
        tp.equal_sizes(model, {"a": TRUTH, "b": under_zero}, TASK, shares=(), counts=[5])
    tp.equal_sizes(model, {"a": TRUTH, "b": under_zero}, TASK, shares=(), counts=[5], ablation=tp.Zero())
    foreign = tp.Random(edges=5).find(other.model, other.task)
    with pytest.raises(ValueError, match="was found on model"):
        Bench.of_all(model, [TRUTH, foreign], TASK, ablation=tp.Resample())


# ---- areas


def test_areas_are_trapezoids_of_circuits_one_by_one() -> None:
    scores = tp.Scores(SITES, torch.randn(110, generator=torch.Generator().manual_seed(3)) + 3 * TRUTH.kept.float())
    sizes = (0.01, 0.05, 0.2, 0.5, 1.0)
    found = tp.faithfulness_areas(PLANTED.model, scores, TASK, sizes=sizes)
    for name, ranked in (("CPR", scores), ("CMD", scores.absolute)):
        circuits = [ranked.top(int(size * 110)) for size in sizes]
        shares = [tp.evaluate(PLANTED.model, one, TASK)["circuit"].faithfulness.value for one in circuits]
        assert found.faithfulness[name] == pytest.approx(shares, abs=1e-5)
        assert found.counts[name] == tuple((len(one), one.n_effective) for one in circuits)
        heights = [abs(1 - share) for share in shares] if name == "CMD" else shares
        for edges, places in (("nominal", sizes), ("effective", [one.n_effective / 110 for one in circuits])):
            for axis in ("linear", "log"):
                area = found[f"{name} ({axis}, {edges} edges)"]
                there = [
                    (math.log(place) if axis == "log" else place, height)
                    for place, height in zip(places, heights, strict=True) if place > 0 or axis == "linear"
                ]  # fmt: skip
                assert area.left_out == len(sizes) - len(there)
                expected = sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in zip(there, there[1:], strict=False))
                assert area.value.value == pytest.approx(expected, abs=1e-5)
                assert area.value.low <= area.value.value + 1e-9 and area.value.value <= area.value.high + 1e-9
    assert found["CPR (log, effective edges)"].left_out > 0
    assert len({area.label for area in found.areas}) == len(found.areas) == 8
    json.dumps(found.as_dict(), allow_nan=False)


def test_true_edges_first_have_a_perfect_curve_from_their_size_on() -> None:
    found = tp.faithfulness_areas(PLANTED.model, BEST, TASK, sizes=(0.05, 0.2, 1.0))
    assert found["CPR (linear, nominal edges)"].value.value == pytest.approx(0.95, abs=0.02)
    assert found["CMD (linear, nominal edges)"].value.value == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("sizes", [(), (0.5,), (0.5, 2.0), (-0.1, 1.0)])
def test_an_area_needs_two_shares(sizes: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="two shares between 0 and 1"):
        tp.faithfulness_areas(PLANTED.model, BEST, TASK, sizes=sizes)


def test_areas_need_foils() -> None:
    batch = dataclasses.replace(TASK.test, foils=torch.full_like(TASK.test.foils, -100))
    with pytest.raises(ValueError, match="differences need foils"):
        tp.faithfulness_areas(PLANTED.model, BEST, batch)


# ---- against a known circuit


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_recovery_is_counting_pairs_and_ranks(seed: int, ties: bool) -> None:
    scores, truth = drawn(seed, ties=ties)
    found = tp.recovery(scores, truth)
    own, others = scores.values[truth.kept], scores.values[~truth.kept]
    pairs = (own[:, None] > others).double() + 0.5 * (own[:, None] == others)
    assert found.roc_auc == pytest.approx(float(pairs.mean()), abs=1e-12)
    strict = own[:, None] > others  # on the lower stairs a tie counts for nothing
    assert found.stairs_auc == pytest.approx(float(strict.double().mean()), abs=1e-12)
    precisions = [float((own >= value).sum() / (scores.values >= value).sum()) for value in own]
    assert found.average_precision == pytest.approx(sum(precisions) / len(precisions), abs=1e-6)
    orders = [scores.values + 1e-3 * torch.rand(40, generator=torch.Generator().manual_seed(s)) for s in range(3000)]
    shares = [float(truth.kept[order.argsort(descending=True)[: len(truth)]].float().mean()) for order in orders]
    assert found.precision == pytest.approx(sum(shares) / len(shares), abs=0.01)
    assert (found.true, found.total, found.kind) == (len(truth), 40, "nodes")


@pytest.mark.parametrize("ties", [False, True])
def test_recovery_is_scikit_learns(ties: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(10):
        scores, truth = drawn(seed, ties=ties)
        found = tp.recovery(scores, truth)
        labels, values = truth.kept.numpy(), scores.values.numpy()
        assert found.roc_auc == pytest.approx(metrics.roc_auc_score(labels, values), abs=1e-12)
        assert found.average_precision == pytest.approx(metrics.average_precision_score(labels, values), abs=1e-12)


def test_stairs_by_hand() -> None:
    sites = Sites((Nodes("nodes", tuple("abcde")),))
    truth = tp.Circuit(sites, torch.tensor([True, True, False, False, False]))
    scores = tp.Scores(sites, torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0]))
    found = tp.recovery(scores, truth)  # points (0, 1/2), (2/3, 1/2), (2/3, 1), (1, 1)
    assert found.stairs_auc == pytest.approx(2 / 3 * 1 / 2 + 1 / 3)
    assert found.roc_auc == pytest.approx(2 / 3)
    assert found.precision == pytest.approx(0.5)  # a, then one of c and d
    tied = tp.recovery(tp.Scores(sites, torch.zeros(5)), truth)
    assert (tied.roc_auc, tied.stairs_auc, tied.precision, tied.average_precision) == (0.5, 0, 0.4, 0.4)


def test_circuits_are_points_of_which_the_best_make_the_curve() -> None:
    sites = Sites((Nodes("nodes", tuple("abcdef")),))
    truth = tp.Circuit.from_names(sites, ["a", "b"])
    circuits = [tp.Circuit.from_names(sites, list(names)) for names in ("a", "ac", "cd", "abcd", "")]
    # (0, 1/2) beats (1/4, 1/2), (1/2, 0) and (0, 0); (1/2, 1) beats (1, 1)
    straight, stairs = tp.circuits_auc(circuits, truth)
    assert straight == pytest.approx(0.5 * 0.75 + 0.5)
    assert stairs == pytest.approx(0.5 * 0.5 + 0.5)
    assert tp.circuits_auc([], truth) == (0.5, 0.0)
    assert tp.circuits_auc([truth], truth) == (1.0, 1.0)
    scores, known = drawn(2)
    prefixes = [scores.top(count) for count in range(41)]
    found = tp.recovery(scores, known)
    assert tp.circuits_auc(prefixes, known)[1] == pytest.approx(found.stairs_auc)


def test_what_is_held_against_a_known_circuit_has_its_sites_and_something_to_find() -> None:
    scores, truth = drawn(0)
    with pytest.raises(ValueError, match="needs its sites"):
        tp.recovery(BEST, truth)
    for kept in (torch.zeros(40).bool(), torch.ones(40).bool()):
        with pytest.raises(ValueError, match="needs some sites and must lack some"):
            tp.recovery(scores, truth.like(kept))
        with pytest.raises(ValueError, match="needs some sites and must lack some"):
            tp.circuits_auc([truth], truth.like(kept))


def test_nodes_above_a_threshold_are_those_of_the_edges_above_it() -> None:
    scores = tp.Scores(Sites((Graph(STORIES),)), torch.randn(1701, generator=torch.Generator().manual_seed(0)))
    nodes = tp.node_scores(scores)
    for threshold in (3.0, 2.5, 2.0, 1.0):
        found = set(nodes.top(threshold=threshold).names)
        assert found == set(scores.top(threshold=threshold).nodes)
    true = tp.Circuit.from_nodes(TRUTH.graph, TRUTH.nodes)
    assert tp.recovery(tp.node_scores(BEST), true).roc_auc == 1
    with pytest.raises(ValueError, match="node_scores follows paths, so it needs scores of edges alone"):
        tp.node_scores(nodes)


# ---- overlap


def test_chance_in_closed_form_is_the_mean_over_random_circuits() -> None:
    _, first = drawn(0)
    for count in (0, 1, 9, 40):
        second = first.like(torch.arange(40) < count)
        found = tp.overlap(first, second, chance="uniform")
        ious = []
        for seed in range(4000 if 0 < count < 40 else 1):
            order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
            ious.append(first.iou(first.like(torch.zeros(40).bool().index_fill(0, order[:count], True))))
        assert found.chance == pytest.approx(sum(ious) / len(ious), abs=0.005)
        assert found.excess == pytest.approx(first.iou(second) - found.chance)
        assert found.sizes == (len(first), count, 40)
    nothing = first.like(torch.zeros(40).bool())
    assert tp.overlap(nothing, nothing, chance="uniform").chance == 1


def test_chance_of_connected_circuits_is_their_mean_and_higher() -> None:
    first, second = chance(20, 100), chance(20, 101)
    found = tp.overlap(first, second, samples=30, seed=7)
    ious = [first.iou(chance(20, seed)) for seed in range(7, 37)]
    assert found.chance == pytest.approx(sum(ious) / 30)
    assert found.chance > tp.overlap(first, second, chance="uniform").chance
    assert found.shared == int((first.kept & second.kept).sum())
    _, nodes = drawn(0)
    with pytest.raises(ValueError, match="chance='uniform'"):
        tp.overlap(nodes, nodes)


def test_stability_is_the_mean_over_pairs() -> None:
    circuits = [chance(20, seed) for seed in range(4)]
    found = tp.stability(circuits, chance="uniform")
    pairs = [tp.overlap(*pair, chance="uniform") for pair in itertools.combinations(circuits, 2)]
    assert found.iou == pytest.approx(sum(pair.iou for pair in pairs) / 6)
    assert found.excess == pytest.approx(found.iou - pairs[0].chance)
    whole = circuits[0] & circuits[1] & circuits[2] & circuits[3]
    assert (found.in_all, found.in_any) == (len(whole), len(circuits[0] | circuits[1] | circuits[2] | circuits[3]))
    assert tp.stability([TRUTH, TRUTH], chance="uniform").iou == 1
    with pytest.raises(ValueError, match="compares circuits but got 1"):
        tp.stability(circuits[:1])
    json.dumps(found.as_dict())
    assert len(str(found).splitlines()) == 2


# ---- induced


@pytest.mark.parametrize("style", ["gpt2", "llama", "parallel"])
@pytest.mark.parametrize("ablation", [tp.Resample(), tp.Zero()], ids=str)
def test_edges_between_nodes_compute_what_the_nodes_do(style: str, ablation: Any) -> None:
    model, batch = model_of(style), random_batch(3)
    for seed in range(3):
        kept = torch.rand(len(tp.nodes(model)), generator=torch.Generator().manual_seed(seed)) < 0.6
        nodes = tp.Circuit(tp.nodes(model), kept)
        edges = tp.induced(nodes, model)
        expected, found = (one.on(model, ablation=ablation)(batch) for one in (nodes, edges))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_edges_between_nodes_are_counted_by_name() -> None:
    graph = Graph(Architecture(2, 2, 2))
    nodes = tp.Circuit.from_nodes(graph, ["input", "a0.h1", "m1"])
    found = tp.induced(nodes, graph)
    kept = {"input", "a0.h1", "m1", "logits"}
    ends = [(name, *name.replace("<", "->").split("->")[:2]) for name in graph.edges()]
    assert found.edges == [name for name, writer, reader in ends if writer in kept and reader in kept]
    heads = tp.Circuit.from_names(Sites((Nodes("heads", ("a0.h0", "a0.h1", "a1.h0", "a1.h1")),)), ["a0.h1"])
    assert "input->m0" in tp.induced(heads, graph) and "input->a0.h0<q>" not in tp.induced(heads, graph)
    layers = tp.Circuit.from_names(Sites((Nodes("layers", ("a0", "m0", "a1", "m1")),)), ["m0", "m1"])
    assert tp.induced(layers, graph).heads == []
    everything = tp.Circuit.from_nodes(graph, graph.writers)
    assert len(tp.induced(everything, graph)) == len(graph)
    with pytest.raises(ValueError, match="circuit of nodes, heads, MLPs or layers"):
        tp.induced(TRUTH, TRUTH.graph)


# ---- spread


def test_a_source_without_variation_has_no_width_and_one_alone_has_no_interval() -> None:
    test = TASK.test
    halves = {"first": test.rows(torch.arange(32)), "again": test.rows(torch.arange(32))}
    found = tp.spread(PLANTED.model, [TRUTH, TRUTH, TRUTH], halves, figure="kl")
    assert found.levels == {"seed": 3, "template": 2, "pairing": 1, "example": 64}
    assert found.intervals["pairing"] is None
    for source in ("seed", "template"):
        one = found.intervals[source]
        assert one is not None and one.low == pytest.approx(one.high, abs=1e-9)
    assert len(str(found).splitlines()) == 6
    json.dumps(found.as_dict(), allow_nan=False)


def test_each_interval_is_the_bootstrap_over_its_source_alone() -> None:
    """Two circuits: half of the resamples hold both, a quarter either twice, so the interval reaches to both ends."""
    circuits = [TRUTH, TRUTH.like(torch.zeros(110).bool())]
    found = tp.spread(PLANTED.model, circuits, {"one": TASK.test})
    assert found.value == pytest.approx(0.5, abs=0.01)
    seeds, examples = found.intervals["seed"], found.intervals["example"]
    assert seeds is not None and examples is not None
    assert (seeds.low, seeds.high) == pytest.approx((0, 1), abs=0.02)
    assert examples.high - examples.low < 0.05
    alone = tp.evaluate(PLANTED.model, chance(20, 0), TASK)["circuit"]
    kl = tp.spread(PLANTED.model, [chance(20, 0)], {"one": TASK.test}, figure="kl").intervals["example"]
    expected = alone.performance.intervals()["kl"]
    assert kl is not None
    assert (kl.value, kl.low, kl.high) == pytest.approx((expected.value, expected.low, expected.high), abs=1e-5)


def test_examples_weigh_within_their_template_and_templates_alike() -> None:
    parts = {"few": TASK.test.rows(torch.arange(8)), "many": TASK.test.rows(torch.arange(8, 64))}
    found = tp.spread(PLANTED.model, [chance(20, 0)], parts, figure="kl")
    means = [tp.evaluate(PLANTED.model, chance(20, 0), part)["circuit"].means()["kl"] for part in parts.values()]
    assert found.value == pytest.approx(sum(means) / 2, abs=1e-5)
    template = found.intervals["template"]
    assert template is not None and (template.low, template.high) == pytest.approx(tuple(sorted(means)), abs=1e-5)


def test_nothing_to_spread_over_is_refused() -> None:
    for circuits, batches, pairings in (([], {"a": TASK.test}, 1), ([TRUTH], {}, 1), ([TRUTH], {"a": TASK.test}, 0)):
        with pytest.raises(ValueError, match="needs circuits, batches and pairings"):
            tp.spread(PLANTED.model, circuits, batches, pairings=pairings)


def test_another_pairing_deals_the_same_twins_to_other_prompts_of_their_shape() -> None:
    words = tp.load("testbed")
    batch = tp.tasks.ioi(words).test
    other, again, third = (tp.repaired(batch, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(other.corrupt.ids, again.corrupt.ids) and not torch.equal(other.corrupt.ids, third.corrupt.ids)
    assert sorted(other.corrupt.ids.tolist()) == sorted(batch.corrupt.ids.tolist())
    assert torch.equal(other.clean.ids, batch.clean.ids) and torch.equal(other.answers, batch.answers)
    assert bool((other.corrupt.ids != batch.corrupt.ids).any(1).float().mean() > 0.5)
    assert not bool((other.corrupt.ids == other.clean.ids).all(1).any())
    if batch.spans is not None:
        origin = {
            tuple(ids): spans for ids, spans in zip(batch.corrupt.ids.tolist(), batch.spans.tolist(), strict=True)
        }
        spans = batch.spans.tolist()
        same = [origin[tuple(ids)] == own for ids, own in zip(other.corrupt.ids.tolist(), spans, strict=True)]
        assert all(same)


def test_prompts_of_other_lengths_keep_apart_and_a_lone_one_keeps_its_twin() -> None:
    ids = torch.arange(40).view(5, 8)
    real = torch.ones_like(ids)
    real[3:, 6:] = 0
    real[4, 5:] = 0
    one = torch.zeros(5, 1, dtype=torch.long)
    batch = tp.Batch(torch.arange(5), tp.Tokens(ids, real), tp.Tokens(ids + 100, real), one, one, one)
    found = tp.repaired(batch)
    owners = (found.corrupt.ids[:, 0] - 100).div(8, rounding_mode="floor").tolist()
    assert sorted(owners[:3]) == [0, 1, 2] and all(owner != row for row, owner in enumerate(owners[:3]))
    assert owners[3:] == [3, 4]
    assert torch.equal(found.corrupt.attention_mask, real)  # pyright: ignore[reportArgumentType]


def test_a_twin_that_is_the_prompt_itself_is_not_dealt() -> None:
    """Of two prompts, each the other's clean text: dealt anew both would be paired with themselves."""
    ids, one = torch.tensor([[1, 2], [3, 4]]), torch.zeros(2, 1, dtype=torch.long)
    batch = tp.Batch(torch.arange(2), tp.Tokens(ids), tp.Tokens(ids.flip(0)), one, one, one)
    assert torch.equal(tp.repaired(batch).corrupt.ids, batch.corrupt.ids)


# ---- ablations


def test_the_matrix_is_every_circuit_under_every_ablation() -> None:
    planted = tp.planted("copy")
    ablations = {"resample": tp.Resample(), "zero": tp.Zero(), "mean": tp.Mean()}
    method = tp.EdgePruning(edges=5, steps=3)
    found = tp.ablation_matrix(planted.model, planted.task, method, ablations)
    assert [*found.evaluations] == list(itertools.product(ablations, ablations))
    mean = tp.Mean(planted.task.discovery.train().corrupt)
    alone = method.find(planted.model, planted.task, ablation=tp.Zero())
    assert found.circuits["zero"] == alone
    row = tp.evaluate(planted.model, alone, planted.task, ablation=mean)["circuit"]
    assert found["zero", "mean"].means() == pytest.approx(row.means())
    told = found.evaluations["zero", "mean"]
    assert told.discovery == {"name": "zero"} and told.ablation == mean.as_dict()
    assert "nan" not in str(found) and len(str(found).splitlines()) == 11
    json.dumps(found.as_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="needs ablations but got none"):
        tp.ablation_matrix(planted.model, planted.task, method, {})


def test_the_interval_of_stability_is_of_circuits_drawn_again() -> None:
    """Of two equal circuits and another one a draw of three has the mean of its pairs of different draws."""
    same, other = chance(20, 0), chance(20, 1)
    found = tp.stability([same, same, other], chance="uniform")
    apart = same.iou(other)
    assert found.matrix.tolist() == [[1, 1, apart], [1, 1, apart], [apart, apart, 1]]
    assert found.interval is not None
    assert found.interval.value == pytest.approx((1 + 2 * apart) / 3)
    assert (found.interval.low, found.interval.high) == (
        pytest.approx(apart),
        pytest.approx(1),
    )  # 6/27 and 6/27 of draws
    assert tp.stability([same, other], chance="uniform").interval is None


def test_circuits_found_again_differ_by_seed_alone_where_data_have_no_part(tmp_path: Path) -> None:
    found = tp.refound(PLANTED.model, TASK, tp.Random(edges=20), seeds=3, resamples=2, chance="uniform")
    expected = [tp.Random(edges=20, seed=seed).find(PLANTED.model, TASK) for seed in range(3)]
    assert list(found.circuits["seeds"]) == expected
    assert found.nominal["data"].iou == 1
    assert found.effective["seeds"].iou == pytest.approx(
        tp.stability([one.effective for one in expected], chance="uniform").iou
    )
    assert len({one.provenance["task"].get("redrawn") for one in found.circuits["data"]}) == 2
    assert len(str(found).splitlines()) == 5
    found.plot(tmp_path / "stability.html")
    assert "nominal IoU over seeds" in (tmp_path / "stability.html").read_text()
    json.dumps(found.as_dict())
    for options, message in (({"seeds": 1, "resamples": 0}, "none to compare"),):
        with pytest.raises(ValueError, match=message):
            tp.refound(PLANTED.model, TASK, tp.Random(edges=20), **options)
    with pytest.raises(ValueError, match="EAP has no seed"):
        tp.refound(PLANTED.model, TASK, tp.EAP(edges=20))


def test_redrawn_examples_are_those_of_training_with_their_twins() -> None:
    discovery = TASK.discovery
    again = tp.redrawn(discovery, seed=1)
    rows = {str(row) for row in torch.cat([discovery.train().clean.ids, discovery.train().corrupt.ids], 1).tolist()}
    drawn_rows = [str(row) for row in torch.cat([again.train().clean.ids, again.train().corrupt.ids], 1).tolist()]
    assert set(drawn_rows) < rows
    assert len(drawn_rows) == len(discovery.train())
    assert again.train().index.tolist() == list(range(len(drawn_rows)))
    assert again.validation() is discovery.validation()


def test_shared_parts_are_measured_one_by_one() -> None:
    other = tp.Circuit(SITES, TRUTH.kept | chance(20, 3).kept)
    other = other - tp.Circuit.from_names(SITES, TRUTH.names[:1])
    found = tp.shared_parts(
        PLANTED.model, {"true": TRUTH, "other": other}, {"test": TASK, "train": TASK.discovery.train()}
    )
    assert found.circuits["both"] == TRUTH & other
    assert found.circuits["true alone"].names == TRUTH.names[:1]
    assert found.circuits["either"] == TRUTH | other
    assert len(found.circuits["other alone"]) + len(found.circuits["both"]) == len(other)
    for name in ("true", "both", "other alone"):
        alone = tp.evaluate(PLANTED.model, found.circuits[name], TASK, ablation=tp.Resample())["circuit"]
        assert found[name, "test"].means()["kl"] == pytest.approx(alone.means()["kl"], abs=1e-5)
        assert found[name, "test"].means()["faithfulness"] == pytest.approx(alone.means()["faithfulness"], abs=1e-4)
    assert found.overlap.iou == TRUTH.iou(other)
    assert len(str(found).splitlines()) == 8
    json.dumps(found.as_dict())
    with pytest.raises(ValueError, match="but got 1 and 1"):
        tp.shared_parts(PLANTED.model, {"true": TRUTH}, {"test": TASK})
