"""Spread over seeds: its two parts against every sample that can be drawn, and against simulated networks."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from tlprune.studies.seed_spread import seed_spread


def table(examples: int, seeds: int, *, seed: int = 0) -> Tensor:
    return torch.rand(examples, seeds, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).round()


def test_sampling_is_what_drawing_the_examples_again_adds_to_the_variance() -> None:
    """All 5^5 samples of five examples: the mean variance over seeds is larger by ``(n - 1) / n sampling^2``."""
    values = table(5, 4)
    found = seed_spread(values)
    assert found.deviation is not None
    assert found.sampling is not None
    samples = torch.tensor([*product(range(5), repeat=5)])
    means = values[samples].mean(1)
    added = float(means.var(1).mean()) - found.deviation**2
    assert added == pytest.approx(0.8 * found.sampling**2, rel=1e-9)
    apart = means - values.mean(0)
    mean_range = float((apart.amax(1) - apart.amin(1)).mean())
    assert found.sampling_range == pytest.approx(mean_range, rel=0.03), "2,000 of the 3,125 samples"


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_networks_of_one_accuracy_spread_as_the_sampling_says(shared: float) -> None:
    """Some answers are common to all networks, so their accuracies move together; the variance is a mean of many."""
    generator = torch.Generator().manual_seed(1)
    examples, seeds, times = 200, 6, 400
    observed, explained, ranges, explained_ranges = [], [], [], []
    for time in range(times):
        own = (torch.rand(examples, seeds, generator=generator) < 0.4).double()
        common = (torch.rand(examples, 1, generator=generator) < 0.4).double()
        values = torch.where(torch.rand(examples, 1, generator=generator) < shared, common, own)
        found = seed_spread(values, values.mean(0)[None] if time >= 20 else None)
        assert found.deviation is not None
        assert found.sampling is not None
        observed.append(found.deviation**2)
        explained.append(found.sampling**2)
        ranges.append(found.range)
        if time < 20:
            explained_ranges.append(found.sampling_range)
    mean = torch.tensor(observed).mean()
    assert float(mean) == pytest.approx(sum(explained) / times, rel=0.1)
    assert float(mean) == pytest.approx((1 - shared) * 0.4 * 0.6 / examples, rel=0.1), "the binomial variance"
    assert sum(ranges) / times == pytest.approx(sum(explained_ranges) / 20, rel=0.08)


def test_what_is_beyond_sampling_is_the_spread_of_the_true_accuracies() -> None:
    generator = torch.Generator().manual_seed(2)
    truth = torch.tensor([0.2, 0.5, 0.8])
    beyond = [
        seed_spread((torch.rand(100, 3, generator=generator) < truth).double(), truth[None].double()).beyond
        for _ in range(300)
    ]
    assert sum(one or 0.0 for one in beyond) / 300 == pytest.approx(float(truth.std()), rel=0.02)


def test_the_figures_of_a_table_by_hand() -> None:
    values = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    found = seed_spread(values)
    assert (found.seeds, found.low, found.high, found.range) == (3, 0.25, 1.0, 0.75)
    assert found.mean == pytest.approx(0.5)
    assert found.deviation == pytest.approx((((0.5) ** 2 + 0.25**2 + 0.25**2) / 2) ** 0.5)
    same = seed_spread(values[:, :1].expand(-1, 3) * torch.tensor([[1.0], [0.0], [1.0], [0.0]]))
    assert (same.range, same.deviation, same.sampling, same.sampling_range, same.beyond) == (0, 0, 0, 0, 0)
    alone = seed_spread(values[:, :1])
    assert (alone.deviation, alone.sampling, alone.sampling_range, alone.beyond) == (None, None, None, None)
    assert seed_spread(values[:1]).sampling is None
    assert seed_spread(values[:1]).deviation == pytest.approx(3**-0.5)
    assert found.as_dict()["beyond"] == found.beyond
