"""Objectives and budgets against formulas by hand, their signs, and how they add."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from styles import random_batch, refuses_choice

from tlprune.learning.budgets import Budget, Lagrangian, Penalty, every
from tlprune.learning.objectives import KL, CrossEntropy, LogitDifference, Objective, Uniform, weighted
from tlprune.schedules import constant, join, linear
from tlprune.tasks.verbaliser import word_metrics

BATCH = random_batch(examples=4)
LOGITS = torch.randn(4, 1, 29, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
REFERENCE = torch.randn(4, 1, 29, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(-1)
EVERY = [KL(), CrossEntropy(), LogitDifference(), Uniform(), KL(tokens=(3, 1, 28))]


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


def test_cross_entropy_over_some_tokens_is_that_of_a_model_that_has_no_others() -> None:
    """Where the other tokens are out of reach, which is what renormalising means."""
    tokens = tuple(sorted({*BATCH.answers.flatten().tolist(), 3, 11}))
    others = [token for token in range(LOGITS.shape[-1]) if token not in tokens]
    alone = LOGITS.clone()
    alone[..., others] = -math.inf
    wanted = float(CrossEntropy()(alone, BATCH, REFERENCE))
    assert float(CrossEntropy(tokens=tokens)(LOGITS, BATCH, REFERENCE)) == pytest.approx(wanted, rel=1e-12)
    assert wanted < float(CrossEntropy()(LOGITS, BATCH, REFERENCE)) - 0.1
    metrics = word_metrics(tokens)
    assert float(metrics["word_cross_entropy"](LOGITS, BATCH, REFERENCE).mean()) == pytest.approx(wanted, rel=1e-12)
    right = [int(alone[row, 0].argmax()) == int(BATCH.answers[row, 0]) for row in range(4)]
    assert metrics["word_accuracy"](LOGITS, BATCH, REFERENCE).tolist() == right


def test_cross_entropy_leaves_out_places_without_an_answer_and_refuses_other_answers() -> None:
    answers = torch.tensor([[3, -100], [5, 4]])
    batch = dataclasses.replace(BATCH.rows(torch.arange(2)), positions=0 * answers, answers=answers, foils=answers)
    logits = torch.randn(2, 2, 29, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = CrossEntropy(tokens=(5, 4, 3))(logits, batch, logits)
    nats = [
        -logits[row, place, [3, 4, 5]].log_softmax(-1)[word] for row, place, word in ((0, 0, 0), (1, 0, 2), (1, 1, 1))
    ]
    assert float(found) == pytest.approx(float(sum(nats)) / 3, rel=1e-12)
    with pytest.raises(ValueError, match="token 4 is an answer and none of"):
        CrossEntropy(tokens=(3, 5))(logits, batch, logits)
    with pytest.raises(ValueError, match="from 0 to 28 but got 3 to 40"):
        CrossEntropy(tokens=(3, 40))(logits, batch, logits)
    with pytest.raises(ValueError, match="at least two different ids"):
        CrossEntropy(tokens=(3, 3))


def test_logit_difference_is_foil_less_answer() -> None:
    differences = [LOGITS[row, 0, BATCH.foils[row, 0]] - LOGITS[row, 0, BATCH.answers[row, 0]] for row in range(4)]
    assert float(LogitDifference()(LOGITS, BATCH, REFERENCE)) == pytest.approx(float(sum(differences)) / 4, rel=1e-12)


@pytest.mark.parametrize("objective", EVERY, ids=lambda one: one.name)
def test_every_objective_is_a_mean_over_examples(objective: KL) -> None:
    alone = [objective(LOGITS[row], part, REFERENCE[row]) for row, part in zip(*rows(), strict=True)]
    assert float(objective(LOGITS, BATCH, REFERENCE)) == pytest.approx(float(sum(alone)) / 4, rel=1e-12)


def rows() -> tuple[list[list[int]], list[object]]:
    return [[row] for row in range(4)], list(BATCH.split(1))


@pytest.mark.parametrize("objective", EVERY, ids=lambda one: one.name)
def test_going_down_an_objective_helps_the_answer_or_the_agreement(objective: KL) -> None:
    logits = LOGITS.clone().requires_grad_()
    value = objective(logits, BATCH, REFERENCE)
    (gradient,) = torch.autograd.grad(value, logits)
    assert objective(LOGITS - 0.1 * gradient, BATCH, REFERENCE) < value


def test_kl_over_some_tokens_is_that_of_the_renormalised_distributions() -> None:
    chosen = [4, 0, 17]
    p, q = (logits.exp()[:, 0, chosen] for logits in (REFERENCE, LOGITS))
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    expected = float((p * (p / q).log()).sum() / 4)
    assert float(KL(tokens=(4, 0, 17))(LOGITS, BATCH, REFERENCE)) == pytest.approx(expected, rel=1e-12)
    everything = KL(tokens=tuple(reversed(range(29))))
    assert float(everything(LOGITS, BATCH, REFERENCE)) == pytest.approx(float(KL()(LOGITS, BATCH, REFERENCE)))


@pytest.mark.parametrize("tokens", [(), (3,), (3, 4, 3)])
def test_kl_over_tokens_that_say_nothing_is_refused(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least two different ids"):
        KL(tokens=tokens)


@pytest.mark.parametrize("tokens", [(3, 29), (-1, 3)])
def test_kl_over_tokens_outside_the_vocabulary_is_refused(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needs token ids from 0 to 28"):
        KL(tokens=tokens)(LOGITS, BATCH, REFERENCE)


def test_uniform_is_the_divergence_from_knowing_nothing() -> None:
    chances = LOGITS.softmax(-1)
    expected = float(((1 / 29) * (math.log(1 / 29) - chances.log())).sum() / 4)
    assert float(Uniform()(LOGITS, BATCH, REFERENCE)) == pytest.approx(expected, rel=1e-12)
    assert float(Uniform()(torch.full_like(LOGITS, 7.0), BATCH, REFERENCE)) == pytest.approx(0, abs=1e-12)


# ---- sums


def test_sums_scale_and_add_in_any_grouping() -> None:
    first, second, third = Uniform(on="target", run="complement"), KL(on="control"), CrossEntropy()
    expected = ((3.0, first), (2.0, second), (1.0, third))
    for total in (2 * (1.5 * first + second) + third, 3.0 * first + (2.0 * second + third)):
        assert weighted(total) == expected
    assert (1.5 * first + second).labels == ("uniform_target_complement", "kl_control")
    assert (first + first + KL() + first).labels == (
        *(f"uniform_target_complement{end}" for end in ("", "_2")),
        "kl",
        "uniform_target_complement_3",
    )
    assert weighted(third) == ((1.0, third),)


def test_what_is_not_an_objective_or_a_budget_is_not_added() -> None:
    for one in (KL(), KL() + Uniform(), Penalty(1.0), Penalty(1.0) + Lagrangian(0.5)):
        with pytest.raises(TypeError, match="unsupported operand"):
            one + 3
    with pytest.raises(ValueError, match="needs a finite weight but kl has nan"):
        float("nan") * KL()
    with refuses_choice("run must be one of kept, complement"):
        KL(run="removed")
    assert all(isinstance(one, Objective) for one in EVERY)


def test_budgets_add_and_one_group_has_one_target() -> None:
    edges, heads, price = Lagrangian(0.9, on="edges"), Lagrangian(0.5, on="heads"), Penalty(2.0, on="edges")
    assert every(edges + heads + price) == every(edges + (heads + price)) == (edges, heads, price)
    assert every(price) == (price,)
    assert all(isinstance(budget, Budget) for budget in (edges, price))
    with pytest.raises(ValueError, match="can have one target"):
        edges + price + Lagrangian(0.3, on="edges")


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


@pytest.mark.parametrize(("first", "second"), [(2.0, 4.0), (-1.0, 5.0), (38.0, 38.0)])
def test_a_lagrangian_alone_rests_above_its_target_by_the_ratio_of_its_multipliers(first: float, second: float) -> None:
    """Why it overshoots: nothing but ``l1`` falling again brings the masks back to the target."""
    rest = torch.tensor(0.3 + first / (2 * second), requires_grad=True)
    term = Lagrangian(0.3).term(torch.tensor([first, second]), rest, 0)
    (slope,) = torch.autograd.grad(term, rest)
    assert float(slope) == pytest.approx(0, abs=1e-4)


def test_a_number_of_sites_is_a_target() -> None:
    assert Lagrangian(kept=30, on="heads").of(144) == Lagrangian(1 - 30 / 144, on="heads")
    falling = Lagrangian(kept=linear(144, 30, steps=10)).of(144)
    assert [falling.target(step) for step in (0, 5, 20)] == pytest.approx([0, 1 - 87 / 144, 1 - 30 / 144])
    assert Lagrangian(0.5).of(144) == Lagrangian(0.5)
    with pytest.raises(ValueError, match="on heads can keep 0 to 20 but was asked for 30"):
        Lagrangian(kept=30, on="heads").of(20)
    with pytest.raises(ValueError, match="needs to know of how many"):
        Lagrangian(kept=30).target(0)
    for options in ({}, {"sparsity": 0.5, "kept": 30}):
        with pytest.raises(ValueError, match="needs one target"):
            Lagrangian(**options)


def test_a_penalty_is_its_weight_times_the_share_kept() -> None:
    penalty = Penalty(join(constant(2.0), linear(2.0, 3.0, steps=50), at=50))
    sparsity = torch.tensor(0.75, requires_grad=True)
    for step, weight in ((0, 2.0), (50, 2.0), (75, 2.5), (200, 3.0)):
        term = penalty.term(penalty.start(), sparsity, step)
        assert float(term.detach()) == pytest.approx(0.25 * weight)
        assert float(torch.autograd.grad(term, sparsity)[0]) == -weight
        assert penalty.record(step) == {"weight": weight}
    assert len(penalty.start()) == 0
    assert penalty.of(7) is penalty


def test_a_budget_is_reached_when_it_will_ask_for_no_more() -> None:
    rising, price = Lagrangian(linear(0, 0.9, steps=50)), Penalty(linear(0, 1, steps=50))
    assert [rising.reached(sparsity, step=9, steps=100) for sparsity in (0.1, 0.89, 0.896, 0.95)] == [
        False, False, True, True,
    ]  # fmt: skip
    assert [price.reached(0.0, step=step, steps=100) for step in (0, 49, 50, 99)] == [False, False, True, True]


def test_a_gap_in_log_density_is_the_same_at_every_scale() -> None:
    """Twice too many sites are as wrong at 99% sparsity as at 50%; the term is in closed form."""
    multipliers = torch.tensor([0.7, 2.0], dtype=torch.float64)
    for target in (0.5, 0.9, 0.99):
        budget, sparsity = (
            Lagrangian(target, gap="log_density"),
            torch.tensor(1 - 2 * (1 - target), dtype=torch.float64),
        )
        expected = 0.7 * math.log(2) + 2.0 * math.log(2) ** 2
        assert float(budget.term(multipliers, sparsity, 0)) == pytest.approx(expected, rel=1e-9)
        reached = torch.tensor(target, dtype=torch.float64)
        assert float(budget.term(multipliers, reached, 0)) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="targets below 1"):
        Lagrangian(1.1, gap="log_density").term(multipliers, torch.tensor(0.5), 0)
    with pytest.raises(ValueError, match="with expected L0"):
        Lagrangian(0.9, "sampled", gap="log_density")
