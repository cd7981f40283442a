"""Tasks under soft prompts: of their own while neurons are perturbed, and of each other."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from styles import SHAPE, model_of, random_batch

import tlprune as tp
from tlprune.skills.choosing import places
from tlprune.task import MAIN, Batch, Stream, Task, Tokenisation, Tokens

VOCABULARY, WIDTH, LENGTH = SHAPE["d_vocab"], SHAPE["d_mlp"], 2
FIRST, SECOND = {"no": 3, "yes": 5}, {"bad": 4, "good": 6}


def prompted_task(seed: int, words: dict[str, int], *, length: int = LENGTH) -> Task:
    """Random prompts with prompt tokens behind them, read at the last, answered by one of two words."""
    batches = [_batch(10 * seed + split, words, length) for split in range(3)]
    options = {"words": words, "prompt": {"length": length, "place": "end"}}
    return Task(f"task {seed}", {MAIN: Stream(*batches)}, Tokenisation(prepend_bos=False), options)


def _batch(seed: int, words: dict[str, int], length: int) -> Batch:
    plain, one, other = random_batch(8, 4, seed=seed), *words.values()
    behind = torch.arange(VOCABULARY, VOCABULARY + length).expand(8, length)
    tokens = Tokens(torch.cat([plain.clean.ids, behind], 1))
    right = plain.answers % 2
    answers, foils = torch.where(right == 1, one, other), torch.where(right == 1, other, one)
    return Batch(plain.index, tokens, tokens, plain.positions + length, answers, foils)


def prompt_of(seed: int, *, length: int = LENGTH) -> tp.Prompt:
    generator = torch.Generator().manual_seed(seed)
    return tp.Prompt(torch.randn(length, SHAPE["d_model"], generator=generator, dtype=torch.float64))


@torch.no_grad()
def difference(model: Any, batch: Batch, prompt: tp.Prompt, hooks: Any = ()) -> float:
    """The mean logit difference at the last position, of a plain run."""
    with prompt.attached(model):
        logits = model.run_with_hooks(batch.clean.ids, fwd_hooks=list(hooks))[:, -1]
    return float((logits.gather(1, batch.answers) - logits.gather(1, batch.foils)).mean())


def test_neurons_are_perturbed_under_each_prompt_in_turn() -> None:
    """Noise has the prompt's tokens as others; its seed is one more in the second trial."""
    model, task, prompts = model_of("llama"), prompted_task(1, FIRST), [prompt_of(1), prompt_of(2)]
    sites = tp.neurons(model)
    scores = tp.Scores(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(7)))
    order = places(scores.values.view(-1, WIDTH))
    options: dict[str, Any] = {"fractions": [0, 0.5], "random_trials": 1}
    curve = tp.perturbation(model, task, scores, prompts=prompts, ablation=tp.GaussianNoise(0.5, seed=3), **options)
    circuit = tp.Circuit(sites, (order >= WIDTH // 2).flatten())
    for trial, prompt in enumerate(prompts):
        with prompt.attached(model):
            logits = tp.Masked(model, circuit, tp.GaussianNoise(0.5, seed=3 + trial))(task.test)[:, 0]
        noisy = float((logits.gather(1, task.test.answers) - logits.gather(1, task.test.foils)).mean())
        plain = difference(model, task.test, prompt)
        assert curve.at(0, "logit_difference").skill_runs[trial] == pytest.approx(plain, abs=1e-5)
        assert curve.at(0.5, "logit_difference").skill_runs[trial] == pytest.approx(noisy, abs=1e-5)
    assert curve.at(0, "logit_difference").skill_runs[0] != curve.at(0, "logit_difference").skill_runs[1]


def test_neurons_are_set_to_their_means_under_the_prompt() -> None:
    model, task, prompt = model_of("gpt2"), prompted_task(1, FIRST), prompt_of(1)
    sites = tp.neurons(model)
    found = tp.perturbation(
        model, task, tp.Scores(sites, torch.zeros(len(sites))), prompts=[prompt], fractions=[1], ablation="mean",
        random_trials=1,
    )  # fmt: skip
    with prompt.attached(model):
        _, cache = model.run_with_cache(task.discovery.train().clean.ids)
    means = {f"blocks.{layer}.mlp.hook_post": cache[f"blocks.{layer}.mlp.hook_post"].mean((0, 1)) for layer in range(3)}

    hooks = [(name, lambda value, hook, mean=mean: mean.expand_as(value)) for name, mean in means.items()]
    expected = difference(model, task.test, prompt, hooks)
    assert found.at(1, "logit_difference").skill.value == pytest.approx(expected, abs=1e-5)


def test_each_task_is_measured_under_the_prompts_of_each() -> None:
    model = model_of("gpt2")
    tasks = {"one": prompted_task(1, FIRST), "two": prompted_task(2, FIRST)}
    prompts = {"one": [prompt_of(1), prompt_of(2)], "two": [prompt_of(3)]}
    found = tp.prompt_transfer(model, tasks, prompts, figure="logit_difference")
    for name, task in tasks.items():
        for of, own in prompts.items():
            cell = found[name][of]
            assert cell is not None
            expected = [difference(model, task.test, prompt) for prompt in own]
            assert cell.runs == pytest.approx(expected, abs=1e-5)
            assert cell.value.value == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    plain = tp.prompt_transfer(model, tasks, prompts)["two"]["one"]
    assert plain is not None
    hits = []
    for prompt in prompts["one"]:
        with prompt.attached(model):
            hits.append(model(tasks["two"].test.clean.ids)[:, -1].argmax(-1) == tasks["two"].test.answers[:, 0])
    assert plain.value.value == pytest.approx(float(torch.stack(hits).double().mean()))


def test_prompts_of_other_words_or_lengths_are_left_out() -> None:
    model = model_of("gpt2")
    tasks = {
        "one": prompted_task(1, FIRST),
        "words": prompted_task(2, SECOND),
        "long": prompted_task(3, FIRST, length=3),
    }
    prompts = {"one": [prompt_of(1)], "words": [prompt_of(2)], "long": [prompt_of(3, length=3)]}
    found = tp.prompt_transfer(model, tasks, prompts)
    assert {(name, of) for name, own in found.cells.items() for of, one in own.items() if one is not None} == {
        (name, name) for name in tasks
    }
    data = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert data["cells"]["one"]["words"] is None
    assert [(row["task"], row["prompts_of"]) for row in found.rows] == [(name, name) for name in tasks]
    (cells,) = found.plot().data
    assert cells.z[0][1] is None
    assert cells.text[0][1] == "-"
    own = found["one"]["one"]
    assert own is not None
    assert cells.z[0][0] == own.value.value
    assert "prompts of words" in str(found)


def test_tasks_without_a_list_of_words_have_those_of_their_answers() -> None:
    model = model_of("gpt2")
    tasks = {name: prompted_task(seed, words) for seed, (name, words) in enumerate([("one", FIRST), ("two", SECOND)])}
    bare = {name: Task(name, task.streams, task.tokenisation) for name, task in tasks.items()}
    found = tp.prompt_transfer(model, bare, {"one": [prompt_of(1)]})
    assert found["one"]["one"] is not None
    assert found["two"]["one"] is None


@pytest.mark.parametrize("prompts", [{}, {"one": []}, {"other": [prompt_of(1)]}])
def test_prompts_are_those_of_the_tasks(prompts: Any) -> None:
    with pytest.raises(ValueError, match="needs prompts of tasks by name, one"):
        tp.prompt_transfer(model_of("gpt2"), {"one": prompted_task(1, FIRST)}, prompts)
