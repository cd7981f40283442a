"""Intervals: coverage on a known distribution, pairing, and what they do at the edges."""

from __future__ import annotations

import pytest
import torch

from tlprune.learning import bootstrap
from tlprune.learning.bootstrap import Interval, bounds, interval, resampled_means


def mean(value: torch.Tensor) -> torch.Tensor:
    return value


@pytest.mark.parametrize(("level", "least", "most"), [(0.95, 0.9, 0.99), (0.8, 0.72, 0.88)])
def test_intervals_cover_the_true_mean_as_often_as_they_say(level: float, least: float, most: float) -> None:
    """200 samples of 80 exponential variables, whose mean is 1; the bounds are three standard errors wide."""
    generator = torch.Generator().manual_seed(1)
    samples = torch.empty(200, 80, dtype=torch.float64).exponential_(generator=generator)
    found = [interval(mean, sample, level=level, resamples=500) for sample in samples]
    covered = sum(one.low <= 1 <= one.high for one in found) / len(found)
    assert least <= covered <= most
    assert all(one.low < one.value < one.high for one in found)


def test_a_ratio_of_means_resamples_both_together() -> None:
    """Of columns in one ratio in every example the ratio of means is known exactly, whichever examples are drawn."""
    tokens = torch.tensor([1.0, 2, 3, 10])
    found = interval(lambda nats, tokens: nats / tokens, 0.5 * tokens, tokens)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_equal_values_leave_no_doubt() -> None:
    assert interval(mean, torch.ones(7)) == Interval(1, 1, 1)
    assert interval(mean, torch.tensor([3.0])) == Interval(3, 3, 3)


def test_percentiles_are_those_of_the_resampled_means() -> None:
    values = torch.randn(30, 1, generator=torch.Generator().manual_seed(2))
    drawn = resampled_means(values, resamples=1001, seed=3)
    ordered = drawn[:, 0].sort().values
    found = interval(mean, values[:, 0], resamples=1001, seed=3)
    assert (found.low, found.high) == pytest.approx((float(ordered[25]), float(ordered[975])), abs=1e-12)


def test_the_spread_of_resampled_means_is_the_standard_error() -> None:
    """Its expectation is the standard deviation (over n) by the root of n; 4,000 resamples give it to 5%."""
    values = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    drawn = resampled_means(values, resamples=4000)
    torch.testing.assert_close(drawn.std(0), values.std(0, correction=0) / 50**0.5, rtol=0.05, atol=0)
    torch.testing.assert_close(drawn.mean(0), values.mean(0), rtol=0, atol=0.01)


def test_seeds_repeat_and_differ() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(2))
    assert interval(mean, values, seed=1) == interval(mean, values, seed=1) != interval(mean, values, seed=2)


def test_many_examples_and_columns_take_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(20.0)[:, None].expand(-1, 5)
    monkeypatch.setattr(bootstrap, "_MOST_NUMBERS", 60)
    monkeypatch.setattr(bootstrap, "_MOST_COLUMNS", 2)
    drawn = resampled_means(values, resamples=1000)
    assert drawn.shape == (1000, 5)
    low, high = bounds(drawn)
    assert low.shape == high.shape == (5,)
    assert low.unique().numel() == high.unique().numel() == 1
    error = (20**2 - 1) ** 0.5 / 12**0.5 / 20**0.5
    assert float(low[0]) == pytest.approx(9.5 - 1.96 * error, abs=0.3)
    assert float(high[0]) == pytest.approx(9.5 + 1.96 * error, abs=0.3)


def test_what_is_not_finite_has_no_number() -> None:
    found = interval(lambda above, below: above / below, torch.ones(3), torch.zeros(3))
    assert found.as_dict() == {"value": None, "low": None, "high": None}
    assert Interval(0.0, float("nan"), float("nan")).sign == 0


@pytest.mark.parametrize("columns", [(torch.ones(3), torch.ones(4)), (torch.ones(0),), ()], ids=["two", "none", "no"])
def test_columns_must_be_of_the_same_examples(columns: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(ValueError, match="one number for each of the same examples"):
        interval(lambda *means: sum(means), *columns)
