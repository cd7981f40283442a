"""Runs of training whose result must not depend on how examples are laid out over processes and in pieces.

``python shared_run.py FOLDER`` with a launcher's environment variables: do all of them, and what is refused, and write
what this process got to ``FOLDER/RANK.pt``. With ``commands`` behind it: some commands of tlprune.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import fresh, random_batch
from torch import Tensor

from tlprune import cli
from tlprune.gates import HardConcrete, StraightThrough
from tlprune.learning.budgets import Lagrangian, Penalty
from tlprune.learning.fit import fit, steps
from tlprune.learning.objectives import KL, CrossEntropy, Uniform
from tlprune.learning.optimiser import Optimiser
from tlprune.learning.records import Step
from tlprune.masking.constants import Constant
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.means import Mean
from tlprune.masking.sites import edges, weights
from tlprune.processes import part, processes
from tlprune.schedules import linear
from tlprune.task import Batch, Discovery, Tokens

STEPS = 8
Found = tuple[dict[str, Tensor], list[dict[str, Any]]]


def ragged(batch: Batch) -> Batch:
    """Prompts of different lengths with one or two answers; every third has two."""
    rows, length = torch.arange(len(batch)), batch.clean.ids.shape[1]
    ends = length - 1 - rows % 3
    mask = (torch.arange(length)[None] <= ends[:, None]).long()
    answers = torch.cat([batch.answers, torch.where(rows[:, None] % 3 == 0, batch.foils, -100)], 1)
    clean, corrupt = (Tokens(one.ids, mask) for one in (batch.clean, batch.corrupt))
    positions = torch.stack([ends, ends - 1], 1)
    return replace(batch, clean=clean, corrupt=corrupt, positions=positions, answers=answers, foils=answers)


STREAMS = {
    "main": (ragged(random_batch(11, seed=1)), ragged(random_batch(9, seed=2))),
    "other": (random_batch(7, length=5, seed=3), random_batch(3, length=5, seed=4)),
}
DISCOVERY = Discovery("random", STREAMS, {"name": "random", "fingerprint": "known"})


def masked_edges() -> Masked:
    model = fresh("lnpre")
    return Masked(model, Masks(edges(model), HardConcrete(initial=1.0)).double())


def masked_weights() -> Masked:
    model = fresh("lnpre")
    return Masked(model, Masks(weights(model, "blocks.1*.W_*"), StraightThrough()).double())


def constant_edges() -> Masked:
    model = fresh("lnpre")
    constant = Constant(model, Mean(STREAMS["main"][0].corrupt))
    return Masked(model, Masks(edges(model)).double(), constant)


TERMS: dict[str, Any] = {
    "objective": Uniform(on="other", run="complement") + 1.5 * KL() + 0.5 * CrossEntropy(),
    "budget": Lagrangian(linear(0, 0.05, steps=3), "sampled") + Penalty(linear(0.1, 0.2, steps=10)),
    "optimiser": Optimiser(weight_decay=0.01, clip=1.0, samples=2),
    "validate_every": 2, "patience": 2, "batch_size": {"main": 5, "other": 7},
}  # fmt: skip
# By name: what is masked, and how it is trained.
RUNS: dict[str, tuple[Callable[[], Masked], dict[str, Any]]] = {
    "uneven batches": (masked_edges, {"batch_size": 5}),
    "empty shares": (masked_edges, {"batch_size": 1}),
    "several terms and samples": (masked_edges, TERMS),
    "weights": (masked_weights, {"batch_size": 5, "budget": Lagrangian(0.5)}),
    "learned constants": (constant_edges, {"batch_size": 5}),
}


def run(name: str, **changes: Any) -> Found:
    """What was trained, and the records without their times."""
    build, options = RUNS[name]
    masked = build()
    history = fit(masked, DISCOVERY, **{"steps": STEPS, "validate_every": 3, **options, **changes})
    return trained(masked), without_times(history)


def trained(masked: Masked) -> dict[str, Tensor]:
    learned = masked.ablation.named_parameters() if isinstance(masked.ablation, Constant) else ()
    assert isinstance(masked.masks, Masks)
    named = {"log_alpha": masked.masks.log_alpha, **dict(learned)}
    return {name: value.detach().clone() for name, value in named.items()}


def without_times(history: list[Step]) -> list[dict[str, Any]]:
    return [{name: value for name, value in step.as_dict().items() if name != "seconds"} for step in history]


def resumed(path: Path, count: int, **changes: Any) -> Found:
    """So many more steps of a run with a checkpoint after each."""
    masked = masked_edges()
    options = {**TERMS, "patience": None, "steps": STEPS, **changes}
    history = list(islice(steps(masked, DISCOVERY, checkpoint=path, checkpoint_every=1, **options), count))
    return trained(masked), without_times(history)


@dataclass(frozen=True, kw_only=True)
class Bursting(KL):
    """Not a number in the last process alone."""

    def __call__(self, logits: Tensor, batch: Any, reference: Tensor) -> Tensor:
        own = processes()
        return super().__call__(logits, batch, reference) * (torch.nan if own.rank == own.count - 1 else 1)


def assert_same(first: Found, second: Found, *, tolerance: float = 1e-10) -> None:
    """Trained tensors and records are equal up to rounding."""
    assert first[0].keys() == second[0].keys()
    for name, value in first[0].items():
        torch.testing.assert_close(value, second[0][name], rtol=tolerance, atol=tolerance)
    assert len(first[1]) == len(second[1]) > 0
    for one, other in zip(first[1], second[1], strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            same = None if value is None else pytest.approx(value, rel=tolerance, abs=tolerance)
            assert other[name] == same, name


def refusals(folder: Path, rank: int) -> dict[str, str]:
    """What each wrong run says in this process."""
    wrong: dict[str, Callable[[], object]] = {
        "seed": lambda: run("uneven batches", seed=rank),
        "micro_batch": lambda: run("uneven batches", micro_batch=rank + 1),
        "finite": lambda: run("uneven batches", objective=Bursting()),
        "checkpoint": lambda: run("uneven batches", checkpoint=folder / "missing" / "run"),
        "metrics": lambda: run("uneven batches", metrics=folder / "missing" / "run"),
        "other run": lambda: run("uneven batches", checkpoint=folder / "by_one"),
    }
    found = {}
    for name, action in wrong.items():
        try:
            action()
        except (ValueError, FloatingPointError) as error:
            found[name] = str(error)
    return found


def everything(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {name: run(name) for name in RUNS}
    found["in pieces"] = run("several terms and samples", micro_batch=2)
    found["files"] = run("uneven batches", metrics=folder / "metrics.jsonl", checkpoint=folder / "whole")
    found["by one"] = resumed(folder / "by_one", STEPS)
    found["whole"] = resumed(folder / "by_two_whole", STEPS)
    found["half"] = resumed(folder / "by_two", 5)
    found["rest"] = resumed(folder / "by_two", STEPS)
    found["for one"] = resumed(folder / "for_one", 5)
    return {**found, "refusals": refusals(folder, processes().rank)}


PLANTED = ["discover", "--model", "planted-and", "--task", "planted", "--edges", "5", "--steps", "10"]


def commands(folder: Path) -> list[tuple[int, str, str]]:
    """The exit status of each command in this process, and what it printed and complained of."""
    lines = [
        [*PLANTED, "--out", str(folder / "run"), "--micro-batch", "2"],
        [*PLANTED, "--out", str(folder / "run")],
        [*PLANTED, "--out", str(folder / "taken"), "--seed", str(processes().rank)],
        [*PLANTED, "--method", "eap", "--out", str(folder / "eap")],
        ["evaluate", str(folder / "run" / "circuit.json")],
    ]
    lines[3] = [word for word in lines[3] if word not in ("--steps", "10")]
    found = []
    for words in lines:
        with redirect_stdout(StringIO()) as printed, redirect_stderr(StringIO()) as complained:
            status = cli.main(words)
        found.append((status, printed.getvalue(), complained.getvalue()))
    return found


def launch(command: list[str], count: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """A command in several processes that know of each other, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).parents[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    shared |= {"PYTHONPATH": f"{root}:{Path(__file__).parent}", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        return [subprocess.CompletedProcess(command, one.wait(), *one.communicate(timeout=300)) for one in started]
    finally:
        for one in started:
            one.kill()


if __name__ == "__main__":
    torch.set_num_threads(1)
    do = commands if sys.argv[2:] else everything
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlprune.processes.part", lambda: None)  # until all commands are done
        torch.save(do(Path(sys.argv[1])), Path(sys.argv[1]) / f"{processes().rank}.pt")
    part()
