"""Paired tests against scipy and by counting, and Holm's correction against what defines it."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tlprune.learning.significance import holm, sign_flip


def flipped(values: list[float]) -> float:
    """The share of all signs with which the sum is as large."""
    total = abs(sum(values))
    signs = list(product([1, -1], repeat=len(values)))
    return sum(abs(np.dot(own, values)) >= total - 1e-12 for own in signs) / len(signs)


@pytest.mark.parametrize(("more", "less", "same"), [(5, 0, 3), (4, 2, 0), (3, 3, 2), (1, 0, 0), (0, 6, 1)])
def test_of_right_and_wrong_answers_it_is_mcnemars_exact_test(more: int, less: int, same: int) -> None:
    values = [1.0] * more + [-1.0] * less + [0.0] * same
    (found,) = sign_flip(torch.tensor(values)[:, None]).tolist()
    assert found == pytest.approx(stats.binomtest(more, more + less).pvalue)
    assert found == pytest.approx(flipped(values))


def test_it_takes_many_columns_each_by_itself() -> None:
    table = torch.tensor([[0.0, 1.0, 0.3], [0.0, 1.0, -0.1], [0.0, 1.0, 0.2]])
    together = sign_flip(table)
    assert together.tolist() == [float(sign_flip(column[:, None])) for column in table.T]
    assert together[0] == 1
    assert together[1] == 0.25


@pytest.mark.parametrize("seed", range(5))
def test_of_other_figures_it_is_near_the_share_of_signs(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.3, 1, 14)
    exact = stats.permutation_test(
        (values,), lambda own: abs(own.sum()), permutation_type="samples", n_resamples=np.inf, alternative="greater"
    )
    assert float(sign_flip(torch.from_numpy(values)[:, None])) == pytest.approx(exact.pvalue, abs=0.03)


def closed(p_values: Any) -> list[float]:
    """Of each hypothesis the largest Bonferroni p-value of any set that it is in: Holm's method is a shortcut."""
    every = range(len(p_values))
    sets = [own for size in range(1, len(p_values) + 1) for own in combinations(every, size)]
    return [max(min(1, len(own) * min(p_values[i] for i in own)) for own in sets if one in own) for one in every]


@pytest.mark.parametrize("seed", range(6))
def test_holm_is_the_closure_of_bonferroni(seed: int) -> None:
    p_values = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    assert holm(p_values).tolist() == pytest.approx(closed(p_values.tolist()))
