"""How often subnetworks predict the same: by hand, against scikit-learn, by sub-case, drawn, and by the command."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from quizzes import batch_of
from sklearn.metrics import cohen_kappa_score

import tlprune as tp
from tlprune.cli import main
from tlprune.studies.answers import Answers
from tlprune.studies.collection import Run
from tlprune.studies.predictions import Predictions

RUNS = (Run(0.5, 1), Run(0.5, 2), Run(0.5, 3), Run(0.75, 1))
KINDS = ("swap", "passive")


def random_predictions(examples: int = 60, *, name: str = "quiz", seed: int = 0) -> Predictions:
    """Three classes, the last seldom; examples are of two kinds in turn."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([0.6, 0.3, 0.1])
    drawn = torch.multinomial(weights, examples * 5, replacement=True, generator=generator).view(5, examples, 1)
    batch = dataclasses.replace(batch_of("bert classes", examples, seed), labels=torch.arange(examples) % 2)
    full, *others = (Answers(one) for one in drawn)
    return Predictions(name, batch, full, dict(zip(RUNS, others, strict=True)), KINDS)


def stated(*rows: list[int]) -> Predictions:
    """What the full model and the runs predict, written out."""
    full, *others = (Answers(torch.tensor(row)[:, None]) for row in rows)
    batch = batch_of("bert classes", len(rows[0]), 0)
    return Predictions("quiz", batch, full, dict(zip(RUNS, others, strict=False)))


def test_every_pair_has_the_kappa_of_scikit_learn() -> None:
    predictions = random_predictions()
    case = tp.agreement(predictions)["quiz"]
    named = [None, *RUNS]
    assert case.runs == tuple(named)
    for one, other in itertools.product(range(5), range(5)):
        first, second = (predictions.predicted(named[place]).flatten() for place in (one, other))
        assert case.same[one, other].item() == pytest.approx((first == second).double().mean().item())
        assert case.kappa[one, other].item() == pytest.approx(cohen_kappa_score(first, second))


def test_means_over_pairs_by_hand() -> None:
    case = tp.agreement(stated([0, 0, 1, 1], [0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1])).cases[0]
    (row,) = case.rows
    assert (row.sparsity, row.subnetworks) == (0.5, 3)
    assert row.same is not None
    assert row.same.value == pytest.approx((3 / 4 + 1 / 4 + 2 / 4) / 3)
    assert row.with_model.value == pytest.approx((3 / 4 + 2 / 4 + 2 / 4) / 3)
    assert row.kappa == pytest.approx((0.5 + 0 + 0) / 3), "who always says the same agrees as often as by chance"
    assert row.kappa_with_model == pytest.approx((0.5 + 0 + 0) / 3)
    assert row.same.low < row.same.value < row.same.high


def test_kappa_is_not_defined_where_both_always_say_the_same() -> None:
    case = tp.agreement(stated([0, 0, 1], [1, 1, 1], [1, 1, 1])).cases[0]
    assert math.isnan(case.kappa[1, 2])
    assert case.rows[0].kappa is None
    assert case.rows[0].kappa_with_model == 0
    assert case.as_dict()["kappa"][1][2] is None
    assert "undefined" in str(tp.agreement(stated([0, 0, 1], [1, 1, 1], [1, 1, 1])))


def test_a_single_subnetwork_is_compared_with_the_model_alone() -> None:
    (row,) = tp.agreement(stated([0, 0, 1], [1, 0, 1])).cases[0].rows
    assert (row.same, row.kappa) == (None, None)
    assert row.with_model.value == pytest.approx(2 / 3)


def test_classes_that_a_task_takes_for_one_are_the_same() -> None:
    """As in HANS: neutral and contradiction are both no entailment."""
    predictions = stated([0, 1, 2, 0, 1, 2], [0, 2, 1, 1, 2, 1], [0, 1, 1, 0, 0, 2])
    assert tp.agreement(predictions).cases[0].same[0, 1] == pytest.approx(1 / 6)
    merged = dataclasses.replace(predictions, batch=batch_of("bert classes", 6, 0, accepted=True))
    case = tp.agreement(merged).cases[0]
    assert case.same[0, 1] == pytest.approx(5 / 6)
    assert case.same[0, 2] == pytest.approx(5 / 6)
    assert case.chance[0, 1] == pytest.approx(2 / 6 * 1 / 6 + 4 / 6 * 5 / 6)


def test_answers_of_several_tokens_must_all_be_the_same() -> None:
    batch = batch_of("bert classes", 3, 0)
    answers = torch.tensor([[4, 5], [6, -100], [7, 8]])
    batch = dataclasses.replace(batch, answers=answers, foils=answers, positions=torch.zeros(3, 2, dtype=torch.long))
    full, other = torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([[1, 2], [3, 9], [5, 9]])
    case = tp.agreement(Predictions("tokens", batch, Answers(full), {RUNS[0]: Answers(other)})).cases[0]
    assert case.same[0, 1] == pytest.approx(2 / 3), "what fills up an example does not count"


def test_sub_cases_are_the_same_on_their_examples_alone() -> None:
    predictions = random_predictions()
    found = tp.agreement([predictions, random_predictions(name="other", seed=1)])
    assert [case.name for case in found.cases] == [
        "quiz", "quiz: swap", "quiz: passive", "other", "other: swap", "other: passive",
    ]  # fmt: skip
    passive = found["quiz: passive"]
    assert passive.examples == 30
    first, second = (predictions.predicted(run)[1::2] for run in RUNS[:2])
    assert passive.same[1, 2] == pytest.approx((first == second).double().mean().item())
    with pytest.raises(ValueError, match="There is agreement on quiz, quiz: swap"):
        found["hans"]


@pytest.mark.parametrize("given", [[], [random_predictions(), random_predictions()]])
def test_each_task_is_needed_once(given: list[Predictions]) -> None:
    with pytest.raises(ValueError, match="each once"):
        tp.agreement(given)


def test_heat_maps_hold_the_fractions() -> None:
    found = tp.agreement(random_predictions())
    pairs, kinds = found.plot().data
    assert list(pairs.x) == list(pairs.y) == ["full model", *map(str, RUNS)]
    assert [list(row) for row in pairs.z] == found["quiz"].same.tolist()
    assert pairs.customdata[1][2] == f"{found['quiz'].kappa[1, 2].item():.3f}"
    assert (list(kinds.x), list(kinds.y)) == (["50%", "75%"], ["swap", "passive"])
    row = found["quiz: swap"].rows[0]
    assert row.same is not None
    assert list(kinds.z[0]) == [row.same.value, None]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    words = ["core", "prune", "--model", "planted", "--task", "planted", "--out", str(folder)]
    assert main([*words, "--sparsities", "0.5", "--seeds", "1", "2", "--recipe", "short", "--steps", "3"]) == 0
    assert main(["core", "agreement", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "as the model" in printed
    assert "wrote agreement.json and agreement.html" in printed
    (told,) = json.loads((folder / "agreement.json").read_text())["cases"]
    assert told["runs"] == ["full model", "50%, seed 1", "50%, seed 2"]
    assert told["same"][1][2] == told["sparsities"][0]["same"]["value"]
    assert list((folder / "predictions").rglob("seed-2.safetensors")), "what was predicted is kept for others"
