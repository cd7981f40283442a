"""Gates: their closed forms against samples or definitions, their gradients, and how they harden."""

from __future__ import annotations

import pytest
import torch

from tlprune.gates import Gate, HardConcrete, Heaviside, Sigmoid, StraightThrough, UniformGradient
from tlprune.pieces import PIECE, expected_count
from tlprune.schedules import exponential


def named(gates: list[Gate]) -> list[str]:
    """Names that are the same in every process, unlike those of functions."""
    return [f"{type(gate).__name__}-{place}" for place, gate in enumerate(gates)]


GATES = [HardConcrete(), HardConcrete(temperature=0.3), HardConcrete(low=-0.3, high=1.5, temperature=1.0)]
LOCATIONS = torch.tensor([-4.0, -1.5, -0.5, 0.0, 0.7, 2.0, 5.0])
DRAWS = 40_000


@pytest.mark.parametrize("gate", GATES, ids=repr)
def test_expected_kept_is_the_share_of_samples_above_zero(gate: HardConcrete) -> None:
    """Within four standard errors of a share, at most 0.5 / sqrt(n) each."""
    draws = gate.sample(LOCATIONS.expand(DRAWS, -1), torch.Generator().manual_seed(0))
    assert draws.min() >= 0
    assert draws.max() <= 1
    share = (draws > 0).float().mean(0)
    assert (share - gate.expected_kept(LOCATIONS)).abs().max() <= 4 * 0.5 / DRAWS**0.5


@pytest.mark.parametrize("gate", GATES, ids=repr)
def test_share_of_samples_at_one_is_the_mirrored_closed_form(gate: HardConcrete) -> None:
    """P(z = 1): the sigmoid of the location less the temperature times log((1 - low) / (high - 1))."""
    draws = gate.sample(LOCATIONS.expand(DRAWS, -1), torch.Generator().manual_seed(1))
    bound = torch.tensor((1 - gate.low) / (gate.high - 1)).log()
    expected = torch.sigmoid(LOCATIONS - gate.temperature * bound)
    assert ((draws == 1).float().mean(0) - expected).abs().max() <= 4 * 0.5 / DRAWS**0.5


def test_samples_repeat_under_a_seed_and_leave_the_global_state_alone() -> None:
    gate, before = HardConcrete(), torch.random.get_rng_state()
    first, again, other = (gate.sample(LOCATIONS, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_gradient_flows_exactly_where_the_clip_is_not_active() -> None:
    location = torch.zeros(2000, requires_grad=True)
    draws = HardConcrete().sample(location, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(draws.sum(), location)
    assert torch.equal(gradient > 0, (draws > 0) & (draws < 1))
    assert gradient.min() >= 0


def test_gradients_flow_from_the_start_at_2_but_hardly_at_10() -> None:
    for initial, low, high in ((2.0, 0.3, 1.0), (10.0, 0.0, 0.01)):
        location = torch.full((5000,), initial, requires_grad=True)
        draws = HardConcrete(initial=initial).sample(location, torch.Generator().manual_seed(0))
        share = (torch.autograd.grad(draws.sum(), location)[0] > 0).float().mean()
        assert low <= share <= high


@pytest.mark.parametrize("gate", GATES, ids=repr)
def test_hardening_removes_as_many_as_are_expected_to_be_zero(gate: HardConcrete) -> None:
    location = 3 * torch.randn(500, generator=torch.Generator().manual_seed(0))
    hard = gate.harden(location)
    expected = round(float((1 - gate.expected_kept(location)).sum()))
    assert int((hard == 0).sum()) == expected
    assert location[hard == 0].max() <= location[hard > 0].min()
    assert torch.equal(hard[hard > 0], gate.soft(location)[hard > 0])


def test_hardening_keeps_the_shape_and_its_argument() -> None:
    location = torch.tensor([[-9.0, 9.0], [9.0, -9.0]])
    assert torch.equal(HardConcrete().harden(location) > 0, location > 0)
    assert location.min() == -9


@pytest.mark.parametrize("options", [{"low": 0.0}, {"low": 0.1}, {"high": 1.0}, {"temperature": 0.0}])
def test_a_gate_that_could_not_close_or_open_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needs low < 0, high > 1 and temperature > 0"):
        HardConcrete(**options)


# ---- the other gates

RANDOM = [StraightThrough(), StraightThrough(temperature=0.2), StraightThrough(temperature=3.0)]
FALLING = Sigmoid(temperature=exponential(1, 0.01, steps=10))
CERTAIN = [Sigmoid(), Sigmoid(temperature=0.5), FALLING, FALLING.at(7), Heaviside(), Heaviside(temperature=0.3)]
EVERY = [*GATES, *RANDOM, *CERTAIN, UniformGradient()]


@pytest.mark.parametrize("gate", EVERY, ids=named(EVERY))
def test_every_gate_has_the_interface_and_values_between_0_and_1(gate: Gate) -> None:
    assert isinstance(gate, Gate)
    wide = torch.linspace(-60, 60, 4001)
    for values in (gate.sample(wide, torch.Generator().manual_seed(0)), gate.soft(wide), gate.expected_kept(wide)):
        assert values.shape == wide.shape
        assert values.min() >= 0
        assert values.max() <= 1
    assert (gate.soft(wide).diff() >= 0).all()
    assert set(gate.harden(torch.tensor([-60.0, 60.0])).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("gate", RANDOM, ids=named(RANDOM))
def test_a_straight_through_share_is_the_sigmoid_at_any_temperature(gate: StraightThrough) -> None:
    """Within four standard errors of a share, at most 0.5 / sqrt(n) each."""
    draws = gate.sample(LOCATIONS.expand(DRAWS, -1), torch.Generator().manual_seed(0))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(gate.expected_kept(LOCATIONS), torch.sigmoid(LOCATIONS))
    assert (draws.mean(0) - gate.expected_kept(LOCATIONS)).abs().max() <= 4 * 0.5 / DRAWS**0.5


@pytest.mark.parametrize("gate", RANDOM, ids=named(RANDOM))
def test_a_straight_through_gradient_is_that_of_the_relaxed_draw(gate: StraightThrough) -> None:
    location = LOCATIONS.clone().requires_grad_()
    draws = gate.sample(location, torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad(draws.sum(), location)
    noise = torch.rand(len(LOCATIONS), generator=torch.Generator().manual_seed(3)).double().logit()
    relaxed = torch.sigmoid((LOCATIONS.double() + noise) / gate.temperature)
    assert torch.equal(draws, (relaxed > 0.5).float())
    expected = relaxed * (1 - relaxed) / gate.temperature
    torch.testing.assert_close(gradient.double(), expected, atol=1e-5, rtol=1e-4)


def test_straight_through_starts_at_45_percent_and_survives_extreme_noise() -> None:
    gate = StraightThrough()
    assert float(gate.expected_kept(torch.tensor(gate.initial))) == pytest.approx(0.45)
    location = torch.zeros(200_000, requires_grad=True)
    (gradient,) = torch.autograd.grad(gate.sample(location, torch.Generator().manual_seed(0)).sum(), location)
    assert gradient.isfinite().all()


def test_a_uniform_gradient_draw_is_0_1_or_uniform_with_its_shares() -> None:
    """Within four standard errors: of shares, and of the moments of uniform numbers."""
    draws = UniformGradient().sample(LOCATIONS.expand(DRAWS, -1), torch.Generator().manual_seed(0))
    kept = torch.sigmoid(LOCATIONS)
    width = kept * (1 - kept)
    shares = [(draws == 1).float().mean(0), (draws == 0).float().mean(0), draws.mean(0)]
    for share, expected in zip(shares, (kept - width / 2, 1 - kept - width / 2, kept), strict=True):
        assert (share - expected).abs().max() <= 4 * 0.5 / DRAWS**0.5
    between = draws[:, LOCATIONS == 0].flatten()
    between = between[(between > 0) & (between < 1)]
    assert abs(float(between.mean()) - 1 / 2) <= 4 / (12 * len(between)) ** 0.5
    assert abs(float(between.square().mean()) - 1 / 3) <= 4 * 0.3 / len(between) ** 0.5


@pytest.mark.parametrize("name", ["square", "bump", "step"])
def test_the_expected_uniform_gradient_is_that_of_a_bernoulli_mask(name: str) -> None:
    """``p (1 - p) (L(1) - L(0))`` for any loss, also one that is the same at both ends; within four standard errors."""
    loss = {
        "square": lambda m: 3 * m.square() - m,
        "bump": lambda m: m * (1 - m),
        "step": lambda m: torch.sigmoid(20 * (m - 0.3)),
    }[name]
    locations = LOCATIONS.expand(DRAWS, -1).clone().requires_grad_()
    draws = UniformGradient().sample(locations, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss(draws).sum(), locations)
    ends, kept = loss(torch.tensor([0.0, 1.0])), torch.sigmoid(LOCATIONS)
    expected = kept * (1 - kept) * (ends[1] - ends[0])
    assert bool(((gradient.mean(0) - expected).abs() <= 4 * gradient.std(0) / DRAWS**0.5 + 1e-6).all())


@pytest.mark.parametrize("gate", EVERY, ids=named(EVERY))
def test_a_gate_that_is_closed_for_good_stays_at_0_without_gradient(gate: Gate) -> None:
    location = torch.tensor([-torch.inf, 1.0]).repeat(50).requires_grad_()
    for values in (gate.sample(location, torch.Generator().manual_seed(0)), gate.expected_kept(location)):
        (gradient,) = torch.autograd.grad(values.sum(), location)
        assert bool((values[::2] == 0).all()) and bool((gradient[::2] == 0).all())
        assert bool(gradient.isfinite().all())
    assert gate.soft(location.detach())[0] == 0 and gate.harden(location.detach())[0] == 0


@pytest.mark.parametrize("gate", CERTAIN, ids=named(CERTAIN))
def test_gates_without_noise_repeat_and_leave_the_generator_alone(gate: Gate) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(gate.sample(LOCATIONS, generator), gate.sample(LOCATIONS))
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(gate.expected_kept(LOCATIONS), gate.sample(LOCATIONS))


def test_a_heaviside_mask_is_a_step_with_the_gradient_of_a_sigmoid() -> None:
    location = LOCATIONS.clone().requires_grad_()
    for value in (Heaviside(temperature=0.5).sample, Heaviside(temperature=0.5).expected_kept):
        mask = value(location)
        assert mask.tolist() == [0, 0, 0, 0, 1, 1, 1]
        (gradient,) = torch.autograd.grad(mask.sum(), location)
        smooth = torch.sigmoid(2 * LOCATIONS)
        torch.testing.assert_close(gradient, 2 * smooth * (1 - smooth))


def test_a_falling_temperature_hardens_the_sigmoid() -> None:
    at_start, later, at_end = (FALLING.at(step).soft(LOCATIONS) for step in (0, 5, 10))
    torch.testing.assert_close(at_start, torch.sigmoid(LOCATIONS))
    torch.testing.assert_close(later, torch.sigmoid(LOCATIONS * 10))
    torch.testing.assert_close(at_end, torch.sigmoid(LOCATIONS * 100))
    decided = LOCATIONS != 0
    torch.testing.assert_close(at_end[decided], FALLING.harden(LOCATIONS)[decided])
    assert FALLING.at(3).at(5) == FALLING.at(5)
    for gate in (*GATES, *RANDOM, Heaviside()):
        assert gate.at(5) is gate


@pytest.mark.parametrize("gate", [StraightThrough, Sigmoid, Heaviside])
def test_a_temperature_of_nothing_is_refused(gate: type) -> None:
    with pytest.raises(ValueError, match="temperature above 0 but got 0"):
        gate(temperature=0.0)
    with pytest.raises(ValueError, match="temperature above 0"):
        Sigmoid(temperature=lambda step: 1.0 - step).at(1)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("shape", [(7,), (PIECE + 5,), (3, 11)])
def test_a_hard_concrete_draw_is_its_formula_in_value_and_gradient(gate: HardConcrete, shape: tuple[int, ...]) -> None:
    location = (2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).movedim(0, -1).requires_grad_()
    draws = gate.sample(location, torch.Generator().manual_seed(1))
    noise = torch.rand(location.shape, generator=torch.Generator().manual_seed(1))
    noise = noise * (1 - 2 * gate.epsilon) + gate.epsilon
    smooth = torch.sigmoid((noise.logit() + location) / gate.temperature)
    expected = torch.clamp(gate.low + (gate.high - gate.low) * smooth, 0, 1)
    weight = torch.randn(1, generator=torch.Generator().manual_seed(2)).expand(location.shape)
    gradients = [torch.autograd.grad(values, location, weight)[0] for values in (draws, expected)]
    assert torch.allclose(draws, expected, atol=1e-6) and torch.allclose(*gradients, atol=1e-6)


def test_an_expected_count_is_the_sum_over_all_sites() -> None:
    location = torch.randn(PIECE + 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    count = expected_count(HardConcrete().expected_kept, location)
    expected = HardConcrete().expected_kept(location).sum()
    assert torch.allclose(count, expected)
    assert torch.allclose(torch.autograd.grad(count, location)[0], torch.autograd.grad(expected, location)[0])
