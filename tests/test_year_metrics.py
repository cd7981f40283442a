"""Greater-than's metrics against sums over years, one year at a time."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scipy import stats

import tlprune as tp
from tlprune.tasks.year_metrics import year_metrics

TOKENS = {year: 3 * year + 7 for year in range(100)}
STARTS = [32, 2, 97, 50]
GENERATOR = torch.Generator().manual_seed(0)
LOGITS, FULL = (torch.randn(4, 1, 400, generator=GENERATOR, dtype=torch.float64) for _ in range(2))


@pytest.fixture(scope="module")
def batch() -> tp.Batch:
    return dataclasses.replace(tp.planted("copy").task.test.rows(torch.arange(4)), labels=torch.tensor(STARTS))


@pytest.mark.parametrize(("name", "width"), [("years_above", 100), ("years_above_10", 10)])
def test_years_above_are_summed_year_by_year(batch: tp.Batch, name: str, width: int) -> None:
    found = year_metrics(TOKENS)[name](LOGITS, batch, FULL.log_softmax(-1))
    for row, start in enumerate(STARTS):
        p = LOGITS[row, 0].softmax(-1)
        above = sum(float(p[TOKENS[year]]) for year in range(start + 1, min(start + width, 99) + 1))
        below = sum(float(p[TOKENS[year]]) for year in range(max(start - width, 0), start))
        assert float(found[row]) == pytest.approx(above - below, abs=1e-12)


def test_all_probability_above_is_one_and_below_is_minus_one(batch: tp.Batch) -> None:
    for offset, expected in ((1, 1), (-1, -1), (0, 0)):
        logits = torch.full_like(LOGITS, -1e4)
        logits[torch.arange(4), 0, torch.tensor([TOKENS[start + offset] for start in STARTS])] = 0
        for name in ("years_above", "years_above_10"):
            assert year_metrics(TOKENS)[name](logits, batch, FULL).tolist() == [expected] * 4


def test_ranking_is_of_the_years_alone(batch: tp.Batch) -> None:
    found = year_metrics(TOKENS)["year_ranking"](LOGITS, batch, FULL.log_softmax(-1))
    years = torch.tensor([*TOKENS.values()])
    expected = [stats.kendalltau(LOGITS[row, 0, years], FULL[row, 0, years]).statistic for row in range(4)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    same = year_metrics(TOKENS)["year_ranking"](FULL + 5, batch, FULL.log_softmax(-1))
    torch.testing.assert_close(same, torch.ones(4, dtype=torch.float64))


def test_years_need_labels(batch: tp.Batch) -> None:
    with pytest.raises(ValueError, match="this batch has no labels"):
        year_metrics(TOKENS)["years_above"](LOGITS, dataclasses.replace(batch, labels=None), FULL)
