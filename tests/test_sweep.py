"""Sweeps over targets: cells that are found once, go on bit for bit, and hold to their settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import fresh, random_batch
from test_edge_pruning import task_of

from tlprune.circuit import Circuit
from tlprune.cli import main
from tlprune.evaluation import evaluate
from tlprune.learning.training import Training
from tlprune.masking.ablation import Resample, Zero
from tlprune.methods.alive import DeadCircuitError
from tlprune.methods.eap import EAP
from tlprune.methods.edge_pruning import EdgePruning
from tlprune.studies.collection import Run
from tlprune.studies.commands.sweep import settings_for
from tlprune.studies.sweeping import RECORDS, Sweep, sweep
from tlprune.task import Task

METHOD = EdgePruning(steps=4, batch_size=4)
PAPER = replace(METHOD, recipe="paper", size="reached")


def lent() -> tuple[Any, Task]:
    return fresh("attention_only", torch.float32), task_of(*(random_batch(4, seed=seed) for seed in (1, 2, 3)))


def swept(out: Path, method: Any = METHOD, targets: Any = (0.5, 0.9), seeds: Any = (0, 1), **options: Any) -> Sweep:
    return sweep(*lent(), method, targets=targets, seeds=seeds, out=out, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_each_cell_is_the_methods_own_circuit_measured_as_evaluate_does(tmp_path: Path) -> None:
    found, (model, task) = swept(tmp_path), lent()
    assert [(row["target"], row["seed"]) for row in found.rows] == [(0.5, 0), (0.5, 1), (0.9, 0), (0.9, 1)]
    for row in found.rows:
        own = replace(METHOD, sparsity=row["target"], seed=row["seed"]).find(model, task)
        folder = tmp_path / f"target-{row['target']}" / f"seed-{row['seed']}"
        assert Circuit.load(folder / "circuit.json") == own == found.circuits[Run(row["target"], row["seed"])]
        expected = evaluate(model, own, task).as_dict()
        assert json.loads((folder / "evaluation.json").read_text()) == expected
        figures = next(one for one in expected["rows"] if one["name"] == "circuit")
        assert (row["kept"], row["kl"]) == (len(own), figures["kl"])
        assert [row["kl_low"], row["kl_high"]] == figures["intervals"]["kl"]
        assert row["sparsity"] == 1 - len(own) / len(own.sites)
        assert all((folder / file).exists() for file in RECORDS.values())


def test_what_is_there_is_read_and_further_targets_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, steps = swept(tmp_path, targets=(0.5,), seeds=(0,)), []
    taken = Training.step
    monkeypatch.setattr(Training, "step", lambda self: steps.append(1) or taken(self))
    told: list[str] = []
    both = swept(tmp_path, seeds=(0,), tell=told.append)
    assert len(steps) == METHOD.steps
    assert both.rows[0] == first.rows[0]
    assert [line.partition(":")[0] for line in told] == ["1 of 2", "2 of 2"]


def test_a_sweep_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = replace(METHOD, recipe="paper", steps=60)  # checkpoints are written every fifty steps
    whole = swept(tmp_path / "whole", method, seeds=(0,))
    taken, left = Training.step, [60 + 55]

    def step(self: Training) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return taken(self)

    monkeypatch.setattr(Training, "step", step)
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "stopped", method, seeds=(0,))
    assert (tmp_path / "stopped/target-0.9/seed-0/checkpoint.safetensors").exists()
    assert not (tmp_path / "stopped/target-0.9/seed-0/circuit.json").exists()
    left[0] = 10  # no more than from the checkpoint to the end
    again = swept(tmp_path / "stopped", method, seeds=(0,))
    assert (left[0], again.rows) == (0, whole.rows)
    known, other = files_of(tmp_path / "whole"), files_of(tmp_path / "stopped")
    assert known.keys() == other.keys()
    for name in known:
        if name.endswith(("circuit.json", "evaluation.json")):
            assert known[name] == other[name], name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": replace(METHOD, steps=5)}, "another method"),
        ({"method": EAP()}, "another method"),
        ({"ablation": Zero()}, "another ablation"),
    ],
)
def test_another_setting_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    swept(tmp_path, targets=(0.5,), seeds=(0,))
    with pytest.raises(ValueError, match=words):
        swept(tmp_path, **{"targets": (0.5,), "seeds": (0,), **changes})


def test_another_task_or_model_is_refused(tmp_path: Path) -> None:
    model, task = lent()
    swept(tmp_path, EAP(), targets=(0.5,))
    other = task_of(*(random_batch(4, seed=seed) for seed in (4, 5, 6)))
    with pytest.raises(ValueError, match="another task"):
        sweep(model, other, EAP(), targets=[0.5], out=tmp_path)
    with pytest.raises(ValueError, match="another model"):
        sweep(fresh("no_norm", torch.float32), task, EAP(), targets=[0.5], out=tmp_path)


def test_a_target_that_no_cell_can_have_is_seen_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        swept(tmp_path / "new", targets=(0.5, 1.02))
    assert not (tmp_path / "new").exists()
    found = swept(tmp_path, PAPER, targets=(0.98, 1.02), seeds=(0,))
    assert [row["target"] for row in found.rows] == [0.98, 1.02]
    assert (tmp_path / "target-1.02/seed-0/circuit.json").exists()


def test_a_method_without_chance_has_one_cell_for_each_target(tmp_path: Path) -> None:
    found = swept(tmp_path, EAP())
    assert [(row["target"], row["seed"]) for row in found.rows] == [(0.5, None), (0.9, None)]
    assert (tmp_path / "target-0.9" / "circuit.json").exists()


def test_a_circuit_without_a_path_is_a_row_and_not_the_end_of_the_sweep(tmp_path: Path) -> None:
    total = len(EAP().score(*lent()).sites)
    size = next(size for size in range(1, total) if _is_dead(EAP(edges=size)))
    for _ in range(2):  # found, and read again
        found = swept(tmp_path, EAP(), targets=(0.1, 1 - size / total))
        assert [row["effective"] > 0 for row in found.rows] == [True, False]
        assert found.rows[1]["kept"] == size


def _is_dead(method: EAP) -> bool:
    try:
        method.find(*lent())
    except DeadCircuitError:
        return True
    return False


def test_the_ablation_of_the_sweep_is_that_of_search_and_evaluation(tmp_path: Path) -> None:
    (model, task), found = lent(), swept(tmp_path, EAP(), targets=(0.9,), ablation=Zero())
    circuit = EAP(sparsity=0.9).find(model, task, ablation=Zero())
    assert found.circuits[Run(0.9, None)] == circuit
    kl = {one: evaluate(model, circuit, task, ablation=one)["circuit"].means()["kl"] for one in (Zero(), Resample())}
    assert found.rows[0]["kl"] == kl[Zero()] != kl[Resample()]


def test_table_file_and_chart_have_a_line_and_a_point_for_each_cell(tmp_path: Path) -> None:
    found = swept(tmp_path)
    lines = str(found).splitlines()
    assert lines[0].split()[:4] == ["target", "seed", "kept", "effective"]
    assert [line.split()[:2] for line in lines[1:]] == [["0.5", "0"], ["0.5", "1"], ["0.9", "0"], ["0.9", "1"]]
    assert len(found.csv().splitlines()) == 5
    assert json.loads(json.dumps(found.as_dict()))["rows"] == [dict(row) for row in found.rows]
    pytest.importorskip("plotly")
    for figure in ("kl", "faithfulness"):
        traces = found.plot(figure).data
        assert [trace.name for trace in traces] == ["seed 0", "seed 1"]
        for seed, trace in enumerate(traces):
            own = sorted((row for row in found.rows if row["seed"] == seed), key=lambda row: row["effective"])
            assert list(trace.x) == [row["effective"] for row in own]
            assert list(trace.y) == [row[figure] for row in own]


def test_the_command_finds_measures_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--model", "planted-copy", "--task", "planted", "--method", "eap", "--out", str(tmp_path)]
    assert main([*words, "--targets", "0.9", "0.98"]) == 0
    found = capsys.readouterr()
    assert (tmp_path / "table.txt").read_text().strip() in found.out
    assert "2 of 2: 98%" in found.err
    assert {"sweep.json", "table.csv", "table.txt", "target-0.9", "target-0.98"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert main([*words, "--targets", "0.9", "--task-seed", "1"]) == 2
    assert "another task" in capsys.readouterr().err


def test_a_recipe_is_one_of_edge_pruning() -> None:
    with pytest.raises(ValueError, match="The recipes are Edge Pruning's"):
        settings_for(["--recipe-of", "ioi", "--method", "eap"])
    with pytest.raises(ValueError, match="There is no recipe"):
        settings_for(["--recipe-of", "none"])


def test_the_command_takes_a_recipe_with_its_ablation_and_targets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "--model", "planted-copy", "--task", "planted", "--recipe-of", "xproportion", "--steps", "2"]
    assert main([*words, "--warmup", "0", "--rise", "1", "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "sweep-settings.json").read_text())
    assert told["ablation"] == Zero().as_dict()
    assert (told["method"]["node_sparsity"], told["method"]["multiplier_rate"]) == (0.4, 1e-4)
    assert (tmp_path / "target-0.92" / "seed-0" / "circuit.json").exists()
