"""Several processes that share a run: what they find is what one finds, and they end together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import shared_run
import torch
from shared_run import PLANTED, RUNS, STEPS, assert_same, launch, resumed, run

import tlprune as tp
from tlprune.cli import main
from tlprune.run_folder import FILES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes did everything, after one had begun what they go on with."""
    folder = tmp_path_factory.mktemp("shared")
    resumed(folder / "by_one", 5)
    for process in launch(["-W", "error", shared_run.__file__, str(folder)]):
        assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_find_what_one_finds(name: str, found: list[dict[str, Any]]) -> None:
    alone = run(name)
    assert_same(found[0][name], alone)
    assert math.isfinite(alone[1][-1]["expected_kept"])


def test_two_processes_find_what_one_finds_in_pieces(found: list[dict[str, Any]]) -> None:
    assert_same(found[0]["in pieces"], run("several terms and samples"))


def test_both_processes_hold_the_same_bits(found: list[dict[str, Any]]) -> None:
    first, second = found
    for name in [*RUNS, "in pieces", "files", "by one", "whole", "half", "rest", "for one"]:
        assert first[name][1] == second[name][1], name
        assert all(torch.equal(value, second[name][0][key]) for key, value in first[name][0].items()), name


def test_the_first_process_writes_each_record_once(folder: Path, found: list[dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    assert [line["kl_sampled"] for line in lines] == [record["kl_sampled"] for record in found[0]["files"][1]]


# ---- going on


def test_two_processes_go_on_with_the_same_bits(found: list[dict[str, Any]]) -> None:
    whole, half, rest = (found[0][name] for name in ("whole", "half", "rest"))
    assert [record["step"] for record in rest[1]] == [*range(5, STEPS + 1)]
    assert half[1][:4] + rest[1] == whole[1]
    assert torch.equal(rest[0]["log_alpha"], whole[0]["log_alpha"])


def test_two_go_on_with_what_one_began_and_one_with_what_two_began(
    folder: Path, found: list[dict[str, Any]], tmp_path: Path
) -> None:
    whole = resumed(tmp_path / "run", STEPS)
    parameters, records = found[0]["by one"]
    assert [record["step"] for record in records] == [*range(5, STEPS + 1)]
    assert_same((parameters, records), (whole[0], whole[1][4:]))
    parameters, records = resumed(folder / "for_one", STEPS)
    assert [record["step"] for record in records] == [*range(5, STEPS + 1)]
    assert_same((parameters, records), (whole[0], whole[1][4:]))


# ---- ending together


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("seed", "process 1 has another seed (0, now 1) than process 0"),
        ("micro_batch", "process 1 has another micro_batch (1, now 2) than process 0"),
        ("finite", "step 1 gave a loss of nan"),
        ("checkpoint", "cannot be: No such file or directory"),
        ("metrics", "cannot be: No such file or directory"),
        ("other run", "was written with another"),
    ],
)
def test_what_is_wrong_in_one_process_ends_all_alike(name: str, message: str, found: list[dict[str, Any]]) -> None:
    first, second = (one["refusals"] for one in found)
    assert message in first[name]
    assert first[name] == second[name]


# ---- commands


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[tuple[int, str, str]]]]:
    folder = tmp_path_factory.mktemp("commands")
    for process in launch(["-W", "error", shared_run.__file__, str(folder), "commands"]):
        assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_discover_in_two_processes_finds_what_it_finds_in_one(commands: Any, tmp_path: Path) -> None:
    folder, ((first, *_), (second, *_)) = commands
    assert main([*PLANTED, "--out", str(tmp_path / "alone")]) == 0
    circuits = [tp.Circuit.load(path / "circuit.json") for path in (folder / "run", tmp_path / "alone")]
    assert circuits[0] == circuits[1]
    assert sorted(path.name for path in (folder / "run").iterdir()) == sorted([*FILES, "run.yaml"])
    records = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (folder / "run", tmp_path / "alone")
    ]
    assert [one["step"] for one in records[0]] == [*range(1, 11)]
    for one, other in zip(*records, strict=True):
        assert one["kl_sampled"] == pytest.approx(other["kl_sampled"], rel=1e-3, abs=1e-5)
    assert first[0] == 0
    assert "load it again" in first[1]
    assert second == (0, "", "")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (1, "already holds a run"),
        (2, "process 1 has another seed (0, now 1)"),
        (3, "eap trains none and 2 were started"),
        (4, "tlprune evaluate runs in one process but 2 were started"),
    ],
)
def test_commands_that_cannot_be_shared_end_with_one_message(commands: Any, place: int, message: str) -> None:
    ends = [process[place] for process in commands[1]]
    assert [status for status, _, _ in ends] == [2, 2]
    assert [printed for _, printed, _ in ends] == ["", ""]
    complaints = [line for _, _, said in ends for line in said.splitlines()]
    assert len(complaints) == 1
    assert message in complaints[0]


def test_a_launcher_starts_the_package_itself() -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tlprune", "bench"]
    (found,) = launch(command, count=1)
    assert found.returncode != 0
    assert found.stderr.count("tlprune: error: tlprune bench runs in one process but 2 were started") == 1
