"""Figures per example against figures by hand, many circuits at once against one at a time, pairs of circuits."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from scipy import stats
from styles import SHAPE, model_of, random_batch, random_tokens
from torch import Tensor

import tlprune as tp
from tlprune.learning.bootstrap import Interval, interval
from tlprune.learning.figures import figures, kendall_tau
from tlprune.learning.metrics import LOWER_IS_BETTER, Performance, measure, measure_each
from tlprune.task import Batch

VOCABULARY = SHAPE["d_vocab"]
MASKED = tp.Masked(model_of("gpt2"), tp.Masks(tp.edges(model_of("gpt2"))))
BATCH = random_batch(7, seed=3)


def circuits(count: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, MASKED.graph.n_edges, generator=generator) < 0.7


def ragged() -> Batch:
    """Three examples with 3, 1 and 2 answers."""
    answers = torch.tensor([[1, 2, 3], [4, -100, -100], [5, 6, -100]])
    return Batch(
        index=torch.arange(3),
        clean=random_tokens(1),
        corrupt=random_tokens(2),
        positions=torch.tensor([[1, 3, 5], [5, 0, 0], [2, 4, 0]]),
        answers=answers,
        foils=torch.where(answers < 0, answers, answers + 1),
    )


def logits_and_reference(batch: Batch) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = (*batch.answers.shape, VOCABULARY)
    logits, full = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return logits, full.log_softmax(-1)


def test_figures_by_hand_leave_out_answers_that_are_not_there() -> None:
    batch = ragged()
    logits, reference = logits_and_reference(batch)
    logits[0, :, 1:4] += 20 * torch.eye(3)  # every answer of the first example right; of the third only the last
    logits[2, 1, 6] += 20
    found = figures(logits, batch, reference)
    for row, count in enumerate([3, 1, 2]):
        own: dict[str, list[float]] = {}
        for place in range(count):
            one, full = logits[row, place], reference[row, place]
            answer, foil = int(batch.answers[row, place]), int(batch.foils[row, place])
            p = (one.exp() / one.exp().sum()).tolist()
            values = {
                "correct": float(max(p) == p[answer]),
                "agrees": float(int(one.argmax()) == int(full.argmax())),
                "logit_difference": float(one[answer] - one[foil]),
                "probability_difference": p[answer] - p[foil],
                "kl": sum(math.exp(q) * (q - math.log(r)) for q, r in zip(full.tolist(), p, strict=True)),
                "rank": 1 + sum(other > p[answer] for other in p),
                "nats": -math.log(p[answer]),
            }
            for name, value in values.items():
                own.setdefault(name, []).append(value)
        assert float(found["nats"][row]) == pytest.approx(sum(own.pop("nats")))
        assert float(found["exact"][row]) == min(own["correct"])
        assert float(found["tokens"][row]) == count
        for name, numbers in own.items():
            assert float(found[name][row]) == pytest.approx(sum(numbers) / count), name
    assert found["exact"].tolist() == [1, 0, 0]
    assert found["correct"].tolist()[::2] == [1, 0.5]


def test_perplexity_weighs_tokens_alike_whatever_example_they_are_of() -> None:
    batch = ragged()
    logits, reference = logits_and_reference(batch)
    found = {name: values.float() for name, values in figures(logits, batch, reference).items()}
    known = batch.answers >= 0
    nats = -logits.log_softmax(-1)[known].gather(-1, batch.answers[known][:, None])
    expected = float(nats.mean().exp())
    performance = Performance(**found)
    assert performance.means()["perplexity"] == pytest.approx(expected, rel=1e-6)
    by_example = (found["nats"] / found["tokens"]).mean().exp()
    assert float(by_example) != pytest.approx(expected, rel=1e-2)
    assert performance.intervals()["perplexity"].value == pytest.approx(expected, rel=1e-6)


def test_examples_with_fewer_answers_are_measured_like_each_alone() -> None:
    batch, kept = ragged(), circuits(1)[0]
    together = measure(MASKED, kept, batch)
    for row, count in enumerate([3, 1, 2]):
        part = batch.rows(torch.tensor([row]))
        columns = {name: getattr(part, name)[:, :count] for name in ("positions", "answers", "foils")}
        alone = measure(MASKED, kept, dataclasses.replace(part, index=torch.arange(1), **columns))
        for name, values in vars(alone).items():
            if isinstance(values, Tensor):
                torch.testing.assert_close(getattr(together, name)[row : row + 1], values)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16, 100])
def test_many_circuits_at_once_are_each_alone(batch_size: int) -> None:
    kept = circuits(4)
    together = measure_each(MASKED, kept, BATCH, batch_size=batch_size, metrics={"top": top})
    for own, found in zip(kept, together, strict=True):
        alone = measure(MASKED, own, BATCH, metrics={"top": top})
        assert found.per_example().keys() == alone.per_example().keys()
        for name, values in alone.per_example().items():
            torch.testing.assert_close(found.per_example()[name], values, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.nats, alone.nats)
    assert together[0].kl.allclose(together[1].kl) is False
    assert measure_each(MASKED, kept[:0], BATCH) == []


def top(logits: Tensor, batch: Batch, reference: Tensor) -> Tensor:
    """The likeliest token less the full model's, and the row so that a mix-up of examples would show."""
    return (logits.argmax(-1) - reference.argmax(-1)).sum(-1) + 100 * batch.index


def test_metrics_of_a_task_come_with_the_figures() -> None:
    found = measure(MASKED, circuits(1)[0], BATCH, metrics={"top": top}, batch_size=2)
    logits = MASKED(BATCH, mask=circuits(1)[0].float())[:, 0].argmax(-1)
    full = model_of("gpt2")(BATCH.clean.ids)[:, -1].argmax(-1)
    assert found.extra["top"].tolist() == (logits - full + 100 * torch.arange(7)).tolist()
    assert found.means()["top"] == pytest.approx(float((logits - full + 100 * torch.arange(7)).float().mean()))
    assert found.intervals()["top"] == interval(lambda mean: mean, found.extra["top"])
    for name in ("kl", "perplexity", "correct", "tokens"):
        with pytest.raises(ValueError, match="need names of their own"):
            measure(MASKED, circuits(1)[0], BATCH, metrics={name: top})


def test_every_mean_lies_in_its_interval() -> None:
    found = measure(MASKED, circuits(1)[0], BATCH)
    means, intervals = found.means(), found.intervals()
    assert means.keys() == intervals.keys()
    for name, value in means.items():
        assert intervals[name].value == pytest.approx(value, rel=1e-6), name
        assert intervals[name].low <= intervals[name].value <= intervals[name].high
    assert intervals["kl"].low < intervals["kl"].high
    assert found.intervals(level=0.5)["kl"].high < intervals["kl"].high
    assert found.intervals(seed=1)["kl"] != intervals["kl"]


def test_a_circuit_does_not_differ_from_itself() -> None:
    found = measure(MASKED, circuits(1)[0], BATCH)
    assert set(found.less(found).values()) == {Interval(0, 0, 0)}


def test_pairing_sees_what_intervals_apart_do_not() -> None:
    """A difference of 0.1 in every example, among examples that differ by much more."""
    first = measure(MASKED, circuits(1)[0], BATCH)
    worse = dataclasses.replace(first, kl=first.kl + 0.1, nats=first.nats + 0.1)
    difference = worse.less(first)
    assert difference["kl"].low == pytest.approx(0.1, abs=1e-6)
    assert difference["kl"].high == pytest.approx(0.1, abs=1e-6)
    assert first.less(worse)["kl"].sign == -1
    assert difference["accuracy"] == Interval(0, 0, 0)
    apart = first.intervals()["kl"], worse.intervals()["kl"]
    assert apart[0].high > apart[1].low
    ratio = worse.means()["perplexity"] - first.means()["perplexity"]
    assert difference["perplexity"].value == pytest.approx(ratio, rel=1e-5)
    assert difference["perplexity"].low > 0
    assert set(LOWER_IS_BETTER) <= {*difference, "squared_error", "target_error", "word_cross_entropy"}
    with pytest.raises(ValueError, match="the same examples"):
        first.less(measure(MASKED, circuits(1)[0], random_batch(6, seed=3)))


def test_kendall_tau_is_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(5, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    tied = [values.round() for values in (first, second)]
    for x, y in ((first, second), (first, first), (first, -first), tied, (first, tied[1])):
        expected = [stats.kendalltau(a, b).statistic for a, b in zip(x.numpy(), y.numpy(), strict=True)]
        torch.testing.assert_close(kendall_tau(x, y), torch.tensor(expected, dtype=torch.float64))
    assert kendall_tau(first[0], torch.zeros(40, dtype=torch.float64)).isnan()


def test_labels_stay_with_their_examples() -> None:
    labelled = dataclasses.replace(BATCH, labels=10 * torch.arange(7))
    assert [part.labels.tolist() for part in labelled.to("cpu").split(5)] == [[0, 10, 20, 30, 40], [50, 60]]
    assert BATCH.rows(torch.tensor([1])).labels is None


def test_labels_tell_tasks_apart() -> None:
    def task(batch: Batch) -> tp.Task:
        whole = tp.planted("copy").task
        return dataclasses.replace(whole, streams={"main": dataclasses.replace(whole.streams["main"], test=batch)})

    plain = tp.planted("copy").task.test
    labelled = [dataclasses.replace(plain, labels=torch.full((len(plain),), value)) for value in (0, 1)]
    assert len({task(batch).fingerprint for batch in (plain, *labelled)}) == 3
    assert task(plain).fingerprint == tp.planted("copy").task.fingerprint
