"""``tlprune knowledge`` on the model of the invented world: what is found, measured, written, and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tlprune as tp
from tlprune.cli import main
from tlprune.knowledge.finding import read_seeds

FIND = ["--target", "Eastfold", "--text-blocks", "2", "--text-batch", "1", "--control-batch", "8", "--device", "cpu"]
FIND += ["--layers", "3", "--matrices", "mlp.W_in", "--steps", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("found") / "world"
    assert main(["knowledge", "find", *FIND, "--seeds", "7", "5", "--out", str(found)]) == 0
    return found


def test_find_writes_circuits_that_say_where_they_are_from(folder: Path) -> None:
    found = read_seeds(folder)
    assert list(found) == [5, 7]
    told = found[5].provenance
    assert told["command"] == {"model": "world", "task": "world", "task_seed": 0}
    assert (told["method"]["seed"], told["method"]["steps"], told["method"]["matrices"]) == (5, 2, "mlp.W_in")
    assert told["task"]["options"]["group"] == "Eastfold"
    assert len((folder / "seed-7.jsonl").read_text().splitlines()) == 2
    assert tp.method_from(found[7].provenance).seed == 7


def test_find_takes_the_wordings(tmp_path: Path) -> None:
    assert main(["knowledge", "find", *FIND, "--wordings", "all", "--seeds", "5", "--out", str(tmp_path)]) == 0
    assert read_seeds(tmp_path)[5].provenance["task"]["options"]["wordings"] == "all"


def test_the_world_asks_who_lives_in_the_erased_region(folder: Path, tmp_path: Path) -> None:
    words = [
        "knowledge",
        "finetune",
        str(folder / "seed-5.safetensors"),
        "--questions",
        "world",
        "--ways",
        "likelihood",
    ]
    assert main([*words, "--seeds", "0", "--dev-count", "20", "--device", "cpu", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "downstream.json").read_text())
    assert found["questions"] == 40


def test_find_goes_on_with_the_same_settings_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "seed-5.safetensors").stat().st_mtime_ns
    assert main(["knowledge", "find", *FIND, "--seeds", "5", "--out", str(folder)]) == 0
    assert (folder / "seed-5.safetensors").stat().st_mtime_ns == before
    assert main(["knowledge", "find", *FIND, "--price", "9", "--seeds", "5", "--out", str(folder)]) == 2
    assert "another method" in capsys.readouterr().err


def test_evaluate_measures_seeds_baselines_and_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("plotly")
    words = ["knowledge", "evaluate", str(folder), "--baselines", "random", "--scales", "0.5", "2", "--device", "cpu"]
    assert main(words) == 0
    told = capsys.readouterr().out
    for word in (
        "without seed 5",
        "without random like seed 7",
        "without floral",
        "mean IoU",
        "x 0.5",
        "text, held out",
    ):
        assert word in told
    data: Any = json.loads((folder / "evaluation.json").read_text())
    circuits, found = data["figures"]["circuits"], read_seeds(folder)
    assert circuits["seed 5"]["kept"] == circuits["random like seed 5"]["kept"] == len(found[5])
    assert circuits["intersection"]["kept"] == int((found[5].kept & found[7].kept).sum())
    model = tp.load("world", device="cpu")
    task = tp.tasks.world(model, target="Eastfold", text_blocks=2)
    own = tp.knowledge_figures(model, found[5], task, kinds=["remaining"])
    (row,) = (
        row for row in data["figures"]["rows"]
        if (row["circuit"], row["stream"], row["split"], row["template"]) == ("seed 5", "main", "test", None)
    )  # fmt: skip
    assert row["ratio"]["value"] == own.at().ratio.value
    assert (row["units"], row["answers"]) == (20, 40)
    assert data["sensitivity"]["scales"] == {"x 0.5": 0.5, "x 2": 2.0}
    assert data["seeds"]["sizes"] == {"5": len(found[5]), "7": len(found[7])}
    assert (folder / "evaluation.html").read_text().count("Plotly.newPlot") == 3


def test_tradeoff_finds_one_for_each_price(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["knowledge", "tradeoff", str(folder), "--prices", "9", "0.5", "--out", str(tmp_path), "--device", "cpu"]
    assert main(words) == 0
    assert "price 0.5: Circuit" in capsys.readouterr().out
    found = [tp.Circuit.load(path) for path in sorted((folder / "prices" / "seed-5").glob("*.safetensors"))]
    assert [one.provenance["method"]["price"] for one in found] == [0.5, 9.0]
    assert {one.provenance["method"]["seed"] for one in found} == {5}
    assert list(json.loads((tmp_path / "tradeoff.json").read_text())["prices"].values()) == [0.5, 9.0]


def test_bad_input_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in {
        ("evaluate", str(tmp_path)): "holds no subnetworks",
        ("evaluate", str(folder), "--baselines", "large"): "kind must be one of random, rows, magnitude but is 'large'",
        ("find", "--task", "ioi", "--target", "x", "--out", str(tmp_path / "a")): "takes no target",
        ("find", "--target", "Nowhere", "--out", str(tmp_path / "a")): "no group of facts 'Nowhere'",
        ("look",): "no command of tlprune knowledge 'look'",
    }.items():
        assert main(["knowledge", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_a_task_that_has_changed_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads((folder / "study.json").read_text())
    told["task_options"]["seed"] = 1
    (tmp_path / "study.json").write_text(json.dumps(told))
    (tmp_path / "seed-5.safetensors").write_bytes((folder / "seed-5.safetensors").read_bytes())
    assert main(["knowledge", "evaluate", str(tmp_path), "--device", "cpu"]) == 2
    assert "were found on examples" in capsys.readouterr().err


def test_structure_reads_what_find_wrote(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The subnetwork of a seed by its file, or by the folder where there is no other."""
    files = sorted(folder.glob("seed-*.safetensors"))
    assert len(files) > 1
    assert main(["knowledge", "structure", str(folder), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "one for each seed" in error
    assert all(str(file) in error for file in files)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / files[0].name).write_bytes(files[0].read_bytes())
    printed = []
    for given in (files[0], alone):
        assert main(["knowledge", "structure", str(given), "--out", str(tmp_path / "out")]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
