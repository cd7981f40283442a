"""Prompt tuning: it learns what a random prompt does not, touches no weight, and goes on bit for bit."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from bridges import bridged
from encoders import fresh_encoder
from styles import fresh
from torch.utils.flop_counter import FlopCounterMode

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.prompting import embedded_tokens
from tlprune.finetuning.prompt_tuning import Tuning
from tlprune.finetuning.resuming import CHECKPOINT
from tlprune.task import MAIN, Batch, Stream, Task, Tokenisation, Tokens

LENGTH, TEXT, WORDS = 4, 3, (5, 9)
PLAN = tp.PromptTuning(steps=120, batch_size=8, rate=0.2, evaluate_every=10, patience=None)
MODELS: dict[str, Any] = {
    "gpt2": lambda: fresh("gpt2", torch.float32),
    "llama": lambda: fresh("llama", torch.float32),
    "bert": lambda: fresh_encoder("bert words", torch.float32),
    "bridged gpt2": lambda: bridged("gpt2", torch.float32),
}
each_model = pytest.mark.parametrize("name", MODELS)


def split_of(model: Any, *, start: bool, examples: int, seed: int) -> Batch:
    """Texts that hold one of two words; the class is which."""
    generator, first = torch.Generator().manual_seed(seed), embedded_tokens(backend_of(model).embedding)
    label = torch.arange(examples) % 2
    text = torch.randint(10, 20, (examples, TEXT), generator=generator)
    text[:, 1] = 20 + label
    prompt = (first + torch.arange(LENGTH)).expand(examples, LENGTH)
    ids = torch.cat([prompt, text] if start else [text, prompt], 1)
    answers = torch.tensor(WORDS)[label][:, None]
    positions = torch.full((examples, 1), 0 if start else ids.shape[1] - 1)
    return Batch(torch.arange(examples), Tokens(ids), Tokens(ids.roll(1, 0)), positions, answers, sum(WORDS) - answers)


@cache
def case(name: str) -> tuple[Any, Task, tp.Prompt]:
    model, start = MODELS[name](), name == "bert"
    splits = [split_of(model, start=start, examples=16, seed=seed) for seed in (1, 2, 3)]
    task = Task("planted word", {MAIN: Stream(*splits)}, Tokenisation(prepend_bos=False))
    drawn = torch.randn(LENGTH, backend_of(model).d_model, generator=torch.Generator().manual_seed(4)) / 30
    return model, task, tp.Prompt(drawn, "start" if start else "end", int(start))


def accuracy(model: Any, prompt: tp.Prompt, batch: Batch) -> float:
    with torch.no_grad(), prompt.attached(model):
        logits = backend_of(model).logits(batch.clean, batch.positions)[:, 0, list(WORDS)]
    return float((torch.tensor(WORDS)[logits.argmax(-1)] == batch.answers[:, 0]).float().mean())


@each_model
def test_a_tuned_prompt_learns_what_a_random_one_does_not_and_no_weight_changes(name: str) -> None:
    model, task, start = case(name)
    before = {key: value.detach().clone() for key, value in backend_of(model).parameters().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    tuned = PLAN.tune(model, task, prompt=start)
    assert accuracy(model, start, task.test) <= 0.75
    assert accuracy(model, tuned, task.test) >= 0.9
    assert tuned.record["validation"]["accuracy"] == accuracy(model, tuned, task.discovery.validation())
    assert torch.equal(tuned.vectors[: start.frozen], start.vectors[: start.frozen])
    assert bool((tuned.vectors[start.frozen :] != start.vectors[start.frozen :]).all(1).all())
    assert all(torch.equal(value, before[key]) for key, value in backend_of(model).parameters().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


@each_model
def test_the_backward_of_a_step_costs_what_the_forward_does(name: str) -> None:
    """Gradients of weights would be half of the backward's matrix products as well."""
    model, task, start = case(name)
    run = Tuning(model, task, start, PLAN)
    with FlopCounterMode(display=False) as forward:
        logits = run.logits(run.train)
    loss = run.objective(logits, run.train, logits)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    # Attention's two products have two gradients each, which is the little above one.
    assert backward.get_total_flops() < 1.2 * forward.get_total_flops()


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_a_stopped_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, task, start = case(name)
    plan = dataclasses.replace(PLAN, steps=40)
    whole = plan.tune(model, task, prompt=start)
    seen: list[int] = []

    def stop(record: dict[str, Any]) -> None:
        seen.append(record["step"])
        if record["step"] == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan.tune(model, task, prompt=start, folder=tmp_path, watch=stop)
    again = plan.tune(model, task, prompt=start, folder=tmp_path, watch=lambda record: seen.append(record["step"]))
    assert seen == [0, 10, 20, 30, 30, 40]
    assert torch.equal(again.vectors, whole.vectors)
    assert again.record == whole.record
    assert tp.Prompt.load(tmp_path).hash == whole.hash
    assert (tmp_path / CHECKPOINT).exists()
    with pytest.raises(ValueError, match=r"another rate \(0.2, now 0.1\)"):
        dataclasses.replace(plan, rate=0.1).tune(model, task, prompt=start, folder=tmp_path)


def test_steps_are_those_of_adam_with_the_rate_up_and_down_and_a_clipped_gradient() -> None:
    model, task, start = case("gpt2")
    plan = dataclasses.replace(PLAN, steps=5, warmup=0.4, batch_size=16, clip=0.01, evaluate_every=5)
    run = Tuning(model, task, start, plan)
    values = start.vectors.clone()
    first, second = torch.zeros_like(values), torch.zeros_like(values)
    for step, rate in enumerate((0.1, 0.2, 0.2, 0.4 / 3, 0.2 / 3)):
        leaf, batch = values.clone().requires_grad_(), task.discovery.train()
        with tp.Prompt(leaf).attached(model):
            logits = backend_of(model).logits(batch.clean, batch.positions)[:, 0, list(WORDS)]
        loss = torch.nn.functional.cross_entropy(logits, (batch.answers[:, 0] == WORDS[1]).long())
        (gradient,) = torch.autograd.grad(loss, leaf)
        gradient = gradient * min(1.0, 0.01 / float(gradient.norm()))
        first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient.square()
        mean, square = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.98 ** (step + 1))
        values = values - rate * mean / (square.sqrt() + 1e-6)
        run.step()
        assert float((run.vectors.detach() - values).abs().max()) < 2e-3


def test_the_best_on_validation_is_kept_and_patience_ends_the_run() -> None:
    model, task, start = case("gpt2")
    looks: list[dict[str, Any]] = []
    plan = dataclasses.replace(PLAN, steps=400, evaluate_every=5, patience=3, rate=3.0)
    found = plan.tune(model, task, prompt=start, watch=looks.append)
    order = [(look["accuracy"], -look["cross_entropy"]) for look in looks]
    best = order.index(max(order))
    assert found.record["step"] == looks[best]["step"]
    assert looks[-1]["step"] == looks[best]["step"] + 15 < 400
    assert accuracy(model, found, task.discovery.validation()) == looks[best]["accuracy"]
    same = dataclasses.replace(plan, rate=1e-30, steps=5).tune(model, task, prompt=found)
    assert same.hash == found.hash  # what training starts with counts


def test_a_random_prompt_of_the_tasks_length_is_the_start() -> None:
    model, task, _ = case("gpt2")
    plan = dataclasses.replace(PLAN, steps=1, seed=3)
    found = plan.tune(model, task)
    assert len(found) == LENGTH
    assert found.record["from"] == {"made": "random", "seed": 3, "length": LENGTH}


def test_what_cannot_be_tuned_is_one_clear_error() -> None:
    model, task, start = case("gpt2")
    stream = task.streams[MAIN]
    plain = dataclasses.replace(stream.train, clean=Tokens(stream.train.clean.ids.clamp(max=20)))
    without = Task("plain", {MAIN: dataclasses.replace(stream, train=plain)}, task.tokenisation)
    with pytest.raises(ValueError, match="'plain' has none"):
        PLAN.tune(model, without)
    alone = {name: getattr(stream, name).rows(torch.arange(0, 16, 2)) for name in ("train", "validation", "test")}
    alone = {name: dataclasses.replace(one, foils=one.foils * 0 - 100) for name, one in alone.items()}
    with pytest.raises(ValueError, match="needs examples of two but these have 1"):
        PLAN.tune(model, Task("one", {MAIN: Stream(**alone)}, task.tokenisation), prompt=start)
    with pytest.raises(ValueError, match="no vectors to train"):
        PLAN.tune(model, task, prompt=tp.Prompt(start.vectors, "end", LENGTH))
    for wrong in ({"steps": 0}, {"patience": 0}, {"rate": 0.0}, {"warmup": 1.0}):
        with pytest.raises(ValueError, match=r"at least 1|must be above 0"):
            tp.PromptTuning(**wrong)
