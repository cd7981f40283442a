"""Figures of models with a few classes or one output: what is left out, and statistics of all examples together."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from scipy import stats
from styles import backend_of_style, random_batch
from torch import Tensor

from tlprune.learning.bootstrap import Interval
from tlprune.learning.correlations import confusion, f1, matthews, pearson, ranks, spearman
from tlprune.learning.figures import figures, has_foils
from tlprune.learning.metrics import FIGURES, Performance, measure_each
from tlprune.learning.objectives import KL, CrossEntropy, LogitDifference, SquaredError, Uniform
from tlprune.masking.cache import reference_predictions
from tlprune.statistic import Measured, Statistic
from tlprune.task import Batch

COUNT = 40


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def class_batch(classes: int, *, foils: bool = False, seed: int = 0) -> Batch:
    answers = torch.randint(classes, (COUNT, 1), generator=torch.Generator().manual_seed(seed))
    zeros = torch.zeros_like(answers)
    plain = random_batch(COUNT)
    return dataclasses.replace(
        plain, positions=zeros, answers=answers, foils=1 - answers if foils else torch.full_like(answers, -100)
    )


def regression_batch(targets: Tensor) -> Batch:
    none = torch.full((COUNT, 1), -100)
    return dataclasses.replace(class_batch(2), answers=none, foils=none, targets=targets)


def measured(statistic: Statistic, logits: Tensor, batch: Batch) -> Measured:
    return Measured(statistic.prepared(statistic.columns(logits, batch, logits)), statistic.of_means)


def performance(logits: Tensor, batch: Batch, reference: Tensor, **statistics: Statistic) -> Performance:
    found = {name: measured(one, logits, batch) for name, one in statistics.items()}
    own = {name: values.float() for name, values in figures(logits, batch, reference).items()}
    return Performance(**own, statistics=found)


def test_without_foils_there_are_no_differences_from_them() -> None:
    logits, reference = draws(COUNT, 1, 3), draws(COUNT, 1, 3, seed=1).log_softmax(-1)
    found = performance(logits, class_batch(3), reference)
    names = {*FIGURES} - {"logit_difference", "probability_difference", "squared_error", "target_error"}
    assert found.means().keys() == found.intervals().keys() == {*names, "perplexity"}
    assert len(found) == COUNT
    with pytest.raises(ValueError, match=r"got 'logit_difference'\. Choose one of accuracy"):
        found.figure("logit_difference")
    with pytest.raises(ValueError, match="needs a foil for each answer"):
        LogitDifference()(logits, class_batch(3), reference)


def test_two_classes_are_each_others_foils() -> None:
    logits, batch = draws(COUNT, 1, 2), class_batch(2, foils=True)
    found = performance(logits, batch, logits.log_softmax(-1))
    sign = 1 - 2 * batch.answers[:, 0]
    torch.testing.assert_close(found.logit_difference, (sign * (logits[:, 0, 0] - logits[:, 0, 1])).float())
    assert has_foils(batch)


def test_some_foils_are_refused_however_the_batch_is_split() -> None:
    batch = class_batch(2, foils=True)
    some = dataclasses.replace(batch, foils=torch.where(torch.arange(COUNT)[:, None] < 20, batch.foils, -100))
    with pytest.raises(ValueError, match="20 of 40 have one"):
        has_foils(some)
    from test_metrics import MASKED, circuits  # the whole batch is looked at before any part of it runs

    with pytest.raises(ValueError, match="20 of 40 have one"):
        measure_each(MASKED, circuits(1), some, batch_size=20)


def test_several_accepted_classes_count_as_one() -> None:
    """As HANS has it: neutral and contradiction are both right where nothing is entailed."""
    logits, reference = draws(COUNT, 1, 3), draws(COUNT, 1, 3, seed=1).log_softmax(-1)
    entailed = torch.randint(2, (COUNT,), generator=torch.Generator().manual_seed(2)).bool()
    accepted = torch.stack([entailed, ~entailed, ~entailed], -1)
    batch = dataclasses.replace(class_batch(3), answers=(~entailed).long()[:, None], accepted=accepted)
    found = figures(logits, batch, reference)
    for row in range(COUNT):
        p = logits[row, 0].softmax(-1).tolist()
        own = [0] if entailed[row] else [1, 2]
        assert bool(found["correct"][row]) == (p.index(max(p)) in own)
        assert float(found["nats"][row]) == pytest.approx(-math.log(sum(p[one] for one in own)))
        assert float(found["rank"][row]) == 1 + sum(other > max(p[one] for one in own) for other in p)
    assert float(CrossEntropy()(logits, batch, reference)) == pytest.approx(float(found["nats"].mean()))
    half = batch.rows(torch.arange(20))
    torch.testing.assert_close(figures(logits[:20], half, reference[:20])["correct"], found["correct"][:20])


def test_one_output_is_compared_by_squares() -> None:
    output, full, targets = (draws(COUNT, seed=seed) for seed in range(3))
    batch = regression_batch(targets.float())
    found = performance(output[:, None, None], batch, full[:, None, None], pearson=pearson())
    assert found.means().keys() == {"squared_error", "target_error", "pearson"}
    assert found.means()["squared_error"] == pytest.approx(float((output - full).square().mean()), rel=1e-6)
    assert found.means()["target_error"] == pytest.approx(float((output - targets).square().mean()), rel=1e-5)
    assert len(found) == COUNT
    error = SquaredError()(output[:, None, None], batch, full[:, None, None])
    assert float(error) == pytest.approx(found.means()["squared_error"], rel=1e-6)
    with pytest.raises(ValueError, match="no targets"):
        figures(output[:, None, None], class_batch(2), full[:, None, None])


@pytest.mark.parametrize("objective", [KL(), Uniform(), CrossEntropy()], ids=lambda one: one.name)
def test_distributions_over_one_class_are_refused(objective: KL) -> None:
    """They are the same whatever the model says, so training on them would do nothing and look fine."""
    with pytest.raises(ValueError, match=r"one output, a regression\. Use SquaredError"):
        objective(draws(4, 1, 1), class_batch(2).rows(torch.arange(4)), draws(4, 1, 1))
    with pytest.raises(ValueError, match=r"3 classes or tokens\. Use KL"):
        SquaredError()(draws(4, 1, 3), class_batch(3).rows(torch.arange(4)), draws(4, 1, 3))


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_reference_of_a_regression_is_its_output(outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, plain = backend_of_style("gpt2"), draws(COUNT, 1, outputs).float()
    monkeypatch.setattr(backend, "logits", lambda tokens, positions: plain)
    found = reference_predictions(backend, class_batch(2))
    torch.testing.assert_close(found, plain if outputs == 1 else plain.log_softmax(-1))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_matthews_is_the_published_formula(classes: int) -> None:
    logits, batch = draws(COUNT, 1, classes), class_batch(classes)
    logits.scatter_add_(2, batch.answers[..., None], torch.ones(COUNT, 1, 1, dtype=torch.float64))
    right, best = batch.answers[:, 0], logits[:, 0].argmax(-1)
    # The correlation of indicator vectors, summed over classes: Gorodkin 2004, equation 8.
    x, y = (torch.nn.functional.one_hot(one, classes).double() for one in (right, best))
    x, y = x - x.mean(0), y - y.mean(0)
    expected = float((x * y).sum() / ((x * x).sum() * (y * y).sum()).sqrt())
    found = measured(matthews(classes), logits, batch).value
    assert found == pytest.approx(expected, rel=1e-9)
    assert found > 0.2
    if classes == 2:
        assert found == pytest.approx(float(stats.pearsonr(right.numpy(), best.numpy()).statistic))


def test_matthews_and_f1_are_0_where_nothing_varies() -> None:
    batch, constant = class_batch(2), torch.zeros(COUNT, 1, 2).double()
    assert measured(matthews(2), constant, batch).value == 0
    assert measured(f1(), constant, batch).value == 0


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    logits, batch = draws(COUNT, 1, 2), class_batch(2)
    right, best = batch.answers[:, 0], logits[:, 0].argmax(-1)
    for positive in (0, 1):
        hits = int(((right == positive) & (best == positive)).sum())
        precision, recall = hits / int((best == positive).sum()), hits / int((right == positive).sum())
        expected = 2 * precision * recall / (precision + recall)
        assert measured(f1(positive), logits, batch).value == pytest.approx(expected)


def test_correlations_are_scipys() -> None:
    output = (3 * draws(COUNT)).round() / 4  # with ties
    targets = (output + 2 * draws(COUNT, seed=1)).round().float()
    batch = regression_batch(targets)
    for statistic, expected in ((pearson(), stats.pearsonr), (spearman(), stats.spearmanr)):
        for scale, shift in ((1, 0), (1e-3, 1e4), (-2, 0)):  # a large mean must not cost digits
            found = measured(statistic, (scale * output + shift)[:, None, None], batch).value
            own = expected((scale * output + shift).numpy(), targets.numpy()).statistic
            assert found == pytest.approx(float(own), rel=1e-6)
    torch.testing.assert_close(ranks(output), torch.from_numpy(stats.rankdata(output.numpy())))


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_a_constant_output_has_no_correlation(value: float) -> None:
    constant = torch.full((COUNT, 1, 1), value, dtype=torch.float64)
    for statistic in (pearson(), spearman()):
        assert math.isnan(measured(statistic, constant, regression_batch(draws(COUNT).float())).value)


def test_statistics_have_intervals_and_paired_differences() -> None:
    batch, reference = class_batch(2, foils=True), draws(COUNT, 1, 2, seed=5).log_softmax(-1)
    good, bad = draws(COUNT, 1, 2), draws(COUNT, 1, 2, seed=1)
    good.scatter_add_(2, batch.answers[..., None], torch.full((COUNT, 1, 1), 2.0, dtype=torch.float64))
    one, other = (performance(logits, batch, reference, matthews=matthews(2)) for logits in (good, bad))
    own = one.intervals()["matthews"]
    assert own.value == pytest.approx(one.means()["matthews"])
    assert own.low < own.value < own.high <= 1
    difference = one.less(other)["matthews"]
    assert difference.value == pytest.approx(one.means()["matthews"] - other.means()["matthews"])
    assert difference.sign == 1
    assert one.less(one)["matthews"] == Interval(0, 0, 0)
    # The bootstrap draws whole examples: as over resampled rows.
    rows = torch.randint(COUNT, (2000, COUNT), generator=torch.Generator().manual_seed(9))
    right, best = batch.answers[:, 0], good[:, 0].argmax(-1)
    drawn = matthews(2).of_means(*torch.stack([confusion(right[r], best[r], 2).mean(0) for r in rows], 1))
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert own.low == pytest.approx(low, abs=0.03)
    assert own.high == pytest.approx(high, abs=0.03)


def test_statistics_are_measured_with_the_figures() -> None:
    """Over parts of the batch and for many circuits: the same as over all examples of one circuit."""
    from test_metrics import BATCH, MASKED, circuits

    first = Statistic(lambda logits, batch, reference: logits[:, 0, :2], lambda x, y: x - y)
    kept = circuits(3)
    found = measure_each(
        MASKED, kept, BATCH, batch_size=4, metrics={"first": first, "one": lambda *given: given[0][:, 0, 0]}
    )
    for own, result in zip(kept, found, strict=True):
        logits = MASKED(BATCH, mask=own.float())[:, 0]
        assert result.means()["first"] == pytest.approx(float((logits[:, 0] - logits[:, 1]).mean()), abs=1e-6)
        assert result.extra.keys() == {"one"}
        assert result.statistics.keys() == {"first"}
