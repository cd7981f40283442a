"""Subnetworks over sparsities and seeds: exact sizes, what they share, and studies that go on where they stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tlprune as tp
from tlprune.cli import main
from tlprune.learning.training import Training
from tlprune.masking.means import MeasuredMean
from tlprune.studies.collection import Run, Subnetworks, path_of
from tlprune.studies.searching import MEANS

PRUNING = tp.HeuristicCore(recipe="short", steps=8, batch_size=16, samples=2)
SPARSITIES, SEEDS = (0.5, 0.75), (1, 2)


@pytest.fixture(scope="module")
def planted() -> Any:
    return tp.planted("induction")


def search(planted: Any, out: Path | None = None, **options: Any) -> Subnetworks:
    settings = {"sparsities": SPARSITIES, "seeds": SEEDS, **options}
    return tp.subnetworks(planted.model, planted.task, PRUNING, out=out, **settings)


def test_every_search_keeps_the_exact_number(planted: Any) -> None:
    found = search(planted)
    total = len(found.sites)
    assert {run: len(circuit) for run, circuit in found.items()} == {
        Run(sparsity, seed): round((1 - sparsity) * total) for sparsity in SPARSITIES for seed in SEEDS
    }


def test_what_subnetworks_share() -> None:
    sites = tp.heads(tp.planted("copy").model)
    names = [sites.name(index) for index in range(4)]
    kept = {(0.5, 0): [0, 1], (0.5, 1): [1, 2], (0.75, 0): [1], (0.75, 1): [3]}
    found = Subnetworks({Run(*run): tp.Circuit.from_names(sites, [names[i] for i in own]) for run, own in kept.items()})
    assert found.counts(0.5)[:4].tolist() == [1, 2, 1, 0]
    assert found.counts()[:4].tolist() == [1, 3, 1, 1]
    assert found.core(0.5).names == [names[1]]
    assert found.core().names == []
    assert found.sparsities == (0.5, 0.75)
    assert list(found.at(0.75)) == [(0.75, 0), (0.75, 1)]
    with pytest.raises(ValueError, match=r"of sparsity 0.5, 0.75 but 0.25 was asked for"):
        found.at(0.25)


def test_a_study_gives_what_single_searches_give_and_is_read_again(planted: Any, tmp_path: Path) -> None:
    found = search(planted, tmp_path)
    method = dataclasses.replace(PRUNING, sparsity=0.75, seed=2)
    assert found[0.75, 2] == method.find(planted.model, planted.task)
    loaded = Subnetworks.load(tmp_path)
    assert dict(loaded) == dict(found)
    assert loaded[0.75, 2].provenance["method"]["seed"] == 2
    assert len(path_of(tmp_path, Run(0.75, 2)).with_suffix(".jsonl").read_text().splitlines()) == 8


def test_a_stopped_study_goes_on_where_it_was(planted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search(planted)
    step, taken = Training.step, []

    def counted(self: Training) -> Any:
        taken.append(self.done)
        return step(self)

    def dying(self: Training) -> Any:
        if len(taken) == 11:
            raise KeyboardInterrupt
        return counted(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            search(planted, tmp_path)
    assert path_of(tmp_path, Run(0.5, 1)).exists()
    assert not path_of(tmp_path, Run(0.5, 2)).exists()
    taken.clear()
    monkeypatch.setattr(Training, "step", counted)
    assert dict(search(planted, tmp_path)) == dict(whole)
    assert len(taken) == 3 * 8, "the finished search was not done again"
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_a_folder_of_other_settings_is_refused(planted: Any, tmp_path: Path) -> None:
    search(planted, tmp_path)
    other = dataclasses.replace(PRUNING, steps=9)
    with pytest.raises(ValueError, match="is of another method"):
        tp.subnetworks(planted.model, planted.task, other, sparsities=(0.5,), seeds=(1,), out=tmp_path)
    with pytest.raises(ValueError, match="is of another ablation"):
        search(planted, tmp_path, ablation=tp.Zero())
    copy = tp.planted("induction", seed=1)
    with pytest.raises(ValueError, match="These means are of"):
        tp.subnetworks(copy.model, planted.task, PRUNING, sparsities=(0.5,), seeds=(1,), out=tmp_path)


def test_means_are_over_the_clean_training_prompts(planted: Any, tmp_path: Path) -> None:
    search(planted, tmp_path, seeds=(1,), sparsities=(0.5,))
    kept = tp.Mean(planted.task.discovery.train().clean).measure(planted.model)
    loaded = MeasuredMean.load(tmp_path / MEANS, reference=planted.task.discovery.train().clean)
    assert all(
        torch.equal(one, other) for one, other in zip(loaded.activations.tensors, kept.activations.tensors, strict=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsities": ()}, "Subnetworks need a method with a sparsity, sparsities and seeds"),
        ({"seeds": ()}, "Subnetworks need a method with a sparsity, sparsities and seeds"),
        ({"sparsities": (50.0,)}, "For 50% removed give 0.5"),
    ],
)
def test_bad_settings_get_one_error(planted: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(planted, **options)


def test_sites_are_scored_once_for_all_sparsities(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each subnetwork is what its own search would have found, provenance included."""
    method, score, asked = tp.AtP(pattern="a*|m*"), tp.AtP.score, []

    def counted(self: Any, *rest: Any, **options: Any) -> Any:
        asked.append(self.sparsity)
        return score(self, *rest, **options)

    monkeypatch.setattr(tp.AtP, "score", counted)
    found = tp.subnetworks(planted.model, planted.task, method, sparsities=(0.5, 0.75), ablation=tp.Zero())
    assert asked == [0.5]
    for (sparsity, _), circuit in found.items():
        alone = dataclasses.replace(method, sparsity=sparsity).find(planted.model, planted.task, ablation=tp.Zero())
        assert circuit == alone
        assert circuit.provenance == alone.provenance


def test_a_method_without_a_seed_gives_one_for_each_sparsity(planted: Any) -> None:
    found = tp.subnetworks(planted.model, planted.task, tp.AtP(nodes=3), sparsities=(0.5, 0.75), seeds=(1, 2))
    assert list(found) == [(0.5, None), (0.75, None)]
    assert [len(circuit) for circuit in found.values()] == [
        round(0.5 * len(found.sites)),
        round(0.25 * len(found.sites)),
    ]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["core", "prune", "--model", "planted", "--task", "planted", "--out", str(tmp_path / "study")]
    words += ["--sparsities", "0.8", "--seeds", "1", "2", "--recipe", "short", "--steps", "4"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "80% removed, 2 subnetworks" in printed
    told = json.loads((tmp_path / "study" / "study.json").read_text())
    assert told["task"] == "planted"
    assert (told["method"]["name"], told["method"]["steps"]) == ("heuristic-core", 4)
    assert not {"sparsity", "nodes", "seed"} & {*told["method"]}
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "--task-seed", "5"]) == 2
    assert "holds a study with another task_options" in capsys.readouterr().err
    assert main(["core", "prunes"]) == 2
    assert "prune" in capsys.readouterr().err
