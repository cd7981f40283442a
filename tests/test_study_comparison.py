"""Methods at equal sparsity: figures are those of an evaluation, differences are paired, and commands end to end."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import encoder_of
from hooked import NEEDS_HOOKED_TRANSFORMER
from quizzes import subnetworks_of, task_of

import tlprune as tp
from tlprune.cli import main
from tlprune.learning.bootstrap import interval
from tlprune.studies.collection import Run, Subnetworks
from tlprune.studies.comparison import Seeds

METHODS = {
    "random": tp.RandomNodes(),
    "magnitude": tp.WeightMagnitude(),
    "hisp": tp.HISP(pattern="a*|m*", objective=tp.CrossEntropy()),
    "atp": tp.AtP(pattern="a*|m*", objective=tp.CrossEntropy()),
}


def model_of() -> Any:
    return encoder_of("bert classes", torch.float32)


def networks_of(model: Any, **options: Any) -> Subnetworks:
    return subnetworks_of(model, **{"seeds": (0, 1, 2), **options})


def whole_of(model: Any, studies: Subnetworks) -> Subnetworks:
    """Everything kept, whatever the sparsity says."""
    return Subnetworks(
        {Run(s, None): tp.Circuit(studies.sites, torch.ones(len(studies.sites)).bool()) for s in studies.sparsities}
    )


# ---- baselines in studies


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("name", METHODS)
def test_every_baseline_gives_a_study_of_the_sizes_under_one_mean(name: str, tmp_path: Path) -> None:
    model, task, method = model_of(), task_of(), METHODS[name]
    found = tp.subnetworks(model, task, method, sparsities=(0.2, 0.6), seeds=(1, 2), out=tmp_path)
    seeds = (1, 2) if name == "random" else (None,)
    assert list(found) == [(sparsity, seed) for sparsity in (0.2, 0.6) for seed in seeds]
    assert [len(found[run]) for run in found] == [{0.2: 12, 0.6: 6}[run.sparsity] for run in found]
    mean = tp.Mean(task.discovery.train().clean)
    assert all(one.provenance["ablation"] == mean.as_dict() for one in found.values())
    single = dataclasses.replace(method, sparsity=0.6).find(model, task, ablation=mean)
    assert name == "random" or found[0.6, None] == single
    assert dict(tp.subnetworks(model, task, method, sparsities=(0.2, 0.6), seeds=(1, 2), out=tmp_path)) == dict(found)
    other = tp.WeightMagnitude(norm="l2") if name == "random" else tp.RandomNodes()
    with pytest.raises(ValueError, match="is of another method"):
        tp.subnetworks(model, task, other, sparsities=(0.4,), seeds=(5,), out=tmp_path)
    assert not (tmp_path / "sparsity-0.4").exists()


# ---- figures


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("accepted", [False, True])
def test_figures_are_those_of_an_evaluation_over_seeds(accepted: bool) -> None:
    model, task = model_of(), task_of(accepted=accepted)
    first, second = networks_of(model), networks_of(model, seeds=(7, 8))
    found = tp.compare_studies({"first": first, "second": second}, model, {"quiz": task}, ablation=tp.Zero())
    assert [(row.sparsity, row.method, row.subnetworks) for row in found.rows] == [
        (0.25, "first", 3), (0.25, "second", 2), (0.5, "first", 3), (0.5, "second", 2),
    ]  # fmt: skip
    for row in found.rows:
        own = {"first": first, "second": second}[row.method].at(row.sparsity)
        tables = [tp.evaluate(model, circuit, task, ablation=tp.Zero()) for circuit in own.values()]
        means = [table["circuit"].means() for table in tables]
        assert found.full["quiz"] == pytest.approx(tables[0]["full model"].means()["accuracy"])
        for figure, name in ((row.accuracy, "accuracy"), (row.agreement, "agreement"), (row.kl, "kl")):
            values = [one[name] for one in means]
            assert figure is not None
            assert figure.mean == pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-6)
            assert (figure.low, figure.high) == pytest.approx((min(values), max(values)), rel=1e-4, abs=1e-6)


@NEEDS_HOOKED_TRANSFORMER
def test_differences_are_paired_by_example_and_of_means_over_seeds() -> None:
    model, task = model_of(), task_of(examples=40)
    studies = {
        "one": networks_of(model),
        "same": networks_of(model),
        "whole": whole_of(model, networks_of(model)),
    }
    found = tp.compare_studies(studies, model, {"quiz": task}, ablation=tp.Zero())
    at = found.at("quiz", 0.5)
    assert at["one"].better is None
    same, whole = at["same"].better, at["whole"].better
    assert same is not None and (same.value, same.low, same.high) == (0, 0, 0)
    predictions = tp.predict(model, studies["one"], task, ablation=tp.Zero())
    over_seeds = sum(predictions.correct((0.5, seed)).double() for seed in (0, 1, 2)) / 3
    expected = interval(lambda mean: mean, predictions.correct().double() - over_seeds)
    assert whole is not None and whole.as_dict() == pytest.approx(expected.as_dict(), abs=1e-12)
    assert whole.low < whole.value < whole.high
    assert at["whole"].accuracy == Seeds.of([found.full["quiz"]])
    assert at["whole"].agreement.mean == 1
    assert at["whole"].kl is not None and abs(at["whole"].kl.mean) < 1e-9


@NEEDS_HOOKED_TRANSFORMER
def test_only_common_sparsities_are_compared_on_every_task() -> None:
    model, tasks = model_of(), {"quiz0": task_of(), "quiz3": task_of(examples=17, seed=3)}
    studies = {
        "more": networks_of(model, sparsities=(0.25, 0.5, 0.75)),
        "fewer": networks_of(model, sparsities=(0.75, 0.25, 0.9)),
    }
    lines: list[str] = []
    found = tp.compare_studies(studies, model, tasks, ablation=tp.Zero(), tell=lines.append)
    assert [(row.task, row.sparsity) for row in found.rows][::2] == [
        ("quiz0", 0.25), ("quiz0", 0.75), ("quiz3", 0.25), ("quiz3", 0.75),
    ]  # fmt: skip
    assert found.examples == {name: len(task.test) for name, task in tasks.items()}
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["rows"][1]["better"]["value"] is not None
    assert "fewer: quiz3: 9 of 9: 90%, seed 2" in lines
    printed = str(found).splitlines()
    assert printed[0].endswith("less more (points)") and len(printed) == 1 + 2 * (1 + 2 * 2)


@NEEDS_HOOKED_TRANSFORMER
def test_the_chart_has_a_line_and_a_band_for_each_method_and_task() -> None:
    pytest.importorskip("plotly")
    model = model_of()
    studies = {"first": networks_of(model), "second": networks_of(model, seeds=(7,))}
    found = tp.compare_studies(studies, model, {"quiz0": task_of(), "quiz3": task_of(seed=3)}, ablation=tp.Zero())
    figure = found.plot()
    assert len(figure.data) == 2 * (2 * 2 + 1)
    band, line = figure.data[:2]
    low, high = [row.accuracy for row in found.rows if (row.task, row.method) == ("quiz0", "first")]
    assert list(line.x) == [25, 50] and list(line.y) == [100 * low.mean, 100 * high.mean]
    assert list(band.y) == [100 * end for end in (low.high, high.high, high.low, low.low)]
    assert list(figure.data[4].y) == [100 * found.full["quiz0"]] * 2


def test_tokens_have_no_kl_of_classes() -> None:
    planted = tp.planted("induction")
    sites = tp.heads(planted.model)
    true = tp.Circuit.from_names(sites, planted.circuit.heads)
    studies = {"true": Subnetworks({Run(0.75, None): true}), "none": Subnetworks({Run(0.75, None): true - true})}
    found = tp.compare_studies(studies, planted.model, {"own": planted.task}, ablation=tp.Resample())
    at = found.at("own", 0.75)
    assert at["true"].kl is None and at["true"].accuracy.mean == 1
    assert at["none"].better is not None and at["none"].better.high < 0


# ---- what cannot be compared


@NEEDS_HOOKED_TRANSFORMER
def test_what_cannot_be_compared_is_refused() -> None:
    model, task = model_of(), {"quiz": task_of()}
    one = networks_of(model)
    heads = tp.heads(model)
    other = Subnetworks({Run(0.25, 0): tp.Circuit(heads, torch.ones(len(heads)).bool())})
    dense = networks_of(model, sparsities=(0.1,))
    for studies, tasks, message in (
        ({"alone": one}, task, "needs two methods or more but got alone"),
        ({"one": one, "other": other}, task, "one has .* and other has"),
        ({"one": one, "dense": dense}, task, "have: one 0.25, 0.5; dense 0.1"),
        ({"one": one, "two": one}, {}, "needs at least one task but got none"),
    ):
        with pytest.raises(ValueError, match=message):
            tp.compare_studies(studies, model, tasks, ablation=tp.Zero())


# ---- commands


def prune(folder: Path, *words: str) -> int:
    known = ["core", "prune", "--model", "planted", "--task", "planted", "--sparsities", "0.8", "--seeds", "1", "2"]
    return main([*known, "--out", str(folder), *words])


def test_studies_by_command_and_their_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(tmp_path / "core", "--recipe", "short", "--steps", "40") == 0
    assert prune(tmp_path / "chance", "--method", "random-nodes") == 0
    assert prune(tmp_path / "weights", "--method=magnitude", "--norm", "l2") == 0
    told = json.loads((tmp_path / "weights" / "study.json").read_text())["method"]
    assert (told["name"], told["norm"], told["pattern"]) == ("magnitude", "l2", "a*|m*")
    assert [path.name for path in sorted((tmp_path / "chance" / "sparsity-0.8").glob("*.json"))] == [
        "seed-1.json",
        "seed-2.json",
    ]
    capsys.readouterr()
    folders = [str(tmp_path / name) for name in ("core", "chance", "weights")]
    assert main(["core", "compare", *folders]) == 0
    printed = capsys.readouterr().out
    assert "chance: planted" in printed and "wrote comparison.json" in printed
    rows = json.loads((tmp_path / "core" / "comparison.json").read_text())["rows"]
    assert [(row["method"], row["subnetworks"]) for row in rows] == [("core", 2), ("chance", 2), ("weights", 1)]
    assert rows[0]["accuracy"]["mean"] > rows[1]["accuracy"]["mean"]
    assert list((tmp_path / "chance" / "predictions").rglob("seed-2.safetensors"))


@pytest.mark.parametrize("method", ["hisp", "atp", "node-patching"])
def test_gradients_of_a_study_are_of_the_loss_of_the_labels_unless_another_is_named(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(tmp_path / "labels", "--method", method) == 0
    assert prune(tmp_path / "foils", "--method", method, "--objective", "logit-difference") == 0
    names = [
        json.loads((tmp_path / one / "study.json").read_text())["method"]["objective"]["name"]
        for one in ("labels", "foils")
    ]
    assert names == ["CrossEntropy", "LogitDifference"]
    capsys.readouterr()
    assert prune(tmp_path / "labels", "--method", method, "--objective", "logit-difference") == 2
    assert "holds a study with another method" in capsys.readouterr().err


def test_commands_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(tmp_path / "x", "--method", "eap") == 2
    assert "There is no method of heads and MLPs 'eap'; there are heuristic-core" in capsys.readouterr().err
    assert prune(tmp_path / "x", "--method", "random-nodes", "--steps", "4") == 2
    assert "--steps" in capsys.readouterr().err
    assert prune(tmp_path / "a", "--method", "random-nodes") == 0
    assert main(["core", "compare", str(tmp_path / "a")]) == 2
    assert "needs two studies or more" in capsys.readouterr().err
    assert prune(tmp_path / "b", "--method", "magnitude") == 0
    path = tmp_path / "b" / "study.json"
    path.write_text(path.read_text().replace('"model": "planted"', '"model": "testbed"'))
    capsys.readouterr()
    assert main(["core", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "their model differs: a planted, b testbed" in capsys.readouterr().err
    assert prune(tmp_path / "c", "--method", "magnitude", "--task-seed", "1") == 0
    capsys.readouterr()
    assert main(["core", "compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "their task_options differs: a {'seed': 0}, c {'seed': 1}" in capsys.readouterr().err


# ---- the tables of the benchmark


@pytest.fixture
def heuristic_core(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, which is no part of the package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("benchmarks.heuristic_core")


def test_the_benchmark_prunes_by_each_method_and_writes_tables(heuristic_core: Any, tmp_path: Path) -> None:
    words = ["--model", "planted", "--task", "planted", "--others", "--out", str(tmp_path), "--seeds", "1", "2"]
    heuristic_core.main([*words, "--sparsities", "0.8", "--steps", "30"])
    text = (tmp_path / "tables.md").read_text()
    assert "| planted | 64 | 100.0 | 100.0 [100.0, 100.0] |" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| planted | 80%")]
    assert [row[2:4] for row in rows] == [
        ["heuristic-core", "2"], ["random-nodes", "2"], ["magnitude", "1"], ["hisp", "1"],
    ]  # fmt: skip
    assert rows[2][-1] == "-100.0 [-100.0, -100.0] |"
    assert "80% removed: 2 kept by all of 2: a0.h2, a1.h1" in text
    heuristic_core.main([*words, "--sparsities", "0.8", "--study", str(tmp_path / "heuristic-core")])
    assert (tmp_path / "tables.md").read_text() == text


@NEEDS_HOOKED_TRANSFORMER
def test_rows_are_domains_and_columns_sparsities(heuristic_core: Any) -> None:
    model, task = model_of(), task_of(examples=30, kinds=("short", "long"))
    domains = tp.domains(model, networks_of(model), {"quiz": task}, ablation=tp.Zero())
    lines = heuristic_core.domain_table(domains.subcases("quiz"), (0.25,)).splitlines()[2:]
    rows = [line.strip("| ").split(" | ") for line in lines]
    assert [row[1] for row in rows] == ["15", "15"]
    found = tp.predict(model, networks_of(model), task, ablation=tp.Zero())
    for place, row in enumerate(rows):
        shares = [100 * float(found.correct((0.25, seed))[place::2].mean()) for seed in (0, 1, 2)]
        assert row[2] == f"{100 * float(found.correct()[place::2].mean()):.1f}"
        assert row[3] == f"{sum(shares) / 3:.1f} [{min(shares):.1f}, {max(shares):.1f}]"
