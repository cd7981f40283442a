"""Predictions of subnetworks: against a loop over single examples, in files that count only where they are right."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import encoder_of, fresh_encoder, hf_model_of
from quizzes import plain_answer, subnetworks_of, task_of
from torch import Tensor

import tlprune as tp
from tlprune.backends.passes import counted
from tlprune.studies.collection import Run
from tlprune.studies.predictions import Predictions
from tlprune.task import MAIN, Task

COUNT = 13
RUNS = tuple(Run(sparsity, seed) for sparsity in (0.25, 0.5) for seed in (0, 1))


def predict(name: str = "bert classes", task: Task | None = None, **options: Any) -> Predictions:
    model = encoder_of(name, torch.float32)
    settings = {"ablation": tp.Zero(), "batch_size": 5, **options}
    return tp.predict(model, subnetworks_of(model), task or task_of(name), **settings)


@pytest.mark.parametrize(
    ("name", "accepted"), [("bert classes", False), ("bert classes", True), ("roberta classes", False)]
)
def test_predictions_are_those_of_a_loop_over_examples(name: str, accepted: bool) -> None:
    """Of Hugging Face's modules, one example at a time and without padding; in float64."""
    model, task = encoder_of(name), task_of(name, accepted=accepted)
    found = tp.predict(model, subnetworks_of(model), task, ablation=tp.Zero(), batch_size=5)
    sites = tp.heads(model) + tp.mlps(model)
    everything = {sites.name(index) for index in range(len(sites))}
    kept = {None: everything} | {run: {*circuit.names} for run, circuit in subnetworks_of(model).items()}
    assert found.runs == RUNS
    batch, plain = task.test, hf_model_of(name)
    for run, names in kept.items():
        logits = torch.stack([plain_answer(plain, batch.clean, row, names) for row in range(len(batch))])
        own = found.full if run is None else found.logits[run]
        torch.testing.assert_close(own, logits.float(), rtol=1e-5, atol=1e-6)
        best = logits.argmax(-1)
        assert found.predicted(run).tolist() == best[:, None].tolist()
        assert found.correct(run).tolist() == [right(batch, row, int(best[row])) for row in range(len(batch))]


def right(batch: tp.Batch, row: int, predicted: int) -> float:
    if batch.accepted is None:
        return float(predicted == int(batch.answers[row, 0]))
    return float(batch.accepted[row, predicted])


@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_correct_is_what_an_evaluation_measures(kind: str) -> None:
    model, task = encoder_of("bert classes", torch.float32), task_of(accepted=True)
    ablation = tp.Resample() if kind == "resample" else tp.Mean(task.discovery.train().clean)
    twins = dataclasses.replace(task.test, corrupt=task.test.clean.rows(torch.arange(len(task.test)).flip(0)))
    task = with_test(task, twins)
    found = predict(task=task, ablation=ablation)
    for run, circuit in subnetworks_of(model).items():
        evaluated = tp.evaluate(model, circuit, task, ablation=ablation)
        by_name = {row.name: row.performance.figure("accuracy") for row in evaluated.rows}
        assert found.correct(run).tolist() == by_name["circuit"].tolist()
        assert found.correct().tolist() == by_name["full model"].tolist()


def with_test(task: Task, test: tp.Batch) -> Task:
    return dataclasses.replace(task, streams={MAIN: dataclasses.replace(task.streams[MAIN], test=test)})


def test_tokens_are_right_by_answer_position() -> None:
    planted = tp.planted("copy")
    runs = {Run(0.5, 0): planted.circuit, Run(1.0, None): planted.circuit - planted.circuit}
    found = tp.predict(planted.model, runs, planted.task)
    for run, circuit in runs.items():
        logits = circuit.on(planted.model)(planted.task.test)
        assert torch.equal(found.predicted(run), logits.argmax(-1))
        assert torch.equal(found.correct(run), (logits.argmax(-1) == planted.task.test.answers).float().mean(-1))
    with pytest.raises(ValueError, match="Logits are kept of classes, but task"):
        found.full  # noqa: B018
    with pytest.raises(ValueError, match="Logits are kept of classes, but task"):
        found.logits  # noqa: B018


def test_answers_that_fill_up_do_not_count() -> None:
    task = task_of()
    none, twice = torch.full_like(task.test.answers, -100), task.test.positions.expand(-1, 2)
    two = torch.cat([task.test.answers, none], 1)
    batch = dataclasses.replace(task.test, answers=two, positions=twice, foils=none.expand(-1, 2))
    found = predict()
    answers = dataclasses.replace(found.model, predicted=found.predicted().expand(-1, 2))
    assert torch.equal(dataclasses.replace(found, batch=batch, model=answers).correct(), found.correct())


# ---- files


def prompts_run(**options: Any) -> tuple[Predictions, int]:
    with counted(encoder_of("bert classes", torch.float32)) as passes:
        found = predict(**options)
    return found, round(passes.forward)


def same(one: Predictions, other: Predictions) -> bool:
    return torch.equal(one.full, other.full) and all(torch.equal(one.logits[run], other.logits[run]) for run in RUNS)


def test_a_second_call_reads_what_the_first_wrote(tmp_path: Path) -> None:
    first, passes = prompts_run(out=tmp_path)
    assert passes >= 5 * COUNT
    again, passes = prompts_run(out=tmp_path)
    assert passes == 0
    assert same(first, again)
    assert same(first, predict())


def test_a_stopped_call_goes_on_where_it_was(tmp_path: Path) -> None:
    def stop(line: str) -> None:
        if line.endswith("3 of 4: 50%, seed 0"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(out=tmp_path, tell=stop)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1 + 3
    found, passes = prompts_run(out=tmp_path)
    assert passes == COUNT
    assert same(found, predict())


@pytest.mark.parametrize("change", ["ablation", "circuit", "model", "cut", "task"])
def test_a_file_of_something_else_does_not_count(change: str, tmp_path: Path) -> None:
    predict(out=tmp_path)
    model, task, ablation = encoder_of("bert classes", torch.float32), task_of(), tp.Zero()
    runs, computed = subnetworks_of(model), 4
    if change == "ablation":
        ablation = tp.Mean(task.discovery.train().clean)
    if change == "circuit":
        runs, computed = {**runs, RUNS[0]: runs[RUNS[1]]}, 1
    if change == "model":
        model, computed = fresh_encoder("bert classes", torch.float32, hidden_act="relu"), 5
        model.blocks[0].mlp.W_in.data.mul_(2)
    if change == "cut":
        path = next(tmp_path.rglob("full.safetensors"))
        path.write_bytes(path.read_bytes()[:-8])
        computed = 1
    if change == "task":
        task, computed = task_of(seed=1), 5
    with counted(model) as passes:
        found = tp.predict(model, runs, task, ablation=ablation, out=tmp_path, batch_size=5)
    anew = tp.predict(model, runs, task, ablation=ablation, batch_size=5)
    assert same(found, anew)
    assert computed == round(passes.forward) // COUNT
    with counted(model) as passes:
        tp.predict(model, runs, task, ablation=ablation, out=tmp_path, batch_size=5)
    assert round(passes.forward) <= (9 if change == "ablation" else 0)
    if change == "task":
        assert prompts_run(out=tmp_path)[1] == 0, "the other task's are still there"


def test_learned_constants_are_told_apart_by_their_values(tmp_path: Path) -> None:
    task = task_of()
    constants = tp.Constant(encoder_of("bert classes", torch.float32), tp.Mean(task.discovery.train().clean))
    first = predict(ablation=constants, out=tmp_path)
    with torch.no_grad():
        constants.heads[0].add_(3)
    assert not same(first, predict(ablation=constants, out=tmp_path))


def test_replacements_that_fit_no_memory_are_made_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of()
    reversed_ = dataclasses.replace(task.test, corrupt=task.test.clean.rows(torch.arange(COUNT).flip(0)))
    task = with_test(task, reversed_)
    plenty = predict(task=task, ablation=tp.Resample())
    monkeypatch.setattr("tlprune.studies.answers._MOST_BYTES", 1)
    assert same(plenty, predict(task=task, ablation=tp.Resample()))


def test_no_pass_has_more_examples_or_positions_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    real = tp.Masked.__call__

    def noted(self: tp.Masked, clean: Any, *rest: Any, **options: Any) -> Tensor:
        seen.append((len(clean), int(clean.clean.lengths.max())))
        return real(self, clean, *rest, **options)

    monkeypatch.setattr(tp.Masked, "__call__", noted)
    predict()
    lengths = sorted(task_of().test.clean.lengths.tolist())
    assert seen == 4 * [(len(part), part[-1]) for part in (lengths[start : start + 5] for start in range(0, COUNT, 5))]


# ---- bad input


def test_what_has_no_predictions_gets_one_error() -> None:
    task = task_of()
    none = torch.full_like(task.test.answers, -100)
    regression = with_test(task, dataclasses.replace(task.test, answers=none, targets=torch.zeros(COUNT)))
    with pytest.raises(ValueError, match="has no answers: it is a regression"):
        predict(task=regression)
    with pytest.raises(ValueError, match="need at least one subnetwork"):
        tp.predict(encoder_of("bert classes"), {}, task)
    with pytest.raises(ValueError, match="but 75%, seed 9 was asked for"):
        predict().correct((0.75, 9))


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        ("roberta classes", task_of(accepted=True), "3 classes but this model has 2"),
        ("roberta classes", task_of(), "3 classes but this model has 2"),
        (
            "bert classes",
            dataclasses.replace(task_of("roberta classes"), options={"classes": ["no", "yes"]}),
            r"2 classes \(no, yes\) but this model has 3",
        ),
        ("bert number", task_of("roberta classes"), "2 classes but this model has 1"),
    ],
)
def test_a_task_of_other_classes_than_the_model_has_is_refused(model: str, task: Task, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(model, task)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "predictions").write_text("")
    with pytest.raises(ValueError, match="Choose another folder"):
        predict(out=tmp_path)
