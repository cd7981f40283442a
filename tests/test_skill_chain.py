"""The parts of skill neurons on end: task, tuned prompts, predictivity, perturbation, pruning, tuned again."""

from __future__ import annotations

import dataclasses
import operator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import hf_model_of
from hooked import NEEDS_HOOKED_TRANSFORMER
from probing import asked_by_prompt

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.task import Batch, Task

NAMES = ("John", "Mary", "Paul", "Anna", "James", "Laura", "Mark", "Sarah")
KINDS = {"kind": 1, "brave": 1, "nervous": 0, "angry": 0}
COUNTS = {"train_count": 12, "validation_count": 8, "test_count": 12, "seed": 1}
PLAN = tp.PromptTuning(steps=20, batch_size=6, rate=0.1, evaluate_every=10, patience=None)


def texts() -> tp.tasks.Labelled:
    pairs = list(product(NAMES, KINDS))
    said = tuple(f"{name} is {word}" for name, word in pairs)
    return tp.tasks.Labelled("people", said, None, tuple(KINDS[word] for _, word in pairs), ("bad", "good"))


@pytest.fixture(params=["decoder", pytest.param("encoder", marks=NEEDS_HOOKED_TRANSFORMER)])
def model(request: pytest.FixtureRequest) -> Any:
    if request.param == "decoder":
        return tp.load("testbed", device="cpu")
    bert = request.getfixturevalue("bert")
    theirs = hf_model_of("bert words", vocab_size=len(bert), max_position_embeddings=32)
    return tp.from_huggingface(theirs, device="cpu", dtype=torch.float32, tokenizer=bert)


def accuracy(model: Any, task: Task, prompt: tp.Prompt, part: Batch) -> float:
    with torch.no_grad(), prompt.attached(model):
        logits = backend_of(model).logits(part.clean, part.positions)
    return float(task.metrics["word_accuracy"](logits, part, logits).mean())


def test_from_labelled_texts_to_a_smaller_model(model: Any, tmp_path: Path) -> None:
    task = tp.tasks.prompted(model, {"train": texts()}, length=3, words=("nervous", "kind"), **COUNTS)
    prompts = [dataclasses.replace(PLAN, seed=seed).tune(model, task) for seed in (0, 1)]
    hashes, validation = [prompt.hash for prompt in prompts], task.discovery.validation()
    start = [accuracy(model, task, tp.Prompt.random(model, 3, seed=seed), validation) for seed in (0, 1)]
    tuned = [accuracy(model, task, prompt, validation) for prompt in prompts]
    assert sum(tuned) > sum(start) and all(map(operator.ge, tuned, start))

    scores = tp.SkillNeurons().score(model, task, prompts=prompts)
    assert scores.provenance["prompts"] == hashes and 0.7 < float(scores.values.max()) <= 1

    options: dict[str, Any] = {"fractions": [0, 0.5, 1], "ablation": "mean", "random_trials": 2}
    curve = tp.perturbation(model, task, scores, prompts=prompts, **options)
    whole = [accuracy(model, task, prompt, task.test) for prompt in prompts]
    assert curve.figure == "word_accuracy" and curve.at(0).skill_runs == pytest.approx(whole)
    assert curve.at(1).skill_runs == pytest.approx([runs[0] for runs in curve.at(1).random_runs])  # all are all

    found = tp.skill_pruned(model, task, scores, prompts=prompts, keep=0.1, tuning=PLAN)
    assert found.circuit.provenance["prompts"] == found.means.origin["attached"] == hashes
    with torch.no_grad(), prompts[0].attached(model):
        largest = backend_of(model).logits(task.test.clean, task.test.positions).abs().max()
    assert found.saved.difference < 2e-6 * float(largest)  # float32
    assert found.correct["whole"].mean(1).tolist() == pytest.approx(whole)
    for before, after in zip(prompts, found.retuned, strict=True):
        assert after.record["settings"]["start"] == before.hash
        assert accuracy(found.model, task, after, validation) >= accuracy(found.model, task, before, validation)
    found.save(tmp_path)
    again, prompt = tp.load(tmp_path / "model", device="cpu"), tp.Prompt.load(tmp_path / "retuned" / "1")
    assert accuracy(again, task, prompt, task.test) == pytest.approx(float(found.correct["retuned"][1].mean()))


def test_what_is_found_under_a_prompt_says_so(tmp_path: Path) -> None:
    """Whoever attached it; and what is found without one names none."""
    one = tp.planted("sentiment")
    prompt, train = tp.Prompt(torch.zeros(1, one.model.cfg.d_model)), one.task.discovery.train().clean
    with prompt.attached(one.model):
        circuit, means = tp.EAP(edges=20).find(one.model, one.task), tp.Mean(train).measure(one.model)
        scores = tp.SkillNeurons(probe="answer").score(one.model, one.task)
    means.save(tmp_path / "means.safetensors")
    again = tp.MeasuredMean.load(tmp_path / "means.safetensors")
    assert again.origin["attached"] == circuit.provenance["prompts"] == scores.provenance["prompts"] == [prompt.hash]
    assert tp.EAP(edges=20).find(one.model, one.task).provenance["prompts"] == []
    assert "attached" not in tp.Mean(train).measure(one.model).origin


# ---- on the model whose skill is known


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("seed", range(3))
def test_without_its_best_neurons_a_planted_skill_is_chance_and_without_random_ones_it_stays(
    seed: int, ablation: Any
) -> None:
    one = tp.planted("sentiment", seed=seed)
    task, prompt = asked_by_prompt(one)
    scores = tp.SkillNeurons().score(one.model, task, prompts=[prompt])
    layers = [int(name[1 : name.index(".")]) for name in one.neurons]
    most = max(map(layers.count, layers)) / one.model.cfg.d_mlp
    curve = tp.perturbation(one.model, task, scores, prompts=[prompt], fractions=[0, most], ablation=ablation)
    assert {*one.neurons} <= {*tp.top_neurons(scores, most).names}
    assert curve.chance is not None and curve.at(0).skill.value == 1
    assert curve.at(most).skill.value in (pytest.approx(curve.chance), pytest.approx(1 - curve.chance))
    assert curve.at(most).random.value > 0.9 and curve.at(most).difference.high < -0.2
