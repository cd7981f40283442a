"""Objectives against formulas by hand, and the budget's signs."""

from __future__ import annotations

import math

import pytest
import torch
from styles import random_batch, refuses_choice

from tlprune.learning.budgets import Lagrangian
from tlprune.learning.objectives import KL, CrossEntropy, LogitDifference
from tlprune.schedules import linear

BATCH = random_batch(examples=4)
LOGITS = torch.randn(4, 1, 29, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
REFERENCE = torch.randn(4, 1, 29, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(-1)


def test_kl_is_the_sum_over_the_vocabulary() -> None:
    total = 0.0
    for example in range(4):
        weights = [math.exp(logit) for logit in LOGITS[example, 0].tolist()]
        for reference, weight in zip(REFERENCE[example, 0].tolist(), weights, strict=True):
            total += math.exp(reference) * (reference - math.log(weight / sum(weights)))
    assert float(KL()(LOGITS, BATCH, REFERENCE)) == pytest.approx(total / 4, rel=1e-12)


def test_kl_is_zero_only_at_the_reference_and_ignores_a_shift() -> None:
    assert float(KL()(REFERENCE + 3, BATCH, REFERENCE)) == pytest.approx(0, abs=1e-12)
    assert float(KL()(LOGITS, BATCH, REFERENCE)) > 0.1


def test_cross_entropy_is_the_surprise_at_the_answer() -> None:
    chances = LOGITS.exp() / LOGITS.exp().sum(-1, keepdim=True)
    picked = [chances[row, 0, BATCH.answers[row, 0]] for row in range(4)]
    expected = -sum(math.log(chance) for chance in picked) / 4
    assert float(CrossEntropy()(LOGITS, BATCH, REFERENCE)) == pytest.approx(expected, rel=1e-12)


def test_logit_difference_is_foil_less_answer() -> None:
    differences = [LOGITS[row, 0, BATCH.foils[row, 0]] - LOGITS[row, 0, BATCH.answers[row, 0]] for row in range(4)]
    assert float(LogitDifference()(LOGITS, BATCH, REFERENCE)) == pytest.approx(float(sum(differences)) / 4, rel=1e-12)


@pytest.mark.parametrize("objective", [KL(), CrossEntropy(), LogitDifference()], ids=lambda one: one.name)
def test_every_objective_is_a_mean_over_examples(objective: KL) -> None:
    alone = [objective(LOGITS[row], part, REFERENCE[row]) for row, part in zip(*rows(), strict=True)]
    assert float(objective(LOGITS, BATCH, REFERENCE)) == pytest.approx(float(sum(alone)) / 4, rel=1e-12)


def rows() -> tuple[list[list[int]], list[object]]:
    return [[row] for row in range(4)], list(BATCH.split(1))


@pytest.mark.parametrize("objective", [KL(), CrossEntropy(), LogitDifference()], ids=lambda one: one.name)
def test_going_down_an_objective_helps_the_answer_or_the_agreement(objective: KL) -> None:
    logits = LOGITS.clone().requires_grad_()
    value = objective(logits, BATCH, REFERENCE)
    (gradient,) = torch.autograd.grad(value, logits)
    assert objective(LOGITS - 0.1 * gradient, BATCH, REFERENCE) < value


@pytest.mark.parametrize("sparsity", [0.2, 0.9])
def test_multipliers_follow_what_is_missing(sparsity: float) -> None:
    """The gradient that is to be ascended: ``t - s`` and its square, so too dense a mask raises the first."""
    budget = Lagrangian(0.6)
    multipliers = budget.start()
    assert multipliers.tolist() == [0, 0]
    term = budget.term(multipliers, torch.tensor(sparsity), 0)
    (gradient,) = torch.autograd.grad(term, multipliers)
    assert gradient.tolist() == pytest.approx([0.6 - sparsity, (0.6 - sparsity) ** 2], rel=1e-5)


def test_raised_multipliers_push_towards_the_target() -> None:
    multipliers, budget = torch.tensor([1.0, 0.5]), Lagrangian(0.6)
    for sparsity, pushed in ((0.2, -1), (0.59, -1)):
        at = torch.tensor(sparsity, requires_grad=True)
        (slope,) = torch.autograd.grad(budget.term(multipliers, at, 0), at)
        assert math.copysign(1, float(slope)) == pushed


def test_a_target_can_be_a_schedule() -> None:
    budget = Lagrangian(linear(0, 0.8, steps=4))
    assert [budget.target(step) for step in (0, 1, 4, 9)] == pytest.approx([0, 0.2, 0.8, 0.8])
    assert Lagrangian(0.5).target(3) == 0.5
    with refuses_choice("must be 'expected' or 'sampled'"):
        Lagrangian(0.5, "guessed")
