"""Checkpoints: a run that was killed ends as if it had not been, and what cannot be resumed or written is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import stopped_run
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stopped_run import DISCOVERY, STEPS, STREAMS, masked_model, run
from styles import fresh, random_batch

from tlprune.files import check_room
from tlprune.gates import HardConcrete, Sigmoid
from tlprune.learning.budgets import Lagrangian, Penalty
from tlprune.learning.fit import fit, steps
from tlprune.learning.objectives import KL
from tlprune.learning.optimiser import Optimiser
from tlprune.learning.records import Step
from tlprune.masking.ablation import Zero
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.sites import edges
from tlprune.methods.edge_pruning import EdgePruning
from tlprune.schedules import exponential, linear
from tlprune.task import Discovery


def process(folder: Path, deadly_step: int) -> int:
    command = [sys.executable, "-W", "ignore", stopped_run.__file__, str(folder), str(deadly_step)]
    root = str(Path(stopped_run.__file__).parents[1])
    return subprocess.run(command, check=False, cwd=root, env={**os.environ, "PYTHONPATH": root}).returncode


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_a_killed_process_goes_on_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Masks, moments, multipliers, best masks, random numbers and metrics, after SIGKILL in the middle of a step."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    run(whole, masked_model())
    assert process(killed, 27) == -signal.SIGKILL
    assert [line["step"] for line in metrics(killed)] == [*range(1, 27)]
    assert resumed_step(killed) == 20
    assert process(killed, 0) == 0
    assert metrics(killed) == metrics(whole)
    assert [line["step"] for line in metrics(whole)] == [*range(1, STEPS + 1)]
    first, second = (load_file(folder / "run.safetensors") for folder in (whole, killed))
    assert first.keys() == second.keys()
    assert {"log_alpha", "exp_avg.log_alpha", "exp_avg_sq.multipliers.0", "generator", "best.log_alpha"} <= first.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def resumed_step(folder: Path, name: str = "run.safetensors") -> int:
    """After how many steps the checkpoint of a folder was written."""
    with safe_open(folder / name, framework="pt") as file:
        return json.loads(file.metadata()["run"])["step"]


@pytest.mark.parametrize("stop", [3, 10, 19])
def test_steps_that_were_left_go_on_from_the_last_checkpoint(tmp_path: Path, stop: int) -> None:
    options: dict[str, Any] = {"steps": 24, "batch_size": 4, "checkpoint_every": 5}
    whole = masked_model()
    history = list(steps(whole, DISCOVERY, checkpoint=tmp_path / "whole", **options))
    left = steps(masked_model(), DISCOVERY, checkpoint=tmp_path / "left", **options)
    assert len(list(islice(left, stop))) == stop
    other = masked_model()
    rest = list(steps(other, DISCOVERY, checkpoint=tmp_path / "left", **options))
    # What follows a record, the checkpoint too, waits until the next one is asked for.
    begun = (stop - 1) // 5 * 5
    assert [step.step for step in rest] == [*range(begun + 1, 25)]
    assert torch.equal(whole.masks.log_alpha, other.masks.log_alpha)
    assert [step.sampled for step in rest] == [step.sampled for step in history[begun:]]
    assert rest[0].seconds > history[0].seconds / 2


def test_a_finished_run_gives_its_masks_back_without_a_step(tmp_path: Path) -> None:
    first, second = masked_model(), masked_model()
    run(tmp_path, first)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert run(tmp_path, second) == []
    assert torch.equal(first.masks.log_alpha, second.masks.log_alpha)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_an_annealed_gate_goes_on_at_its_temperature(tmp_path: Path) -> None:
    falling = Sigmoid(temperature=exponential(1, 0.1, steps=10))

    def annealed(path: Path) -> tuple[Masked, Iterator[Step]]:
        masked = masked_model()
        masked.masks.gate = falling
        return masked, steps(masked, DISCOVERY, steps=10, checkpoint=path, checkpoint_every=3)

    whole, records = annealed(tmp_path / "whole")
    assert len(list(records)) == 10
    assert len(list(islice(annealed(tmp_path / "left")[1], 7))) == 7
    other, rest = annealed(tmp_path / "left")
    assert other.masks.gate == falling.at(5)
    assert len(list(rest)) == 4
    assert torch.equal(other.masks.log_alpha, whole.masks.log_alpha)
    assert other.masks.gate == whole.masks.gate == falling.at(9)


def test_edge_pruning_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    model, discovery = fresh("lnpre", torch.float32), dataclasses.replace(DISCOVERY, streams={"main": STREAMS["main"]})
    method, path = EdgePruning(edges=20, steps=8), tmp_path / "run"
    found = method.find(model, discovery, checkpoint=path)
    assert resumed_step(tmp_path, "run") == 8
    assert method.find(model, discovery, checkpoint=path) == found == method.find(model, discovery)
    with pytest.raises(ValueError, match=r"\{'edges': 20\}, now \{'edges': 21\}"):
        EdgePruning(edges=21, steps=8).find(model, discovery, checkpoint=path)


# ---- refusals


def changed_main() -> Discovery:
    return Discovery(
        "random", {**STREAMS, "main": (random_batch(11, seed=9), STREAMS["main"][1])}, DISCOVERY.provenance
    )


CHANGES = {
    "seed": {"seed": 1},
    "steps": {"steps": STEPS + 1},
    "batch_size": {"batch_size": 5},
    "optimiser": {"optimiser": Optimiser(rate=0.2)},
    "objective": {"objective": KL(on="other")},
    "budget": {"budget": Lagrangian(linear(0, 0.51, steps=10))},
    "patience": {"patience": 2},
    "task": {"discovery": dataclasses.replace(DISCOVERY, provenance={"name": "random", "fingerprint": "other"})},
    "examples": {"discovery": changed_main()},
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_settings_are_refused_by_name(tmp_path: Path, name: str) -> None:
    run(tmp_path, masked_model(), steps=STEPS, metrics=None)
    before = (tmp_path / "run.safetensors").read_bytes()
    masked = masked_model()
    with pytest.raises(ValueError, match=rf"was written with another (\w+ \(.*)?{name} \("):
        run(tmp_path, masked, **CHANGES[name])
    assert (tmp_path / "run.safetensors").read_bytes() == before
    assert torch.equal(masked.masks.log_alpha, masked_model().masks.log_alpha)


def other_masks(name: str) -> Masked:
    model = fresh("lnpre", torch.float32)
    if name == "model":
        with torch.no_grad():
            model.blocks[0].mlp.W_out.mul_(2)
    sites = edges(model, embeddings="separate" if name == "sites" else "merged")
    return Masked(
        model, Masks(sites, HardConcrete(2.0 if name == "gate" else 1.0)), Zero() if name == "ablation" else None
    )


@pytest.mark.parametrize("name", ["model", "sites", "gate", "ablation"])
def test_another_model_or_mask_is_refused_by_name(tmp_path: Path, name: str) -> None:
    fit(masked_model(), DISCOVERY, steps=2, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match=rf"was written with another (\w+ \(.*)?{name} \("):
        fit(other_masks(name), DISCOVERY, steps=2, checkpoint=tmp_path / "run")


def test_what_is_not_a_whole_checkpoint_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "run"
    fit(masked_model(), DISCOVERY, steps=2, checkpoint=path)
    whole = path.read_bytes()
    for data, message in ((b"", "not a whole"), (b"{}" * 30, "not a whole"), (whole[:-9], "not a whole")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            fit(masked_model(), DISCOVERY, steps=2, checkpoint=path)
        assert path.read_bytes() == data
    save_file({"log_alpha": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="but not a checkpoint of version 2"):
        fit(masked_model(), DISCOVERY, steps=2, checkpoint=path)


class Untrained(KL):
    """An objective that must not be reached."""

    def __call__(self, *inputs: Any) -> Any:
        raise AssertionError("training began")


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file may have more bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def blocked(folder: Path) -> list[Path]:
    """Paths of files that nobody can write, whoever runs the test."""
    (folder / "file").write_text("")
    (folder / "folder" / "below").mkdir(parents=True)
    return [folder / "missing" / "run", folder / "file" / "run", folder / "folder"]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("kind", ["checkpoint", "metrics"])
def test_paths_that_cannot_be_written_are_found_before_training(tmp_path: Path, kind: str, which: int) -> None:
    with pytest.raises(ValueError, match=r"cannot be|not a whole checkpoint"):
        fit(masked_model(), DISCOVERY, Untrained(), steps=2, **{kind: blocked(tmp_path)[which]})
    assert list(tmp_path.rglob("*.part")) == []


def test_a_full_disk_is_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be: No space left on device"):
        fit(masked_model(), DISCOVERY, Untrained(), steps=2, metrics="/dev/full")
    with limited(2000), pytest.raises(ValueError, match="cannot be: File too large"):
        fit(masked_model(), DISCOVERY, Untrained(), steps=2, checkpoint=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("patience", [None, 3])
def test_room_for_all_that_a_checkpoint_will_hold_is_found_before_training(
    tmp_path: Path, patience: int | None
) -> None:
    """Moments, and the best masks, which the first one does not have yet."""
    path, options = tmp_path / "run", {"steps": 9, "validate_every": 3, "patience": patience}
    records = steps(masked_model(), DISCOVERY, None, Penalty(0.0), checkpoint=path, **options)
    sizes = [path.stat().st_size]
    assert len(list(records)) == 9
    sizes.append(path.stat().st_size)
    assert load_file(path).keys() >= {"exp_avg.log_alpha"} | ({"best.log_alpha"} if patience else set())
    # What differs is the numbers of examples in the order in which they were met.
    assert sizes[1] - sizes[0] <= 8 * 3 * len(STREAMS["main"][0]) + 64


def test_room_for_a_second_checkpoint_is_found_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the disk are two while one takes the other's place."""
    asked = []

    def full(handle: int, begin: int, size: int) -> None:
        asked.append(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ValueError, match=r"room for two of its size .* cannot be: No space left on device"):
        run(tmp_path, masked_model(), objective=Untrained())
    assert asked == [(tmp_path / "run.safetensors").stat().st_size]
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "written"])
def test_room_is_tried_whatever_the_system_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    if not asked:
        monkeypatch.delattr(os, "posix_fallocate")
    check_room(tmp_path, 3 << 20)
    with limited(2 << 20), pytest.raises(OSError, match="File too large"):
        check_room(tmp_path, 3 << 20)
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_stopped_before_its_first_step_begins_like_a_new_one(tmp_path: Path) -> None:
    records = steps(masked_model(), DISCOVERY, steps=6, checkpoint=tmp_path / "run")
    del records
    first, second = masked_model(), masked_model()
    fit(first, DISCOVERY, steps=6, checkpoint=tmp_path / "run")
    fit(second, DISCOVERY, steps=6)
    assert torch.equal(first.masks.log_alpha, second.masks.log_alpha)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path, masked = tmp_path / "run", masked_model()
    records = steps(masked, DISCOVERY, steps=9, checkpoint=path, checkpoint_every=3)
    for _ in range(4):
        next(records)
    before = path.read_bytes()
    with limited(len(before) // 2), pytest.raises(ValueError, match="What was there is as it was"):
        list(records)
    assert path.read_bytes() == before
    assert [step.step for step in steps(masked_model(), DISCOVERY, steps=9, checkpoint=path, checkpoint_every=3)] == [
        *range(4, 10)
    ]


@pytest.mark.parametrize("lines", [None, 0, 7])
def test_metrics_without_the_steps_done_are_refused(tmp_path: Path, lines: int | None) -> None:
    records = steps(masked_model(), DISCOVERY, steps=20, checkpoint=tmp_path / "run", checkpoint_every=10)
    for _ in range(11):
        next(records)
    path = tmp_path / "metrics.jsonl"
    if lines is not None:
        path.write_text("".join(json.dumps({"step": step + 1}) + "\n" for step in range(lines)))
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(ValueError, match=r"does not hold them|the file that it began"):
        fit(masked_model(), DISCOVERY, steps=20, checkpoint=tmp_path / "run", checkpoint_every=10, metrics=path)
    assert (path.read_bytes() if path.exists() else None) == before
