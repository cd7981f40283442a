"""Warm starts, preselection and ensembles: methods that use other methods."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from styles import fresh, random_batch, refuses_choice

import tlprune as tp
from tlprune.methods.provenance import plain
from tlprune.methods.scales import scaled
from tlprune.task import Stream, Tokenisation


@cache
def model() -> Any:
    return fresh("lnpre", torch.float32)


def task() -> tp.Task:
    stream = Stream(*(random_batch(8, seed=seed) for seed in (1, 2, 3)))
    return tp.Task("random", {"main": stream}, Tokenisation(prepend_bos=True))


def started(method: tp.EdgePruning) -> torch.Tensor:
    """Where the gates of a method are before the first step."""
    sites = method.sites(model())
    masks = method.masks(model(), task().discovery, sites, tp.Resample(), progress=False)
    return masks.log_alpha.detach()


def mean_ranks(values: torch.Tensor) -> torch.Tensor:
    """By comparing every pair: the number below, and half of the number equal."""
    below = (values[None] < values[:, None]).double().sum(1)
    equal = (values[None] == values[:, None]).double().sum(1) - 1
    return below + equal / 2


# ---- warm starts


@pytest.mark.parametrize("by", ["absolute", "signed"])
@pytest.mark.parametrize(("recipe", "first"), [("short", 2.0), ("paper", 10.0)])
def test_gates_start_in_the_order_of_the_scores(by: Any, recipe: Any, first: float) -> None:
    values = tp.EAP().score(model(), task()).values
    values = values.abs() if by == "absolute" else values
    start = started(tp.EdgePruning(recipe=recipe, warm_start=tp.EAP(), warm_by=by, spread=0.5))
    assert torch.equal((values[:, None] > values[None]), (start[:, None] > start[None]))
    assert (float(start.min()), float(start.max())) == pytest.approx((first - 0.5, first + 0.5))
    assert float(start.mean()) == pytest.approx(first)
    torch.testing.assert_close(start.double(), first - 0.5 + mean_ranks(values) / (len(values) - 1))


def test_a_cold_start_is_one_of_no_spread() -> None:
    cold, none = tp.EdgePruning(edges=20, steps=5), tp.EdgePruning(edges=20, steps=5, warm_start=tp.EAP(), spread=0.0)
    assert torch.equal(cold.score(model(), task()).values, none.score(model(), task()).values)


def test_a_warm_start_is_what_training_goes_on_from() -> None:
    """One step of a rate of 0.1 moves no gate by more than that, and so none of another's place by ten ranks."""
    method = tp.EdgePruning(edges=20, steps=1, warm_start=tp.EAP())
    moved = method.score(model(), task()).values - started(method)
    assert 0 < float(moved.abs().max()) <= 0.1 + 1e-6


def test_a_warm_start_uses_the_ablation_of_the_run() -> None:
    sites = tp.edges(model())
    method = tp.EdgePruning(warm_start=tp.EAP())
    starts = [
        method.masks(model(), task().discovery, sites, ablation, progress=False).log_alpha.detach()
        for ablation in (tp.Resample(), tp.Zero())
    ]
    assert not torch.equal(*starts)


def test_scores_of_other_edges_are_refused_before_they_are_made() -> None:
    warm = tp.EAP(embeddings="separate")
    broken = fresh("gpt2", torch.float32)
    broken.hook_dict["hook_embed"].add_hook(lambda value, hook: 1 // 0)
    with pytest.raises(ValueError, match="need the same sites but EAP scores"):
        tp.EdgePruning(warm_start=warm).find(broken, task())
    with refuses_choice("warm_by must be 'signed' or 'absolute'"):
        tp.EdgePruning(warm_by="size")


# ---- preselection


def test_a_pruned_circuit_lies_within_the_preselected_one() -> None:
    method = tp.HAP(edges=15, steps=6, attribution=tp.EAP(edges=30))
    found, first = method.find(model(), task()), method.attribution.find(model(), task())
    assert len(found) == 15 and len(found & first) == 15
    scores = method.score(model(), task())
    assert scores.top(30) == first and tp.TopConnected().select(scores, 15) == found
    assert scores.values[~first.kept].unique().numel() == 1


def test_all_that_was_preselected_stays_where_no_fewer_are_asked_for() -> None:
    method = tp.HAP(edges=30, steps=4, attribution=tp.EAP(edges=30))
    assert method.find(model(), task()) == method.attribution.find(model(), task())


def test_the_target_rises_from_the_size_of_the_first_circuit() -> None:
    """What training sees of 15 of 30 edges is one half."""
    method = tp.HAP(edges=15, steps=9, attribution=tp.EAP(edges=30))
    masks = method.masks(model(), task().discovery, tp.edges(model()), tp.Resample(), progress=False)
    budget = method.plan(masks)["budget"]
    assert (budget.target(0), budget.target(8)) == pytest.approx((0, 0.5))


def test_among_all_edges_it_is_edge_pruning() -> None:
    everything = len(tp.edges(model()))
    options = {"edges": 20, "steps": 5, "warm_start": tp.EAP()}
    method = tp.HAP(attribution=tp.EAP(edges=everything), **options)
    assert torch.equal(method.score(model(), task()).values, tp.EdgePruning(**options).score(model(), task()).values)


def test_an_attribution_that_leaves_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="to 20 edges but EAP found Circuit"):
        tp.HAP(edges=20, attribution=tp.EAP(edges=19)).find(model(), task())
    with pytest.raises(ValueError, match="Give both the same convention"):
        tp.HAP(edges=2, keep_embeddings=True, attribution=tp.EAP(edges=30)).find(model(), task())


# ---- ensembles

MEMBERS = (tp.EAP(), tp.EAP(objective=tp.CrossEntropy()), tp.Random(shape="free"))


@pytest.mark.parametrize("scale", ["rank", "standardised", "largest", "raw"])
@pytest.mark.parametrize("combine", ["mean", "min", "max"])
def test_an_ensemble_of_one_ranks_as_that_one(scale: Any, combine: Any) -> None:
    alone = tp.EAP(edges=12)
    method = tp.Ensemble(methods=(alone,), scale=scale, combine=combine, edges=12)
    assert method.find(model(), task()) == alone.find(model(), task())
    if scale == "raw":
        assert torch.equal(method.score(model(), task()).values, alone.score(model(), task()).values)


@pytest.mark.parametrize("combine", ["mean", "min", "max"])
def test_combined_ranks_are_those_by_hand(combine: Any) -> None:
    every = torch.stack([mean_ranks(member.score(model(), task()).values.double()) for member in MEMBERS]) / 109
    expected = {"mean": every.mean(0), "min": every.min(0).values, "max": every.max(0).values}[combine]
    found = tp.Ensemble(methods=MEMBERS, combine=combine).score(model(), task())
    torch.testing.assert_close(found.values.double(), expected, atol=1e-6, rtol=0)


def test_the_least_and_the_largest_are_intersection_and_union_at_a_level() -> None:
    """A site's least rank is above a level just where all of its ranks are."""
    alone = [tp.Ensemble(methods=(member,)).score(model(), task()).top(threshold=0.7) for member in MEMBERS]
    least, largest = (
        tp.Ensemble(methods=MEMBERS, combine=combine).score(model(), task()).top(threshold=0.7)
        for combine in ("min", "max")
    )
    assert least == alone[0] & alone[1] & alone[2]
    assert largest == alone[0] | alone[1] | alone[2]


def test_scores_are_scaled_as_they_say() -> None:
    values = torch.tensor([4.0, -6.0, 2.0, 0.0, 0.0])
    assert scaled(values, "largest").tolist() == pytest.approx([2 / 3, -1, 1 / 3, 0, 0])
    standard = scaled(values, "standardised")
    assert float(standard.mean()) == pytest.approx(0, abs=1e-12) and float(standard.square().mean()) == pytest.approx(1)
    assert scaled(values, "rank").tolist() == pytest.approx([1, 0, 0.75, 0.375, 0.375])
    for scale, same in (("rank", 0.5), ("standardised", 0.0), ("raw", 3.0)):
        assert scaled(torch.full((4,), 3.0), scale).tolist() == [same] * 4  # pyright: ignore[reportArgumentType]


def test_sizes_alone_count_where_asked() -> None:
    values = tp.EAP().score(model(), task()).values
    found = tp.Ensemble(methods=(tp.EAP(),), by="absolute", scale="raw").score(model(), task())
    assert torch.equal(found.values, values.abs())


def test_methods_of_other_sites_are_refused_before_any_runs() -> None:
    broken = fresh("gpt2", torch.float32)
    broken.hook_dict["hook_embed"].add_hook(lambda value, hook: 1 // 0)
    for other in (tp.EAP(embeddings="separate"), tp.UGS(level="nodes")):
        with pytest.raises(ValueError, match="needs methods of the same sites"):
            tp.Ensemble(methods=(tp.EAP(), other)).find(broken, task())
    for name in ("combine", "scale", "by"):
        with refuses_choice(f"{name} must be"):
            tp.Ensemble(**{name: "vote"})


def test_an_ensemble_of_nodes_keeps_a_number_of_nodes() -> None:
    members = tuple(tp.SubnetworkProbing(level="nodes", steps=3, samples=1, seed=seed) for seed in (0, 1))
    found = tp.Ensemble(methods=members, nodes=4).find(model(), task())
    assert (len(found), found.sites) == (4, tp.nodes(model(), "a*|m*"))
    with pytest.raises(ValueError, match="was given edges=4"):
        tp.Ensemble(methods=members, edges=4).find(model(), task())


# ---- what they say of themselves


@pytest.mark.parametrize(
    "method",
    [
        tp.Ensemble(
            methods=(
                tp.EAP(objective=tp.LogitDifference() + 2 * tp.CrossEntropy()),
                tp.HAP(attribution=tp.EAP(edges=50), edges=20, steps=2, warm_start=tp.Random()),
                tp.Ensemble(methods=(tp.EdgePruning(steps=2, warm_start=tp.EAP()),), scale="raw"),
            ),
            edges=20,
        )
    ],
)
def test_nested_methods_come_back_whole(method: tp.Ensemble) -> None:
    found = method.find(model(), task())
    assert tp.method_from(found.provenance) == method
    inner = found.provenance["method"]["methods"]
    assert [one["name"] for one in inner] == ["eap", "hap", "ensemble"]
    assert inner[1]["attribution"]["edges"] == 50
    assert tp.method_from(found.provenance).find(model(), task()) == found


@pytest.mark.parametrize("method", [tp.Ensemble(), tp.HAP(), tp.EdgePruning(warm_start=tp.HAP())])
def test_defaults_can_be_written_down(method: Any) -> None:
    assert tp.method_from({"method": plain(method)}) == method
