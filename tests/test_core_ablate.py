"""``tlprune core ablate``: the library's figures of a study's subnetworks, in files and on paper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tlprune as tp
from tlprune.cli import main
from tlprune.studies.commands.study import Study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("core") / "study"
    words = ["core", "prune", "--model", "planted", "--task", "planted", "--out", str(out), "--task-seed", "3"]
    words += ["--sparsities", "0.5", "0.8", "--seeds", "1", "2", "--recipe", "short", "--steps", "4"]
    assert main(words) == 0
    return out


def act(folder: Path, *words: str) -> int:
    return main(["core", "ablate", str(folder), "--tasks", "planted", *words])


def test_a_subnetwork_one_unit_at_a_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert act(folder, "--sparsity", "0.8", "--seed", "2", "--figure", "kl", "--units", "a1.*") == 0
    printed = capsys.readouterr().out
    study = Study.open(folder)
    found = tp.one_at_a_time(
        study.model, study.subnetworks[0.8, 2], study.task, ablation=study.means, units="a1.*", figure="kl"
    )
    (name,) = found.domains
    data = json.loads((folder / "ablation-0.8-2.json").read_text())
    assert data["domains"] == {"planted": found[name].as_dict()}
    assert len(data["domains"]["planted"]["units"]) == 4
    assert data["kept"] == study.subnetworks[0.8, 2].names
    assert "wrote ablation-0.8-2.json and ablation-0.8-2.html" in printed
    assert f"more than noise are {len(found[name].significant)} of 4 changes" in printed
    assert "Change in kl by each unit alone" in (folder / "ablation-0.8-2.html").read_text()


def test_the_full_model_elsewhere(folder: Path, tmp_path: Path) -> None:
    assert act(folder, "--full", "--out", str(tmp_path / "new")) == 0
    data = json.loads((tmp_path / "new" / "ablation-full.json").read_text())
    assert len(data["kept"]) == data["total"] == len(data["domains"]["planted"]["units"])
    assert data["domains"]["planted"]["whole"] == 1
    worst = min(data["domains"]["planted"]["units"], key=lambda one: one["change"]["value"])
    assert worst["unit"] in tp.planted("induction").circuit.heads
    assert data["ablation"]["name"] == "mean"


def test_forced_units(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert act(folder, "--include", "a0.h2", "a1.h1", "--exclude", "m*") == 0
    assert "forced in a0.h2, a1.h1; out m0, m1" in capsys.readouterr().out
    data = json.loads((folder / "forcing.json").read_text())
    (low, high) = data["domains"]["planted"]
    assert [low["sparsity"], high["sparsity"]] == [0.5, 0.8]
    assert [one["seed"] for one in low["subnetworks"]] == [1, 2]
    assert {one["after"] for row in (low, high) for one in row["subnetworks"]} == {1.0}
    assert act(folder, "--include", "a0.h2", "--seed", "2") == 0
    (low, high) = json.loads((folder / "forcing.json").read_text())["domains"]["planted"]
    assert [one["seed"] for one in low["subnetworks"]] == [2]
    assert act(folder, "--full", "--exclude", "a0.h2") == 0
    ((whole,),) = json.loads((folder / "forcing.json").read_text())["domains"].values()
    assert whole["sparsity"] == 0
    assert whole["mean"]["before"] == 1 > whole["mean"]["after"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "One at a time go the units of one subnetwork but there are 50%, seed 1; 50%, seed 2; 80%, seed 1"),
        (["--sparsity", "0.8"], "but there are 80%, seed 1; 80%, seed 2"),
        (["--sparsity", "0.7", "--seed", "1"], "of sparsity 0.5, 0.8 but 0.7 was asked for"),
        (["--sparsity", "0.8", "--seed", "7"], "There are subnetworks 80%, seed 1; 80%, seed 2"),
        (["--full", "--seed", "1"], "The full model has no sparsity and no seed"),
        (["--full", "--include", "a7.h0"], "'a7.h0' is not one of these"),
        (["--full", "--test-count", "7"], "takes no test_count"),
    ],
)
def test_bad_settings_get_one_error(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert act(folder, *words) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert act(tmp_path) == 2
    assert "holds no study" in capsys.readouterr().err
