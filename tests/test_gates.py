"""The hard concrete gate: its closed form against samples, its gradient, and how it hardens."""

from __future__ import annotations

import pytest
import torch

from tlprune.gates import HardConcrete

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
