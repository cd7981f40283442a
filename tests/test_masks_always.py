"""Sites that masks keep for good: always open, counted as kept, in every circuit; and pruning around named units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_masks_among import MODEL, SITES, some, trained

import tlprune as tp
from tlprune.circuit import Circuit
from tlprune.gates import Heaviside, Sigmoid, StraightThrough, UniformGradient
from tlprune.learning.budgets import Penalty
from tlprune.masking.masks import Masks
from tlprune.masking.sites import heads

AMONG = some(40)
ALWAYS = some(10)  # the first ten of these


@pytest.mark.parametrize("gate", [None, StraightThrough(2.0), Heaviside(), Sigmoid(), UniformGradient()], ids=str)
def test_they_stay_open_and_the_others_learn(gate: Any) -> None:
    masks = Masks(SITES, gate, among=AMONG, always=ALWAYS)
    trained(masks, Penalty(1.0), validate_every=2)
    log_alpha, learned = masks.log_alpha.detach(), AMONG.kept & ~ALWAYS.kept
    assert bool((log_alpha[ALWAYS.kept] == torch.inf).all())
    assert bool(log_alpha[learned].isfinite().all()) and bool((log_alpha[learned] != masks.gate.initial).all())
    assert bool((log_alpha[~AMONG.kept] == -torch.inf).all())
    assert bool((masks.sample(torch.Generator().manual_seed(0)).detach()[ALWAYS.kept] == 1).all())


def test_budgets_count_them_as_kept() -> None:
    masks = Masks(SITES, StraightThrough(), among=AMONG, always=ALWAYS)
    record = trained(masks, Penalty(1.0), steps=1)[0]
    assert record.totals == {"edges": 40}
    masks = Masks(SITES, StraightThrough(), among=AMONG, always=ALWAYS)
    assert float(masks.expected_kept.detach()) == pytest.approx(10 + 30 * 0.45)
    assert masks.density == pytest.approx((10 + 30 * 0.45) / 40)


def test_every_circuit_of_the_masks_has_them() -> None:
    masks = Masks(SITES, among=AMONG, always=ALWAYS)
    with torch.no_grad():
        masks.log_alpha[AMONG.kept & ~ALWAYS.kept] = torch.linspace(80, 90, 30)
    assert masks.circuit(edges=10) == ALWAYS
    for circuit in (masks.circuit(edges=25), masks.circuit(), masks.circuit(threshold=0.999)):
        assert len(ALWAYS - circuit) == len(circuit - AMONG) == 0
    assert len(masks.circuit(edges=25)) == 25
    scores = masks.scores().values
    assert bool(scores.isfinite().all())
    assert scores[ALWAYS.kept].min() > scores[AMONG.kept & ~ALWAYS.kept].max()
    with pytest.raises(ValueError, match="always keep 10 edges but 9 were asked for"):
        masks.circuit(edges=9)
    assert Masks(SITES, among=ALWAYS, always=ALWAYS).circuit() == ALWAYS


def test_others_than_the_open_sites_are_refused() -> None:
    for among, always in ((ALWAYS, AMONG), (None, some(2, heads(MODEL)))):
        with pytest.raises(ValueError, match="only such as may be kept"):
            Masks(SITES, among=among, always=always)


def test_a_checkpoint_of_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    trained(Masks(SITES, always=ALWAYS), Penalty(1.0), checkpoint=path)
    with pytest.raises(ValueError, match=r"another .*always"):
        trained(Masks(SITES, always=AMONG), Penalty(1.0), checkpoint=path)
    again = Masks(SITES, always=ALWAYS)
    assert trained(again, Penalty(1.0), checkpoint=path) == []
    assert bool((again.log_alpha.detach()[ALWAYS.kept] == torch.inf).all())


# ---- pruning around named units


@pytest.fixture(scope="module")
def planted() -> Any:
    return tp.planted("induction")  # a0.h2 and a1.h1 are its circuit


def test_units_that_must_stay_count_as_kept(planted: Any) -> None:
    pruning = tp.HeuristicCore(nodes=4, recipe="short", steps=40, include="a0.h0|m1")
    assert pruning.find(planted.model, planted.task).names == ["a0.h0", "a0.h2", "a1.h1", "m1"]


def test_units_that_must_go_do_and_count_as_removed(planted: Any) -> None:
    pruning = tp.HeuristicCore(sparsity=0.5, recipe="short", steps=40, include="m0", exclude="a0.h2|m1")
    found = pruning.find(planted.model, planted.task)
    assert len(found) == 5
    assert {"m0", "a1.h1"} < {*found.names}
    assert not {"a0.h2", "m1"} & {*found.names}
    assert len(found.sites) == 10
    assert tp.method_from(found.provenance) == pruning


def test_the_papers_recipe_starts_all_others_where_it_does_anyway(planted: Any) -> None:
    starts = []
    for include in (None, "m0"):
        pruning = tp.HeuristicCore(steps=1, include=include)
        sites = pruning.sites(planted.model)
        masks = pruning.masks(planted.model, planted.task.discovery, sites, tp.Zero(), progress=False)
        starts.append(masks.log_alpha.detach())
    m0 = sites.index("m0")
    assert starts[1][m0] == torch.inf
    assert torch.equal(starts[0][:m0], starts[1][:m0]) and torch.equal(starts[0][m0 + 1 :], starts[1][m0 + 1 :])


def test_a_target_is_of_the_units_that_may_go(planted: Any) -> None:
    """Ten units, of which two must go: five of eight open ones are to be kept."""
    pruning = tp.HeuristicCore(sparsity=0.5, recipe="short", steps=10, exclude="m*")
    sites = pruning.sites(planted.model)
    masks = pruning.masks(planted.model, planted.task.discovery, sites, tp.Zero(), progress=False)
    assert pruning.plan(masks)["budget"].target(10) == pytest.approx(1 - 5 / 8)
    assert Circuit(sites, masks.log_alpha.detach().isfinite()).nodes == [
        n for n in sites.groups[0].names if n[0] == "a"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": "a9.*"}, r"'a9.\*' is not one of these 10 nodes"),
        ({"include": "a0.*", "exclude": "*.h1"}, "included or excluded but 1 are named for both"),
        ({"include": "a*", "nodes": 7}, "8 are included and 0 excluded, so 8 to 10 can be kept, but 7 were asked"),
        ({"exclude": "a*", "nodes": 3}, "0 are included and 8 excluded, so 0 to 2 can be kept, but 3 were asked"),
    ],
)
def test_bad_names_get_one_error(planted: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tp.HeuristicCore(recipe="short", steps=2, **options).find(planted.model, planted.task)
