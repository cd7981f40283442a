"""Units one at a time: a head that decides, figures of single evaluations, intervals and corrections."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from encoders import encoder_of
from encoders import prompts as random_prompts
from hand_made import HEAD, UNITS, deciding_encoder, deciding_task

import tlprune as tp
from tlprune.learning.significance import holm
from tlprune.studies.ablating import OneAtATime
from tlprune.task import Batch

LABELS = [0, 1, 1, 0, 1] * 4  # 12 of 20 are 1
CHANGED = {"a0.h0": 0.0, HEAD: -12 / 20, "m0": 0.0, "a1.h0": 0.0, "a1.h1": 0.0, "m1": 0.0}


@pytest.fixture(scope="module")
def encoder() -> Any:
    return deciding_encoder()


@pytest.fixture(scope="module")
def found(encoder: Any) -> OneAtATime:
    return tp.one_at_a_time(encoder, None, deciding_task(LABELS), ablation=tp.Zero())


def test_without_the_head_that_decides_all_answers_are_the_first_class(found: OneAtATime) -> None:
    """A tie is class 0, which 8 of 20 are; 12 answers change, all to the worse, and 6 units are looked at."""
    signs = found["signs"]
    assert signs.whole == 1
    assert {unit: one.change.value for unit, one in signs.changes.items()} == pytest.approx(CHANGED)
    assert [*signs.changes] == [*UNITS]
    assert signs.significant == [HEAD]
    assert signs[HEAD].p_value == pytest.approx(2 * 0.5**12)
    assert signs[HEAD].adjusted == pytest.approx(6 * 2 * 0.5**12)
    assert signs["m1"].p_value == signs["m1"].adjusted == 1
    assert signs.largest()[0].unit == HEAD
    assert all(one.kept for one in signs.changes.values())


def test_under_means_all_answers_are_those_of_the_reference(encoder: Any) -> None:
    """The mean over prompts of class 1 alone says 1, which 12 of 20 are."""
    reference = deciding_task([1, 1, 1]).discovery.train().clean
    found = tp.one_at_a_time(encoder, None, deciding_task(LABELS), ablation=tp.Mean(reference), units=[HEAD, "m0"])
    assert found["signs"][HEAD].change.value == pytest.approx(-8 / 20)
    assert found["signs"][HEAD].adjusted == pytest.approx(2 * 2 * 0.5**8)
    assert found.ablation["prompts"] == 3


def test_putting_the_head_back_restores_the_answers(encoder: Any) -> None:
    circuit = tp.Circuit.from_names(tp.nodes(encoder, "a*|m*"), ["a0.h0", "m1"])
    signs = tp.one_at_a_time(encoder, circuit, deciding_task(LABELS), ablation=tp.Zero())["signs"]
    assert signs.whole == 8 / 20
    assert {unit: one.change.value for unit, one in signs.changes.items()} == pytest.approx({**CHANGED, HEAD: 12 / 20})
    assert signs.whole + signs[HEAD].change.value == 1
    assert {unit for unit, one in signs.changes.items() if one.kept} == {*circuit.names}
    assert [signs["m1"].action, signs[HEAD].action] == ["removed", "put back"]


def test_each_domain_has_its_own_examples_and_correction(encoder: Any) -> None:
    few = deciding_task([1, 1, 1, 1, 0], "few")
    found = tp.one_at_a_time(encoder, None, [deciding_task(LABELS), few], ablation=tp.Zero())
    assert found["few"].examples == 5
    assert found["few"][HEAD].change.value == pytest.approx(-4 / 5)
    assert found["few"][HEAD].adjusted == pytest.approx(6 * 2 * 0.5**4)
    assert found["few"].significant == [], "four answers are too few for six units"
    named = tp.one_at_a_time(encoder, None, {"mine": few.test}, ablation=tp.Zero())
    assert named["mine"].as_dict() == found["few"].as_dict()


def test_it_is_said_and_shown(found: OneAtATime) -> None:
    assert json.loads(json.dumps(found.as_dict()))["domains"]["signs"]["units"][1]["significant"] is True
    first, *_ = str(found).splitlines()[1:]
    assert first.split() == ["signs", HEAD, "removed", "-0.6000", *first.split()[4:6], "0.0029", "*"]
    assert "more than noise are 1 of 6 changes" in str(found)
    assert "zero ablation" in str(found)
    figure = found.plot()
    (chart,) = figure.data
    assert [*chart.x] == ["0", "1", " ", "MLP"]
    assert [[*row] for row in chart.z] == [[0, pytest.approx(-0.6), None, 0], [0, 0, None, 0]]
    assert [[*row] for row in chart.text] == [["-", "-*", "", "-"], ["-", "-", "", "-"]]
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax == pytest.approx(-0.6)


# ---- against evaluations one by one


def random_batch(examples: int = 40) -> Batch:
    tokens = random_prompts("bert classes", padding="right", examples=examples)
    answers = torch.randint(3, (examples, 1), generator=torch.Generator().manual_seed(3))
    none = torch.full_like(answers, -100)
    return Batch(
        torch.arange(examples), tokens, tokens.rows(torch.arange(examples).roll(1)), answers * 0, answers, none
    )


@pytest.mark.parametrize("figure", ["accuracy", "kl"])
def test_changes_and_intervals_are_those_of_single_comparisons(figure: str) -> None:
    model, batch = encoder_of("bert classes"), random_batch()
    ablation = tp.Mean(random_prompts("bert classes", 7, padding="right"))
    sites = tp.nodes(model, "a*|m*")
    circuit = tp.Circuit.from_names(sites, [sites.name(index) for index in range(0, len(sites), 2)])
    found = tp.one_at_a_time(
        model, circuit, {"random": batch}, ablation=ablation, units="a[01]*|m2", figure=figure, batch_size=16
    )["random"]
    assert len(found.changes) == 9
    p_values = []
    for unit, one in found.changes.items():
        alone = tp.Circuit.from_names(sites, [unit])
        changed = circuit - alone if unit in circuit else circuit | alone
        paired = tp.compare(model, changed, circuit, batch, ablation=ablation).differences[figure]
        assert [one.change.value, one.change.low, one.change.high] == pytest.approx(
            [paired.value, paired.low, paired.high], abs=2e-6
        )
        p_values.append(one.p_value)
    assert any(one.change.value for one in found.changes.values())
    expected = holm(torch.tensor(p_values, dtype=torch.float64)).tolist()
    assert [one.adjusted for one in found.changes.values()] == pytest.approx(expected)


def test_bad_input_gets_one_error(encoder: Any) -> None:
    task = deciding_task([0, 1])
    with pytest.raises(ValueError, match=r"'a7.h0' matches none of this model's nodes"):
        tp.one_at_a_time(encoder, None, task, units="a7.h0")
    sites = tp.nodes(encoder)
    everything = tp.Circuit(sites, torch.ones(len(sites), dtype=torch.bool))
    with pytest.raises(ValueError, match=r"'a7.h0' is not one of these"):
        tp.one_at_a_time(encoder, everything, task, units="a7.h0")
    with pytest.raises(ValueError, match=r"One at a time go heads and MLPs, such as a0.h1 and m0, but input"):
        tp.one_at_a_time(encoder, everything, task, units="*")
    with pytest.raises(ValueError, match="needs a figure that is a mean over examples but got 'f1'"):
        tp.one_at_a_time(encoder, None, task, ablation=tp.Zero(), figure="f1")
    with pytest.raises(ValueError, match="tasks with a name each but got signs, signs"):
        tp.one_at_a_time(encoder, None, [task, task])
    with pytest.raises(ValueError, match="tasks with a name each but got none"):
        tp.one_at_a_time(encoder, None, [])
