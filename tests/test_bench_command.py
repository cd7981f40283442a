"""``tlprune bench``: words in, a folder with rows, tables, plots and a report out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tlprune as tp
from tlprune.benchmarking.command import Plan, bench
from tlprune.benchmarking.presets import PRESETS
from tlprune.cli import main
from tlprune.methods import METHODS
from tlprune.tasks import TASKS
from tlprune.truths import TRUTHS

FILES = {
    "rows.jsonl",
    "rows.csv",
    "rows.parquet",
    "report.md",
    "plots.html",
    "plan.json",
    "run.yaml",
    "circuits",
    "examples",
}
WORDS = ["bench", "--model", "planted-copy", "--task", "planted", "--methods", "random", "eap", "--sizes", "true", "8"]


def test_a_comparison_leaves_everything_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compared"
    assert main([*WORDS, "--seeds", "0", "1", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == FILES
    said = capsys.readouterr().out
    assert "eap, ranked: 2 edges: KL 0" in said and "random, seed 1, ranked" in said
    report = (out / "report.md").read_text()
    assert "tlprune bench --model planted-copy" in report and "### Against the true circuit" in report
    rows = [row for line in (out / "rows.jsonl").read_text().splitlines() for row in json.loads(line)]
    (ranked,) = [row for row in rows if row["method"] == "eap" and row["size"] == "true"]
    assert (ranked["roc_auc_edges"], ranked["average_precision_edges"], ranked["recall"]) == (1, 1, 1)


def test_tables_of_several_ablations_stand_side_by_side(tmp_path: Path) -> None:
    assert main([*WORDS, "--ablations", "resample", "zero", "--out", str(tmp_path)]) == 0
    report = (tmp_path / "report.md").read_text()
    assert "resample ablation" in report and "zero ablation" in report


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "eapp"], "There is no method 'eapp'"),
        (["--sizes", "lots"], "a part such as '1%'"),
        (["--task", "planted", "plantedd"], "There is no task 'plantedd'"),
        (["--model", "plantde"], "There is no model 'plantde'"),
        (["--truth", "ioii"], "There is no truth 'ioii'"),
        (["--preset", "acdc-grid", "--task", "induction"], "has the tasks ioi, greater-than, docstring"),
    ],
)
def test_words_that_name_nothing_are_one_clear_error(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {"--model": "planted", "--task": "planted", "--methods": "random"}
    given = [word for flag, value in quick.items() if flag not in words for word in (flag, value)]
    assert main(["bench", *given, *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:HookedTransformer.from_pretrained is deprecated:DeprecationWarning")
def test_a_model_of_a_preset_that_cannot_be_had_is_not_run_and_the_report_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = bench(Plan(preset="acdc-grid", task=("docstring",), out=tmp_path))
    assert "docstring in attn-only-4l: not run:" in capsys.readouterr().out
    assert "## docstring in attn-only-4l: not run" in (out / "report.md").read_text()


def test_a_folder_of_other_prompts_is_refused(tmp_path: Path) -> None:
    plan = {"model": "planted-copy", "task": ("planted",), "methods": ("random",), "sizes": ("8",), "out": tmp_path}
    bench(Plan(**plan), tell=lambda _: None)
    with pytest.raises(ValueError, match="Choose another folder with --out"):
        bench(Plan(**plan, task_seed=1), tell=lambda _: None)


def test_the_truth_may_be_a_circuit_of_yours(tmp_path: Path) -> None:
    tp.planted("copy").circuit.save(tmp_path / "mine.json")
    plan = Plan(
        model="planted-copy",
        task=("planted",),
        methods=("eap",),
        sizes=("true",),
        truth=str(tmp_path / "mine.json"),
        out=tmp_path / "out",
    )
    assert "### Against the true circuit" in (bench(plan, tell=lambda _: None) / "report.md").read_text()


def test_a_preset_names_what_there_is() -> None:
    for preset in PRESETS.values():
        assert {task for _, task in preset.behaviours} <= {*TASKS} & {*TRUTHS}
        assert {method.partition(":")[0] for method in preset.methods} <= {*METHODS}
