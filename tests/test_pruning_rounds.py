"""Lottery tickets and iterative pruning: the start comes back bit for bit, densities are exact, stopped plans go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned_classifiers import PRUNABLE, Size, zeros_where
from styles import refuses_choice
from test_finetuning import KilledError, bert_folder, data_folder, same, weights  # noqa: F401
from torch import Tensor

import tlprune as tp
from tlprune.finetuning import PruningPlan, falling, prune_and_finetune
from tlprune.finetuning.training import Training
from tlprune.selection.ranked import Top

STAGES = dict[str, dict[str, Tensor]]


@pytest.fixture
def ticket(bert_folder: Path, data_folder: Path, tmp_path: Path) -> PruningPlan:  # noqa: F811
    """A lottery ticket of a few steps; the trunk has no classifier yet."""
    return PruningPlan(
        model=str(bert_folder), out=tmp_path / "ticket", densities=(0.4,), dense_epochs=1, epochs=1, rate=3e-3,
        data_dir=data_folder, train_count=64, dev_count=60, checkpoint_every=2, device="cpu",
    )  # fmt: skip


@pytest.fixture
def begins(monkeypatch: pytest.MonkeyPatch) -> STAGES:
    """The weights that each training began with, by the name of its stage."""
    found: STAGES = {}
    step = Training.step

    def noted(self: Training) -> dict[str, Any]:
        if self.done == 0:
            found[self.plan.out.name] = {name: value.clone() for name, value in self.own.state_dict().items()}
        return step(self)

    monkeypatch.setattr(Training, "step", noted)
    return found


def removed_in(folder: Path, begin: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where a training began with 0 and the model before it had none."""
    return {name: (value == 0) & (before[name] != 0) for name, value in begin.items() if (value == 0).any()}


def count_of(where: dict[str, Tensor]) -> int:
    return sum(int(one.sum()) for one in where.values())


def test_a_lottery_ticket_begins_with_the_start_and_is_cut_by_the_trained_model(
    ticket: PruningPlan, begins: STAGES
) -> None:
    run = prune_and_finetune(ticket, Size())
    start, dense = weights(ticket.out / "start"), weights(ticket.out / "dense")
    assert same(begins["dense"], start) and not same(dense, start)
    circuit = run.circuits[0]
    scored = Size().score(tp.load(ticket.out / "dense", device="cpu"), None)
    expected = scored.top(round(0.4 * len(circuit.sites)))
    assert torch.equal(circuit.kept, expected.kept)
    removed = removed_in(run.model, begins["round-1"], dense)
    assert all(
        torch.equal(value, start[name].masked_fill(removed.get(name, torch.zeros_like(value, dtype=torch.bool)), 0))
        for name, value in begins["round-1"].items()
    )
    biases = {name for name, value in start.items() if name.endswith("bias") and not value.any()}
    assert biases, "new biases are 0 at the start, kept or not"
    dense_row, row = run.rows
    assert (dense_row["stage"], dense_row["density"], dense_row["removed"]) == ("dense", None, 0)
    assert row["removed"] == row["zero"] == len(circuit.sites) - round(0.4 * len(circuit.sites))
    assert {"dev_accuracy", "test_accuracy", "test_loss"} <= row.keys() and row["steps"] == 4
    assert circuit.provenance["operation"] == "rewound"


@pytest.mark.parametrize("begin", ["continued", "rewound"])
def test_rounds_keep_exact_shares_of_what_is_left(ticket: PruningPlan, begins: STAGES, begin: Any) -> None:
    """Also under scores that are highest where weights are gone."""
    plan = dataclasses.replace(ticket, densities=falling(0.125, rounds=3), dense_epochs=0, begin=begin)
    run = prune_and_finetune(plan, Size(sign=-1.0))
    first, second, third = run.circuits
    total = len(first.sites)
    assert [len(circuit) for circuit in run.circuits] == [round(share * total) for share in (0.5, 0.25, 0.125)]
    assert not (third.kept & ~second.kept).any() and not (second.kept & ~first.kept).any()
    came_from = weights(plan.out / ("start" if begin == "rewound" else "round-1"))
    begun = begins["round-2"]
    changed = {name: begun[name] != value for name, value in came_from.items()}
    assert all(bool((begun[name][where] == 0).all()) for name, where in changed.items())
    assert count_of(changed) > 0
    assert zeros_where(
        weights(run.model), {name: value == 0 for name, value in begun.items() if name in _tensors(begun)}
    )
    assert [row["stage"] for row in run.rows] == ["round-1", "round-2", "round-3"]
    assert [row["density"] for row in run.rows] == [0.5, 0.25, 0.125]


def _tensors(state: dict[str, Tensor]) -> set[str]:
    """Matrices within blocks, in which only removed weights are exactly 0."""
    return {name for name, value in state.items() if ".layer." in name and value.dim() == 2}


def test_one_shot_pruning_cuts_the_start_and_trains_nothing(ticket: PruningPlan, begins: STAGES) -> None:
    run = prune_and_finetune(dataclasses.replace(ticket, dense_epochs=0, epochs=0), Size())
    start, after = weights(ticket.out / "start"), weights(run.model)
    changed = {name: after[name] != value for name, value in start.items()}
    assert all(bool((after[name][where] == 0).all()) for name, where in changed.items()) and count_of(changed) > 0
    assert not begins and [row["steps"] for row in run.rows] == [0]


@pytest.mark.parametrize("stage", ["dense", "round-1", "round-2"])
def test_a_stopped_plan_goes_on_bit_for_bit(
    ticket: PruningPlan, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(ticket, densities=(0.5, 0.3), train_count=48)
    whole = prune_and_finetune(dataclasses.replace(plan, out=tmp_path / "whole"), Size())
    step = Training.step

    def dying(self: Training) -> dict[str, Any]:
        if self.plan.out.name == stage and self.done == 2:
            raise KilledError
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", dying)
        with pytest.raises(KilledError):
            prune_and_finetune(plan, Size())
    found = prune_and_finetune(plan, Size())
    assert found.rows == whole.rows
    for name in ("start", "dense", "round-1", "round-2"):
        assert same(weights(plan.out / name), weights(tmp_path / "whole" / name))
    monkeypatch.setattr(Training, "step", lambda self: pytest.fail("a finished plan trains nothing"))
    assert prune_and_finetune(plan, Size()).rows == whole.rows


def test_a_regression_is_pruned_too(bert_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ("one two", "three four five", "six great", "great great one", "ten")
    rows = [f"g\tf\ty\t{n}\t{n % 6}.0\t{words[n % 5]} {words[n // 5 % 5]}\t{words[n // 25 % 5]}" for n in range(90)]
    (tmp_path / "sts-train.csv").write_text("\n".join(rows[:60]))
    (tmp_path / "sts-dev.csv").write_text("\n".join(rows[60:]))
    plan = PruningPlan(
        model=str(bert_folder), out=tmp_path / "run", task="stsb", data_dir=tmp_path, dev_count=20, train_count=32,
        dense_epochs=0, epochs=1, rate=1e-3, device="cpu",
    )  # fmt: skip
    row = prune_and_finetune(plan, Size()).rows[0]
    assert {"dev_pearson", "test_spearman", "test_loss"} <= row.keys()
    assert row["zero"] == row["removed"] > 0


class Unsure:
    """Scores without a selection."""

    def score(self, model: Any, task: Any) -> Any:
        raise AssertionError


def test_what_cannot_be_pruned_is_refused(ticket: PruningPlan) -> None:
    with refuses_choice("needs a method with score and a selection but Unsure"):
        prune_and_finetune(ticket, Unsure())  # pyright: ignore[reportArgumentType]
    plan = dataclasses.replace(ticket, dense_epochs=0, epochs=0, densities=(0.5, 0.4))
    with pytest.raises(ValueError, match="takes some that are gone"):
        prune_and_finetune(plan, Size(selection=Top("absolute")))
    with pytest.raises(ValueError, match=r"another .*method"):
        prune_and_finetune(plan, Size(selection=Top("absolute"), sign=-1.0))
    with pytest.raises(ValueError, match=r"another .*densities"):
        prune_and_finetune(dataclasses.replace(plan, densities=(0.5,)), Size(selection=Top("absolute")))
    whole = dataclasses.replace(plan, out=plan.out.parent / "other", densities=(0.5,))
    with pytest.raises(ValueError, match=r"classifier\.W among them"):
        prune_and_finetune(whole, Size(pattern=f"{PRUNABLE}|classifier.W"))


@pytest.mark.parametrize("bad", [(), (0.5, 0.5), (0.3, 0.4), (1.2,), (0.5, 0.0)])
def test_densities_must_fall(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="densities must fall"):
        PruningPlan("bert", Path("out"), densities=bad)
    with pytest.raises(ValueError, match="Numbers of epochs"):
        PruningPlan("bert", Path("out"), epochs=-1)
    with refuses_choice("begin must be"):
        PruningPlan("bert", Path("out"), begin="back")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Rounds need a last density"):
        falling(1.0, rounds=2)


def test_a_strategy_of_one_shot_pruning_cuts_a_ticket(ticket: PruningPlan) -> None:
    run = prune_and_finetune(ticket, tp.saliency_strategy("LayerGradCAMShift", batches=2))
    (circuit,) = run.circuits
    assert len(circuit) == round(0.4 * len(circuit.sites))
    (found,) = circuit.provenance["of"]
    assert found["method"]["name"] == "saliency"
