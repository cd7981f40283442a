"""``tlprune skill`` on the testbed and a file of sentences: what each action writes, reads, and refuses."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import tlprune as tp
from tlprune.cli import main
from tlprune.skills.commands.study import SkillStudy

NAMES = ("John", "Mary", "Paul", "Anna", "James", "Laura", "Mark", "Sarah", "David", "Kate")
KINDS = {"kind": "good", "brave": "good", "nervous": "bad", "angry": "bad"}
COUNTS = ["--train-count", "12", "--validation-count", "12", "--test-count", "16"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "people.tsv"
    pairs = list(product(NAMES, KINDS))
    path.write_text("said\tverdict\n" + "".join(f"{name} is {word}\t{KINDS[word]}\n" for name, word in pairs))
    return path


@pytest.fixture(scope="module")
def tuning(rows: Path) -> list[str]:
    words = ["skill", "tune", "--model", "testbed", "--data", str(rows), "--text", "said", "--label", "verdict"]
    words += ["--words", "nervous", "kind", "--length", "3", *COUNTS, "--device", "cpu"]
    return [*words, "--steps", "4", "--batch-size", "4"]


@pytest.fixture(scope="module")
def folder(tuning: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("found") / "people"
    assert main([*tuning, "--seeds", "1", "0", "--out", str(found)]) == 0
    assert main(["skill", "probe", str(found), "--top", "2", "--device", "cpu"]) == 0
    return found


def test_tune_writes_a_prompt_for_each_seed(folder: Path) -> None:
    study = SkillStudy.open(folder, device="cpu")
    assert list(study.prompts) == [0, 1]
    assert {len(prompt) for prompt in study.prompts.values()} == {3}
    assert study.prompts[0].hash != study.prompts[1].hash
    assert study.told["fingerprint"] == study.task.fingerprint
    assert list(study.task.options["words"]) == ["nervous", "kind"]
    assert study.task.options["classes"] == ["bad", "good"]
    assert study.task.options["counts"] == {"train": 12, "validation": 12, "test": 16}


def test_tune_goes_on_with_the_same_settings_only(
    folder: Path, tuning: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = SkillStudy.open(folder, device="cpu").prompts[0].hash
    assert main([*tuning, "--seeds", "0", "--out", str(folder)]) == 0
    assert SkillStudy.open(folder, device="cpu").prompts[0].hash == before
    assert main([*tuning, "--length", "4", "--seeds", "0", "--out", str(folder)]) == 2
    assert "another" in capsys.readouterr().err


def test_probe_writes_what_the_method_finds(folder: Path) -> None:
    study = SkillStudy.open(folder, device="cpu")
    prompts = list(study.prompts.values())
    scores = tp.SkillNeurons().score(study.model, study.task, prompts=prompts)
    assert study.scores.values.tolist() == scores.values.tolist()
    told = json.loads((folder / "probe.json").read_text())
    best = scores.values.max()
    assert told["neurons"][0]["predictivity"] == pytest.approx(float(best))
    assert [len(one["test"]) for one in told["neurons"]] == [2, 2]
    assert len(told["trials"]["validation"]) == 2
    assert tp.Predictivity.load(folder / "predictivity.safetensors").accuracy.shape[0] == 2


def test_mask_draws_the_curve(folder: Path, tmp_path: Path) -> None:
    words = ["skill", "mask", str(folder), "--fractions", "0", "0.5", "--ablation", "zero", "--random-trials", "2"]
    assert main([*words, "--layers", "1", "2", "--out", str(tmp_path), "--device", "cpu"]) == 0
    study, told = SkillStudy.open(folder, device="cpu"), json.loads((tmp_path / "perturbation.json").read_text())
    curve = tp.perturbation(
        study.model, study.task, study.scores, prompts=list(study.prompts.values()),
        fractions=(0, 0.5), ablation="zero", random_trials=2, layers=(1, 2),
    )  # fmt: skip
    assert told == json.loads(json.dumps(curve.as_dict()))


def test_prune_writes_a_smaller_model_that_loads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["skill", "prune", str(folder), "--keep", "0.1", "--layers", "2", "3", "--rounds", "0", "--device", "cpu"]
    words += ["--retune", "--retune-steps", "1"]
    assert main(words) == 0
    retuned = sorted((folder / "pruned" / "retuned").glob("*/prompt.safetensors"))
    assert [tp.Prompt.load(one.parent).record["settings"]["steps"] for one in retuned] == [1, 1]
    assert {"whole", "pruned", "retuned"} == {
        *json.loads((folder / "pruned" / "skill-pruning.json").read_text())["accuracy"]
    }
    pruned = tp.Circuit.load(folder / "pruned" / "circuit.json")
    width = tp.load("testbed").cfg.d_mlp
    assert len(pruned) == 2 * width + 2 * int(0.1 * width)
    assert tp.load(folder / "pruned" / "model", device="cpu").cfg.d_mlp == width
    assert main(words) == 2
    assert "holds a pruned model already" in capsys.readouterr().err


def test_bad_input_is_one_line(
    folder: Path, tuning: list[str], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (["skill", "probe", str(tmp_path)], "holds no prompts"),
        (["skill", "mask", str(tmp_path)], "holds no prompts"),
        (["skill", "look"], "no command of tlprune skill 'look'"),
        ([*tuning, "--label", "said", "--out", str(tmp_path / "a")], "error"),
        ([*tuning, "--data", str(tmp_path / "none.tsv"), "--out", str(tmp_path / "a")], "there is no file"),
        ([*tuning, "--words", "nervous", "John is", "--out", str(tmp_path / "a")], "token"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_what_has_changed_since_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: Any = json.loads((folder / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps({**told, "fingerprint": "0" * 16}))
    assert main(["skill", "probe", str(tmp_path), "--device", "cpu"]) == 2
    assert "Restore the data" in capsys.readouterr().err
    (tmp_path / "study.json").write_text(json.dumps(told))
    assert main(["skill", "probe", str(tmp_path), "--device", "cpu"]) == 2
    assert "no prompt that is tuned" in capsys.readouterr().err
    tp.Prompt.random(tp.load("testbed"), 3, seed=9).save(tmp_path / "prompts" / "seed-0")
    (tmp_path / "scores.safetensors").write_bytes((folder / "scores.safetensors").read_bytes())
    assert main(["skill", "mask", str(tmp_path), "--device", "cpu"]) == 2
    assert "The scores in" in capsys.readouterr().err
