"""Learned constants: their closed forms, what they never do worse than, and the files that keep them."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from styles import CLEAN, OTHERS, STYLES, fresh, model_of, random_batch, refuses_choice
from test_lent_model import assert_unchanged, state

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.files import read_tensors, write_tensors
from tlprune.masking.constants import FORMAT
from tlprune.task import Stream, Tokenisation


@cache
def random_model(style: str = "lnpre") -> Any:
    return fresh(style, torch.float32)


def random_task(examples: int = 8) -> tp.Task:
    stream = Stream(*(random_batch(examples, seed=seed) for seed in (1, 2, 3)))
    return tp.Task("random", {"main": stream}, Tokenisation(prepend_bos=True))


def constant_of(model: Any, task: tp.Task, **options: Any) -> tp.Constant:
    return tp.Constant(model, tp.Mean(task.discovery.train().corrupt), **options)


def loss_of(
    model: Any,
    circuit: tp.Circuit,
    ablation: Any,
    batch: Any,
    objective: Any = tp.KL(),  # noqa: B008
) -> float:
    with torch.no_grad():
        masked = circuit.on(model, ablation=ablation)
        return float(objective(masked(batch), batch, masked.cache(batch).reference(batch)))


def without(model: Any, edge: str) -> tp.Circuit:
    whole = tp.Circuit(tp.edges(model), torch.ones(len(tp.edges(model)), dtype=torch.bool))
    return whole - tp.Circuit.from_edges(model, [edge])


# ---- closed forms


def test_gradients_of_one_backward_after_another_add_up() -> None:
    """As of several terms, mask samples or pieces of a batch; embeddings of a model with positions are two tensors."""
    model, task = random_model("gpt2"), random_task()
    constant, batch = constant_of(model, task), task.discovery.train()
    masked = tp.Masked(model, without(model, "input->logits"), constant)
    pieces, gradients = [batch.rows(rows) for rows in (torch.arange(4), torch.arange(4, 8))], []
    for runs in (pieces[:1], pieces[1:], pieces):
        for one in constant.parameters():
            one.grad = None
        for piece in runs:
            masked(piece).square().mean().backward()
        gradients.append([one.grad.clone() for one in constant.embeddings])
    for first, second, both in zip(*gradients, strict=True):
        assert float(second.abs().max()) > 1e-4
        torch.testing.assert_close(first + second, both, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("edge", ["m1->logits", "a1.h2->logits", "input->logits"])
def test_of_a_linear_reader_the_best_constant_leaves_the_variance_of_what_is_removed(edge: str) -> None:
    """An output ``y = ... + x . u``: without ``x`` the squared error is that of ``c . u`` from ``x . u``.

    It is least at the mean over answers, where it is the variance; the mean over all positions is another one.
    """
    model, task = fresh("no_norm", torch.float32, d_vocab_out=1), random_task(16)
    batch, circuit = task.discovery.train(), without(model, edge)
    with torch.no_grad():
        zero, full = (circuit.on(model, ablation=tp.Zero())(batch), model(batch.clean.ids)[:, -1:])
    removed = (full - zero).flatten()
    least = float(removed.var(correction=0))
    constant, error = constant_of(model, task), tp.SquaredError()
    before = loss_of(model, circuit, constant, batch, error)
    assert before == pytest.approx(loss_of(model, circuit, tp.Mean(batch.corrupt), batch, error), rel=1e-4)
    assert before > 1.01 * least
    tp.fit_constant(constant, model, circuit, task.discovery, error, steps=100, rate=0.05)
    after = loss_of(model, circuit, constant, batch, error)
    assert least * (1 - 1e-4) <= after <= 1.001 * least


# ---- what they never do worse than


@pytest.mark.parametrize("rate", [0.01, 1e4])
@pytest.mark.parametrize("best_on", ["train", "validation"])
def test_the_loss_is_never_above_that_of_the_means(best_on: Literal["train", "validation"], rate: float) -> None:
    model, task = random_model(), random_task()
    circuit = tp.Random(edges=40).find(model, task)
    batch = getattr(task.discovery, best_on)()
    mean, constant = tp.Mean(task.discovery.train().corrupt), constant_of(model, task)
    tp.fit_constant(constant, model, circuit, task.discovery, steps=20, rate=rate, best_on=best_on)
    before, after = (loss_of(model, circuit, ablation, batch) for ablation in (mean, constant))
    assert after == pytest.approx(before, rel=1e-4) if rate > 1 else after < 0.99 * before


def test_constants_that_no_other_prompt_shares_are_left_for_those_that_validation_likes() -> None:
    model, task = random_model(), random_task(2)
    circuit = tp.Random(edges=40).find(model, task)
    losses = {}
    for best_on in ("train", "validation"):
        constant = constant_of(model, task)
        tp.fit_constant(constant, model, circuit, task.discovery, steps=60, rate=0.05, best_on=best_on)
        splits = (task.discovery.train(), task.discovery.validation())
        losses[best_on] = [loss_of(model, circuit, constant, batch) for batch in splits]
    assert losses["train"][0] < losses["validation"][0]
    assert losses["train"][1] > losses["validation"][1]
    with refuses_choice("'train' or 'validation' but is 'test'"):
        tp.fit_constant(constant, model, circuit, task.discovery, best_on="test")  # pyright: ignore


def test_no_steps_change_nothing_and_no_examples_are_refused() -> None:
    model, task = random_model(), random_task()
    constant, circuit = constant_of(model, task), tp.Random(edges=40).find(model, task)
    before = constant.values_hash
    assert tp.fit_constant(constant, model, circuit, task.discovery, steps=0) == []
    assert constant.values_hash == before
    with pytest.raises(ValueError, match="at least 1 example"):
        tp.fit_constant(constant, model, circuit, task.discovery, batch_size=0)
    nobody = dataclasses.replace(OTHERS, ids=OTHERS.ids[:0])
    with pytest.raises(ValueError, match="needs reference prompts but got none"):
        tp.Constant(model, tp.Mean(nobody))


def test_fitting_leaves_the_model_as_it_was_and_reports_every_record() -> None:
    model, task = fresh("gpt2", torch.float32), random_task()
    before, seen = state(model), []
    circuit = tp.Circuit.from_names(tp.heads(model), ["a0.h1", "a2.h3"])
    options = {"steps": 5, "report": seen.append}
    history = tp.fit_constant(constant_of(model, task), model, circuit, task.discovery, **options)
    assert_unchanged(before, model)
    assert seen == history
    assert len(history) == 5


# ---- files


@pytest.mark.parametrize("style", STYLES)
def test_saved_constants_are_the_same_constants(style: str, tmp_path: Path) -> None:
    model = model_of(style)
    layers = () if model.cfg.attn_only else (1,)
    constant = tp.Constant(model, tp.Mean(OTHERS), neurons=layers)
    start = constant.values_hash
    with torch.no_grad():
        for parameter in constant.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    constant.save(tmp_path / "constants.safetensors")
    again = tp.Constant.load(tmp_path / "constants.safetensors", model)
    pairs = zip(constant.named_parameters(), again.named_parameters(), strict=True)
    assert all(name == other and torch.equal(value, same) for (name, value), (other, same) in pairs)
    assert again.as_dict() == constant.as_dict()
    assert again.values_hash == constant.values_hash != start
    sites = tp.edges(model)
    mask = torch.full((len(sites),), 0.3, dtype=torch.float64)
    first, second = (tp.Masked(model, tp.Masks(sites), one)(CLEAN, mask=mask) for one in (constant, again))
    assert torch.equal(first, second)


def test_a_circuit_and_the_constants_it_was_found_with_come_back_from_their_files(tmp_path: Path) -> None:
    model, task = random_model(), random_task()
    constant = constant_of(model, task)
    found = tp.UGS(edges=20, steps=12, samples=1).find(model, tp.sealed(task), ablation=constant)
    found.save(tmp_path / "circuit.json")
    constant.save(tmp_path / "constants.safetensors")
    circuit = tp.Circuit.load(tmp_path / "circuit.json")
    again = tp.Constant.load(tmp_path / "constants.safetensors", model)
    assert circuit.provenance["ablation"]["values"] == again.values_hash
    known = tp.evaluate(model, found, task.test, ablation=constant)
    same = tp.evaluate(model, circuit, task.test, ablation=again)
    assert str(same) == str(known)
    assert "found under" not in str(same)
    other = constant_of(model, task)
    assert "found under constant" in str(tp.evaluate(model, circuit, task.test, ablation=other))


def test_constants_belong_to_their_model(tmp_path: Path) -> None:
    model, path = model_of("gpt2"), tmp_path / "constants.safetensors"
    constant = tp.Constant(model, tp.Mean(OTHERS))
    constant.save(path)
    other = fresh("gpt2")
    with torch.no_grad():
        backend_of(other).parameters()["embed.W_E"].add_(1)
    with pytest.raises(ValueError, match=r"are of model 'gpt2'.*Give the model that they are of"):
        tp.Constant.load(path, other)
    with pytest.raises(ValueError, match="These means are of model 'gpt2'"):
        tp.Constant(other, tp.Mean(OTHERS).measure(model))
    small = model_of("lnpre")
    with pytest.raises(ValueError, match=r"3 layers of 4 heads of width 8.*this model has 2, 4, 8 and 32"):
        tp.Masked(small, tp.Masks(tp.edges(small)), constant)(CLEAN)


def test_files_of_another_kind_or_with_other_values_are_refused(tmp_path: Path) -> None:
    model, path = model_of("gpt2"), tmp_path / "constants.safetensors"
    tp.Constant(model, tp.Mean(OTHERS)).save(path)
    tensors, data = read_tensors(path, FORMAT)
    tensors["mlps.1"] += 1
    write_tensors(path, tensors, data)
    with pytest.raises(ValueError, match="promises other values than it holds"):
        tp.Constant.load(path, model)
    tp.Mean(OTHERS).measure(model).save(path)
    with pytest.raises(ValueError, match="is not a tlprune constants"):
        tp.Constant.load(path, model)
    save_file(load_file(path), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="is not a constants"):
        tp.Constant.load(tmp_path / "plain.safetensors", model)
    with pytest.raises(ValueError, match="Cannot read the constants"):
        tp.Constant.load(tmp_path / "none", model)
