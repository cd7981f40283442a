"""Masks among the sites of a circuit: the others are closed for good, and nothing counts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from styles import fresh, random_batch

from tlprune.circuit import Circuit
from tlprune.gates import Heaviside, StraightThrough, UniformGradient
from tlprune.learning.budgets import Lagrangian, Penalty
from tlprune.learning.fit import fit, steps
from tlprune.learning.objectives import KL
from tlprune.learning.optimiser import Optimiser
from tlprune.masking.ablation import Resample
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.sites import edges, heads, mlps
from tlprune.task import Discovery, Stream, Task, Tokenisation

MODEL = fresh("lnpre", torch.float32)
SITES = edges(MODEL)


def task() -> Discovery:
    stream = Stream(*(random_batch(4, seed=seed) for seed in (1, 2, 3)))
    return Task("random", {"main": stream}, Tokenisation(prepend_bos=True)).discovery


def some(count: int = 30, sites: Any = SITES) -> Circuit:
    order = torch.randperm(len(sites), generator=torch.Generator().manual_seed(0))
    return Circuit(sites, torch.zeros(len(sites), dtype=torch.bool).index_fill(0, order[:count], True))


def trained(masks: Masks, budget: Any, **options: Any) -> list[Any]:
    options = {"steps": 4, "optimiser": Optimiser(weight_decay=0.01, clip=1.0)} | options
    return fit(Masked(MODEL, masks, Resample()), task(), KL(), budget, **options)


@pytest.mark.parametrize("gate", [None, StraightThrough(2.0), Heaviside(), UniformGradient()], ids=str)
def test_sites_outside_stay_closed_and_the_others_learn(gate: Any) -> None:
    among = some()
    masks = Masks(SITES, gate, among=among)
    trained(masks, Penalty(1.0), validate_every=2)
    log_alpha = masks.log_alpha.detach()
    assert bool((log_alpha[~among.kept] == -torch.inf).all())
    assert bool(log_alpha[among.kept].isfinite().all()) and bool((log_alpha[among.kept] != masks.gate.initial).all())
    sample = masks.sample(torch.Generator().manual_seed(0)).detach()
    assert bool((sample[~among.kept] == 0).all())


def test_budgets_and_records_count_the_open_sites_alone() -> None:
    """The same masks over a smaller graph would see the same sparsity: that of the gates that there are."""
    masks = Masks(SITES, among=some(30))
    masked = Masked(MODEL, masks, Resample())
    first = next(iter(steps(masked, task(), KL(), Lagrangian(0.0), steps=1, optimiser=Optimiser(rate=0.0))))
    assert first.totals == {"edges": 30}
    whole = Masks(SITES)
    assert first.expected_kept / 30 == pytest.approx(float(whole.expected_kept.detach()) / len(SITES), abs=1e-6)
    assert masks.density == pytest.approx(whole.density, abs=1e-6)
    with pytest.raises(ValueError, match="can keep 0 to 30 but was asked for 31"):
        trained(Masks(SITES, among=some(30)), Lagrangian(kept=31))


def test_a_penalty_prices_the_open_sites_alone() -> None:
    """What the price adds to the gradient of a step is price / 30 times that of the gate's probability."""
    gradients = []
    for price in (0.0, 6.0):
        masks = Masks(SITES, StraightThrough(1.0), among=some(30))
        trained(masks, Penalty(price), steps=1, optimiser=Optimiser(rate=0.0))
        gradients.append(masks.log_alpha.grad)
    kept = torch.sigmoid(torch.tensor(1.0))
    expected = torch.where(some(30).kept, 6.0 / 30 * kept * (1 - kept), torch.tensor(0.0))
    torch.testing.assert_close(gradients[1] - gradients[0], expected, atol=1e-6, rtol=1e-4)


def test_no_circuit_of_the_masks_has_another_site() -> None:
    among = some(30)
    masks = Masks(SITES, among=among)
    with torch.no_grad():
        masks.log_alpha[among.kept.nonzero()[:5, 0]] = -90.0  # closed as far as float32 goes, and yet before the others
    assert masks.circuit(edges=30) == among
    assert masks.circuit(threshold=0.5).iou(among) == 25 / 30
    assert len(masks.circuit(edges=12) - among) == len(masks.circuit() - among) == 0
    scores = masks.scores().values
    assert bool(scores.isfinite().all()) and scores[~among.kept].max() < scores[among.kept].min()
    for asked in ({"edges": 31}, {"sparsity": 0.5}):
        with pytest.raises(ValueError, match="may keep 30 edges"):
            masks.circuit(**asked)


def test_kinds_are_counted_each_by_its_own() -> None:
    sites = heads(MODEL) + mlps(MODEL)
    masks = Masks(sites, among=Circuit.from_names(sites, ["a0.h1", "a1.h2", "a1.h3", "m1"]))
    record = trained(masks, Lagrangian(0.5, on="heads") + Penalty(0.1, on="mlps"), steps=1)[0]
    assert record.totals == {"heads": 3, "mlps": 1}
    assert masks.circuit(heads=2, mlps=1).names_of("mlps") == ["m1"]


def test_a_start_is_where_training_begins() -> None:
    start = torch.linspace(-1, 1, len(SITES))
    masks = Masks(SITES, start=start, among=some())
    assert torch.equal(masks.log_alpha[masks.part()].detach(), start[some().kept])
    with torch.no_grad():
        masks.log_alpha.fill_(0)
    assert float(start[0]) == -1, "the start is not trained"


def test_a_checkpoint_of_other_open_sites_or_another_start_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    trained(Masks(SITES, among=some(30)), Penalty(1.0), checkpoint=path)
    for other, named in (
        ({"among": some(29)}, "among"),
        ({}, "among"),
        ({"among": some(30), "start": torch.zeros(len(SITES))}, "start"),
    ):
        with pytest.raises(ValueError, match=f"another .*{named}"):
            trained(Masks(SITES, **other), Penalty(1.0), checkpoint=path)
    again = Masks(SITES, among=some(30))
    assert trained(again, Penalty(1.0), checkpoint=path) == []
    assert bool((again.log_alpha.detach()[~some(30).kept] == -torch.inf).all())


def test_other_sites_are_refused() -> None:
    with pytest.raises(ValueError, match="start at one number for each but got 3"):
        Masks(SITES, start=torch.zeros(3))
    with pytest.raises(ValueError, match="circuit of the same sites"):
        Masks(SITES, among=some(2, heads(MODEL)))
    with pytest.raises(ValueError, match="that keeps some"):
        Masks(SITES, among=some(0))
