"""Several terms, budgets and gates in one training: gradients add up, streams and runs are apart, the best stays."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import fresh, model_of, random_batch
from torch import Tensor, nn

from tlprune.gates import Gate, HardConcrete, Heaviside, Sigmoid, StraightThrough
from tlprune.learning.budgets import Lagrangian, Penalty
from tlprune.learning.fit import fit, steps
from tlprune.learning.objectives import KL, CrossEntropy, LogitDifference, Uniform
from tlprune.learning.optimiser import Optimiser
from tlprune.learning.records import Step
from tlprune.learning.reports import wandb
from tlprune.learning.training import Plan, Training
from tlprune.masking.ablation import Resample
from tlprune.masking.cache import reference_predictions
from tlprune.masking.constants import Constant
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.means import Mean
from tlprune.masking.plain import plain_run
from tlprune.masking.sites import edges, neurons
from tlprune.schedules import exponential, linear
from tlprune.sites import Sites
from tlprune.task import Batch, Discovery

MAIN = (random_batch(6, seed=1), random_batch(4, seed=2))
OTHER = (random_batch(5, length=4, seed=3), random_batch(3, length=4, seed=4))
DISCOVERY = Discovery("random", {"main": MAIN, "other": OTHER}, {"name": "random"})
GATES = [StraightThrough(initial=1.0), Sigmoid(initial=1.0), Heaviside(initial=0.5), HardConcrete()]


def masked_of(gate: Gate | None = None, *, beside: Callable[[Any], Sites] | None = None) -> Masked:
    model = model_of("lnpre", torch.float32)
    sites = edges(model) if beside is None else edges(model) + beside(model)
    return Masked(model, Masks(sites, gate))


def training_of(masked: Masked, objective: Any, budget: Any, **changes: Any) -> Training:
    options: dict[str, Any] = {"optimiser": Optimiser(), "steps": 10, "batch_size": 100, "seed": 0}
    options |= {"validate_every": None, "keep": None, "patience": None, **changes}
    return Training(masked, masked.masks, DISCOVERY, Plan(objective=objective, budget=budget, **options))


def gradient(objective: Any, budget: Any, **options: Any) -> Tensor:
    """Of the masks, in the first step, with masks that have no noise so that all terms see the same."""
    masked = masked_of(Sigmoid(initial=0.3))
    training_of(masked, objective, budget, **options).step()
    assert masked.masks.log_alpha.grad is not None
    return masked.masks.log_alpha.grad


# ---- terms


def test_gradients_of_terms_and_budgets_add_up() -> None:
    terms = [(1.5, Uniform(on="other")), (1.0, KL()), (0.5, CrossEntropy(run="complement"))]
    price = Penalty(2.0)
    whole = gradient(1.5 * Uniform(on="other") + KL() + 0.5 * CrossEntropy(run="complement"), price)
    free = Penalty(0.0)
    parts = [weight * gradient(one, free) for weight, one in terms]
    parts.append(gradient(0.0 * KL(), price))
    assert all(part.abs().max() > 1e-4 for part in parts)
    torch.testing.assert_close(whole, torch.stack(parts).sum(0), atol=1e-6, rtol=1e-4)


def test_a_penalty_has_the_gradient_of_its_closed_form() -> None:
    """The derivative of weight times the mean of a sigmoid."""
    soft = torch.sigmoid(torch.tensor(0.3))
    expected = 2.0 * soft * (1 - soft) / 110
    torch.testing.assert_close(gradient(0.0 * KL(), Penalty(2.0)), expected.expand(110))


def test_mask_samples_share_the_batch_without_changing_what_is_lowered() -> None:
    one, two = (gradient(KL(), Penalty(1.0), optimiser=Optimiser(samples=samples)) for samples in (1, 3))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def plain_value(objective: Any, masked: Masked, batch: Batch, mask: Tensor) -> float:
    replaced = Resample().replaced(masked.backend, batch.clean, batch.corrupt)
    logits = plain_run(masked.model, masked.graph, batch.clean, mask, replaced)[:, -1:]
    reference = masked.model(batch.clean.ids)[:, -1:].log_softmax(-1)
    return float(objective(logits, batch, reference).detach())


def test_each_term_sees_its_own_stream_sample_and_run() -> None:
    masked = masked_of(StraightThrough(initial=1.0))
    terms = (KL(), KL(run="complement"), Uniform(on="other"), LogitDifference(on="other", run="complement"))
    generator = torch.Generator().manual_seed(0)
    rows = {name: torch.randperm(len(split[0]), generator=generator) for name, split in DISCOVERY.streams.items()}
    samples = [masked.masks.sample(generator).detach() for _ in terms]
    (record,) = steps(masked, DISCOVERY, terms[0] + terms[1] + terms[2] + terms[3], steps=1, batch_size=100)
    for term, objective, sample in zip(record.terms, terms, samples, strict=True):
        batch = DISCOVERY.train(objective.on).rows(rows[objective.on])
        mask = sample if objective.run == "kept" else 1 - sample
        assert term.sampled == pytest.approx(plain_value(objective, masked, batch, mask), rel=1e-4), term.name
    assert len({tuple(sample.tolist()) for sample in samples}) == 4


def test_hard_figures_are_of_each_terms_stream_and_run() -> None:
    masked, objective = masked_of(), KL() + 3.0 * Uniform(on="other", run="complement")
    (record,) = steps(masked, DISCOVERY, objective, steps=1, validate_every=1, keep={"edges": 40})
    kept = masked.masks.circuit(edges=40).kept.float()
    first = plain_value(KL(), masked, MAIN[1], kept)
    second = plain_value(Uniform(), masked, OTHER[1], 1 - kept)
    assert [term.hard for term in record.terms] == pytest.approx([first, second], rel=1e-4)
    assert record.hard == pytest.approx(first + 3 * second, rel=1e-4)


def test_records_name_every_term_budget_and_kind_of_sites() -> None:
    masked = masked_of(beside=neurons)
    budget = Lagrangian(0.9, on="edges") + Lagrangian(kept=40, on="neurons") + Penalty(linear(0, 1, steps=4))
    objective = KL() + 2 * Uniform(on="other", run="complement")
    last = list(steps(masked, DISCOVERY, objective, budget, steps=3, validate_every=3))[-1]
    data = json.loads(json.dumps(last.as_dict()))
    assert (data["edges_target"], data["neurons_target"], data["weight"]) == (0.9, pytest.approx(56 / 96), 0.5)
    assert len(data["edges_multipliers"]) == len(data["neurons_multipliers"]) == 2
    assert data["objective_sampled"] == pytest.approx(data["kl_sampled"] + 2 * data["uniform_other_complement_sampled"])
    assert data["objective_hard"] == pytest.approx(data["kl_hard"] + 2 * data["uniform_other_complement_hard"])
    assert data["edges_expected_kept"] + data["neurons_expected_kept"] == pytest.approx(data["expected_kept"])
    assert (last.totals, last.total) == ({"edges": 110, "neurons": 96}, 206)
    kept = ", ".join(f"{round(last.kept[kind])} of {last.totals[kind]} {kind}" for kind in ("edges", "neurons"))
    assert str(last).count("\n") == 0
    assert str(last).endswith(f"kept {kept}")


@pytest.mark.parametrize("batch_size", [{"main": 2, "other": 5}, 2])
def test_each_stream_has_its_batch_size_and_order(batch_size: Any) -> None:
    seen: dict[str, list[list[int]]] = {"main": [], "other": []}

    class Watching(KL):
        def __call__(self, logits: Tensor, batch: Batch, reference: Tensor) -> Tensor:
            seen[self.on].append(batch.index.tolist())
            return super().__call__(logits, batch, reference)

    list(steps(masked_of(), DISCOVERY, Watching() + Watching(on="other"), steps=3, batch_size=batch_size))
    sizes = batch_size if isinstance(batch_size, dict) else {"main": 2, "other": 2}
    assert {(name, len(rows)) for name, batches in seen.items() for rows in batches} == set(sizes.items())
    assert sorted(row for rows in seen["main"] for row in rows) == [*range(6)]


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (KL(on="control"), {}, "has streams"),
        (KL() + KL(on="other"), {"batch_size": {"main": 3}}, "'other' has none"),
        (KL(), {"batch_size": 0}, "at least 1 example"),
        (KL(), {"patience": 2}, "Give validate_every"),
    ],
)
def test_impossible_plans_are_refused(objective: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steps(masked_of(), DISCOVERY, objective, **options)


# ---- budgets and gates


@pytest.mark.parametrize("measure", ["expected", "sampled"])
def test_each_group_of_sites_follows_its_own_target(measure: Any) -> None:
    masked = masked_of(beside=neurons)
    budget = Lagrangian(0.9, measure, on="edges") + Lagrangian(0.0, measure, on="neurons")
    last = fit(masked, DISCOVERY, 0.0 * KL(), budget, steps=120)[-1]
    # What is sampled is the mean mask value; the probability of not being 0 is a little higher.
    assert last.kept["edges"] / 110 < 0.4
    assert last.kept["neurons"] / 96 > 0.8


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: type(gate).__name__)
def test_every_gate_learns_which_sites_help(gate: Gate) -> None:
    """Only the objective tells sites apart: what raises it when opened ends below what lowers it."""
    masked = masked_of(gate)
    start = plain_value(KL(), masked, MAIN[0], masked.masks.gate.harden(masked.masks.log_alpha.detach() - 99))
    budget = Lagrangian(linear(0, 0.5, steps=40))
    fit(masked, DISCOVERY, KL(), budget, steps=60, optimiser=Optimiser(samples=2))
    values = [plain_value(KL(), masked, MAIN[0], one.kept.float()) for one in top_and_bottom(masked)]
    assert values[0] < values[1]
    assert values[0] < start


def top_and_bottom(masked: Masked) -> list[Any]:
    top = masked.masks.circuit(edges=55)
    return [top, top.complement]


def test_an_annealed_gate_is_set_in_each_step_and_stays_at_the_last() -> None:
    gate = Sigmoid(initial=1.0, temperature=exponential(1, 0.01, steps=9))
    masked = masked_of(gate)
    for record in steps(masked, DISCOVERY, steps=10):
        assert masked.masks.gate == gate.at(record.step - 1)
        assert record.expected_kept == pytest.approx(float(masked.masks.expected_kept.detach()))
    assert masked.masks.gate == gate.at(9)


# ---- early stop


class Scripted(KL):
    """KL in training; on validation the figures of a list, one after the other."""

    def __call__(self, logits: Tensor, batch: Batch, reference: Tensor) -> Tensor:
        if logits.requires_grad:
            return super().__call__(logits, batch, reference)
        return torch.tensor(FIGURES.pop(0))


FIGURES: list[float] = []


def stopped(figures: list[float], **options: Any) -> tuple[list[Step], Masked, list[Tensor]]:
    """Validate in every step, with hard figures as written down."""
    FIGURES[:] = figures
    masked, seen = masked_of(Sigmoid(initial=1.0, temperature=exponential(1, 0.5, steps=9))), []
    history = []
    for record in steps(masked, DISCOVERY, Scripted(), steps=len(figures), validate_every=1, **options):
        history.append(record)
        seen.append(masked.masks.log_alpha.detach().clone())
    return history, masked, seen


def test_training_stops_after_patience_and_gives_the_best_masks_back() -> None:
    history, masked, seen = stopped([5.0, 3.0, 4.0, 3.0, 9.0, 1.0], budget=Penalty(0.1), patience=3)
    assert [record.hard for record in history] == [5, 3, 4, 3, 9]
    assert torch.equal(masked.masks.log_alpha, seen[1])
    assert not torch.equal(seen[1], seen[4])
    assert masked.masks.gate.step == 1


def test_the_best_masks_come_back_where_patience_lasts_to_the_end_too() -> None:
    history, masked, seen = stopped([5.0, 3.0, 4.0], budget=Penalty(0.1), patience=3)
    assert len(history) == 3
    assert torch.equal(masked.masks.log_alpha, seen[1])
    _, masked, seen = stopped([5.0, 3.0, 4.0], budget=Penalty(0.1))
    assert torch.equal(masked.masks.log_alpha, seen[2])


def test_nothing_counts_before_the_budget_is_reached() -> None:
    rising = Penalty(linear(0, 0.1, steps=4))
    history, masked, seen = stopped([0.0, 0.0, 1.0, 2.0, 7.0, 6.0, 8.0, 9.0, 0.0], budget=rising, patience=2)
    assert len(history) == 8
    assert torch.equal(masked.masks.log_alpha, seen[5])
    history, masked, seen = stopped([1.0] * 9, budget=Lagrangian(0.999), patience=1)
    assert len(history) == 9
    assert torch.equal(masked.masks.log_alpha, seen[8])


# ---- parameters of the ablation


class Shifted(nn.Module):
    """Resample with a parameter of its own, which no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.shift = Resample(), nn.Parameter(torch.zeros(3))

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name in ("inner", "shift") else getattr(self.inner, name)

    def replaced(self, *inputs: Any, **options: Any) -> Any:
        self.shift.grad = torch.ones(3)
        return self.inner.replaced(*inputs, **options)


def test_parameters_of_an_ablation_are_trained_at_their_own_rate() -> None:
    model = fresh("lnpre", torch.float32)
    masked = Masked(model, Masks(edges(model)), Shifted())
    list(steps(masked, DISCOVERY, steps=1, optimiser=Optimiser(ablation_rate=0.25, weight_decay=0.5)))
    torch.testing.assert_close(masked.ablation.shift.detach(), torch.full((3,), -0.25))


def test_learned_constants_hurt_less_than_the_means_they_start_from() -> None:
    """With all masks closed nothing but the constants can bring the masked model closer to the full one."""
    model = fresh("lnpre", torch.float32)
    start = Mean(MAIN[0].corrupt)
    constant = Constant(model, start)
    masks = Masks(edges(model), Heaviside(initial=-1.0))
    masked = Masked(model, masks, constant)
    closed = Masked(model, masks, start)(MAIN[0], mask=torch.zeros(len(masks.sites)))
    before = float(KL()(closed, MAIN[0], reference_predictions(masked.backend, MAIN[0])))
    first = [parameter.detach().clone() for parameter in constant.parameters()]
    history = list(
        steps(masked, DISCOVERY, budget=Penalty(0.0), steps=40, optimiser=Optimiser(rate=0.0, ablation_rate=0.02))
    )
    assert not any(torch.equal(old, new) for old, new in zip(first, constant.parameters(), strict=True))
    assert history[0].sampled == pytest.approx(before, rel=1e-3)
    assert history[-1].sampled < 0.7 * before


# ---- reports


def test_reports_are_given_every_record_and_wandb_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, Any], int]] = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((values, step)))
    history = fit(masked_of(), DISCOVERY, steps=3, validate_every=2, report=wandb(run))
    assert [step for _, step in logged] == [1, 2, 3]
    assert [values for values, _ in logged] == [
        {name: value for name, value in record.as_dict().items() if value is not None} for record in history
    ]
    assert ["kl_hard" in values for values, _ in logged] == [False, True, False]
    started: list[dict[str, Any]] = []
    package = types.SimpleNamespace(init=lambda **options: started.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", package)
    wandb(project="circuits")(history[0])
    assert (started, logged[-1][1]) == ([{"project": "circuits"}], 1)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"Install tlprune\[wandb\]"):
        wandb()
