"""run.yaml: the settings of a run, written beside its result, and read again to repeat it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

import tlprune as tp
from tlprune.benchmarking.command import Plan
from tlprune.cli import main
from tlprune.commands.configuration import NAME, built, read_settings, told_of, write_settings
from tlprune.commands.discover import Run, settings_for
from tlprune.commands.parsing import parsed
from tlprune.finetuning.plan import FineTune
from tlprune.methods import METHODS
from tlprune.studies.commands.sweep import SWEPT
from tlprune.studies.commands.sweep import settings_for as sweep_settings

PLANTED = ["discover", "--model", "planted-and", "--task", "planted"]
TRAINED = ["--edges", "5", "--steps", "6", "--seed", "3", "--keep-embeddings", "--recipe", "paper"]


def made_by(name: str, method: Any) -> Any:
    return settings_for(["--method", name])(Run("planted-and", "planted", name, task_seed=2), method)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    assert main([*PLANTED, *TRAINED, "--out", str(out)]) == 0
    return out


def test_a_run_is_repeated_from_its_file(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["discover", "--config", str(trained / NAME), "--out", str(again)]) == 0
    for name in ("circuit.json", "evaluation.json", "metrics.jsonl", NAME):
        first, second = ((folder / name).read_text() for folder in (trained, again))
        assert first.count("\n") == second.count("\n")
        assert first == second or name == "metrics.jsonl"  # seconds differ
    assert tp.Circuit.load(again / "circuit.json") == tp.Circuit.load(trained / "circuit.json")


def test_the_file_has_every_setting_and_the_versions_as_a_comment(trained: Path) -> None:
    text = (trained / NAME).read_text()
    assert text.startswith("# tlprune discover --config run.yaml repeats this run; it was made by tlprune ")
    assert "torch" in text.splitlines()[0] and "python" in text.splitlines()[0]
    told = yaml.safe_load(text)
    assert told["command"] == "discover"
    assert {*told} == {
        "command",
        "model",
        "task",
        "method",
        "task_seed",
        "device",
        "ablation",
        "micro_batch",
        "settings",
    }
    assert told["ablation"] == "resample", "what the method chose"
    assert {*told["settings"]} == {field.name for field in dataclasses.fields(tp.EdgePruning)}
    assert (told["settings"]["edges"], told["settings"]["keep_embeddings"]) == (5, True)


def test_flags_go_before_the_file(trained: Path, tmp_path: Path) -> None:
    words = ["discover", "--config", str(trained / NAME), "--out", str(tmp_path / "run")]
    assert main([*words, "--edges", "4", "--no-keep-embeddings"]) == 0
    told = yaml.safe_load((tmp_path / "run" / NAME).read_text())["settings"]
    assert (told["edges"], told["keep_embeddings"]) == (4, False)
    assert (told["steps"], told["seed"], told["recipe"]) == (6, 3, "paper")
    assert len(tp.Circuit.load(tmp_path / "run" / "circuit.json")) == 4


def test_another_method_begins_with_settings_of_its_own(trained: Path, tmp_path: Path) -> None:
    words = ["discover", "--config", str(trained / NAME), "--out", str(tmp_path / "run")]
    assert main([*words, "--method", "eap", "--edges", "7"]) == 0
    told = yaml.safe_load((tmp_path / "run" / NAME).read_text())
    assert (told["model"], told["method"], told["settings"]["edges"]) == ("planted-and", "eap", 7)
    assert "steps" not in told["settings"]


def test_sizes_and_spans_that_the_task_gave_are_written(tmp_path: Path) -> None:
    assert main(["discover", "--task", "reverse", "--method", "eap", "--out", str(tmp_path / "reverse")]) == 0
    told = yaml.safe_load((tmp_path / "reverse" / NAME).read_text())
    assert (told["model"], told["ablation"], told["settings"]["edges"]) == ("tracr-reverse", "zero", 10)
    words = [*PLANTED, "--method", "eap", "--edges", "12", "--spans"]
    assert main([*words, "--out", str(tmp_path / "spans")]) == 0
    assert yaml.safe_load((tmp_path / "spans" / NAME).read_text())["settings"]["spans"] == ["x", "y", "end"]
    assert main(["discover", "--config", str(tmp_path / "spans" / NAME), "--out", str(tmp_path / "again")]) == 0
    first, again = (tp.Circuit.load(tmp_path / folder / "circuit.json") for folder in ("spans", "again"))
    assert first == again


OTHERS = {
    "warm start": ("edge-pruning", tp.EdgePruning(edges=5, warm_start=tp.EAPIG(steps=3), objective=tp.KL(on="main"))),
    "sum": ("acdc", tp.ACDC(objective=0.5 * tp.KL() + tp.LogitDifference())),
    "selection": ("eap", tp.EAP(edges=5, selection=tp.TopConnected())),
    "ensemble": ("ensemble", tp.Ensemble(methods=(tp.EAP(), tp.Random(seed=3)), edges=5)),
    "criterion": ("saliency", tp.Saliency(criterion=tp.SmoothGrad(), density=0.25)),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, kind()) for name, kind in METHODS.items()), *OTHERS.values()],
    ids=[*METHODS, *OTHERS],
)
def test_every_method_is_the_same_behind_its_file(name: str, method: Any, tmp_path: Path) -> None:
    settings = made_by(name, method)
    write_settings(tmp_path, "discover", settings)
    told = read_settings(tmp_path / NAME, "discover")
    again = built(settings_for(["--method", name]), told, tmp_path / NAME)
    assert (again.run, again.settings) == (settings.run, settings.settings)
    typed, _ = parsed("discover", settings_for, ["--config", str(tmp_path / NAME), "--task-seed", "5"])
    assert typed.settings == settings.settings
    assert typed.run == dataclasses.replace(settings.run, task_seed=5)


@pytest.mark.parametrize("name", SWEPT)
def test_settings_of_a_sweep_come_back(name: str, tmp_path: Path) -> None:
    settings, _ = parsed("sweep", sweep_settings, ["--method", name, "--targets", "0.5", "0.9", "--seeds", "1"])
    write_settings(tmp_path, "sweep", settings)
    again, _ = parsed("sweep", sweep_settings, ["--config", str(tmp_path / NAME)])
    assert told_of(again) == told_of(settings)
    assert (again.what.targets, again.what.seeds) == ((0.5, 0.9), (1,))


def test_settings_without_a_default_may_come_from_the_file_or_from_a_flag(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text("task: sst2\nrate: 1e-3\nepochs: 2\ndata_dir: data\nbetas: [0.8, 0.9]\nseed: 4\n")
    plan, common = parsed("finetune", FineTune, ["--config", str(path), "--model", "bert", "--out", "runs/x"])
    assert (plan.model, plan.out, plan.rate, plan.betas) == ("bert", Path("runs/x"), 1e-3, (0.8, 0.9))
    assert (plan.data_dir, common.config) == (Path("data"), path)
    with pytest.raises(ValueError, match="--model"):
        parsed("finetune", FineTune, ["--config", str(path), "--out", "runs/x"])


WRONG = {
    "unknown": ("modle: testbed", "no setting in .*run.yaml 'modle'.*Did you mean model"),
    "unknown setting of the method": ("settings: {stepss: 3}", "under settings 'stepss'.*Did you mean steps"),
    "setting of another method": ("method: eap\nsettings: {steps: 3}", "under settings 'steps'"),
    "a word for a number": ("settings: {steps: many}", "settings.steps in .* must be a whole number or null but is"),
    "a part for a number": ("task_seed: 1.5", "task_seed in .* must be a whole number but is 1.5"),
    "true for a number": ("task_seed: true", "must be a whole number but is True"),
    "a number for a word": ("task: 3", "task in .* must be a word but is 3"),
    "a list for a word": ("task: [ioi]", "task in .* must be a word"),
    "none of the choices": ("ablation: mean", "ablation in .* must be resample or zero or null but is 'mean'"),
    "unknown method": ("method: eapp", "no method 'eapp'.*Did you mean eap"),
    "unknown part": ("settings: {warm_start: {name: eapp}}", "no part in .* for settings.warm_start 'eapp'"),
    "part without a name": ("settings: {warm_start: {edges: 3}}", "settings.warm_start in .* needs a name"),
    "settings that are a list": ("settings: [3]", "needs settings by name under settings"),
    "not allowed by the method": ("settings: {sparsity: 2.0}", "Sparsity must lie between 0 and 1"),
    "another command": ("command: sweep", "is of another command than tlprune discover"),
    "a list": ("- task", "needs settings by name"),
    "nothing": ("", "needs settings by name"),
    "numbers for names": ("1: 2", "needs settings by name"),
    "not YAML": ("task: [", "is not YAML"),
    "an object": ("task: !!python/object/apply:os.getcwd []", "is not YAML.*could not determine a constructor"),
    "too deep": ("task: " + "[" * 100_000, "is not YAML"),
    "too large": (f"task: {'i' * 1_100_000}", "needs settings by name"),
    "bytes": ("task: \0", "is not YAML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_clear_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    text, message = WRONG[case]
    (tmp_path / NAME).write_text(text)
    assert main(["discover", "--config", str(tmp_path / NAME), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said
    assert len(said) < 2_000
    assert not (tmp_path / "run").exists()


def test_a_missing_file_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "Cannot read the settings" in capsys.readouterr().err


def test_a_plan_comes_back(tmp_path: Path) -> None:
    plan = Plan("planted", ("planted",), ("random",), ("true", "8"), (0, 1), ("zero",), task_seed=3)
    write_settings(tmp_path, "bench", plan)
    assert parsed("bench", Plan, ["--config", str(tmp_path / NAME)])[0] == plan


def test_the_file_in_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    (tmp_path / NAME).write_text(text.partition("```yaml\n")[2].partition("```")[0])
    found, _ = parsed("discover", settings_for, ["--config", str(tmp_path / NAME)])
    assert found.run == Run("testbed", "ioi", "eap", ablation="resample")
    assert found.settings == tp.EAP(sparsity=0.95, edges=40, selection=tp.Top(by="signed"))
