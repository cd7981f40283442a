"""Skill neurons: streamed statistics are those of a brute-force pass; what was planted is found, and is needed."""

from __future__ import annotations

import dataclasses
import weakref
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from encoders import fresh_encoder
from hooked import NEEDS_HOOKED_TRANSFORMER
from probing import (
    PROMPT,
    activations,
    asked_by_prompt,
    brute_force,
    rows_of_two,
    task_of,
    told_apart,
    vectors,
    vocabulary_of,
)
from styles import fresh
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.passes import counted
from tlprune.methods.class_pairs import Classes, ClassMeans, PairCounts
from tlprune.methods.neuron_probe import PROBES, read_neurons
from tlprune.methods.predictivity import best_of_pairs
from tlprune.models.planted import Planted
from tlprune.task import Batch, Stream, Task

MODELS = {"gpt2": "right", "llama": "left", "bert words": "right"}  # and the side on which prompts are padded


@cache
def model_of(name: str) -> Any:
    """Llama's MLPs are gated; BERT is an encoder."""
    return fresh_encoder(name) if name.startswith("bert") else fresh(name)


@cache
def task(name: str, *classes: int) -> Task:
    return task_of(model_of(name), classes or (7, 9), side=MODELS[name])


@cache
def prompts(name: str) -> tuple[tp.Prompt, ...]:
    return vectors(model_of(name), 1), vectors(model_of(name), 2)


# ---- streaming is brute force


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("name", MODELS)
def test_streamed_statistics_are_those_of_a_brute_force_pass(name: str, probe: Any) -> None:
    method = tp.SkillNeurons(probe=probe, batch_size=3)
    found = method.predictivity(model_of(name), task(name), prompts=prompts(name))
    baseline, accuracy = brute_force(model_of(name), task(name), probe, prompts(name))
    assert found.baseline.shape == baseline.shape and found.baseline.shape[:1] == (2,)
    assert found.baseline.shape[2] == (PROMPT if probe == "prompt" else 1)
    assert (found.baseline - baseline).abs().max() < 1e-6
    assert torch.equal(found.accuracy, accuracy)
    causal = probe in ("mean", "max") and not name.startswith("bert")  # words before a prompt do not see it
    assert torch.equal(accuracy[0], accuracy[1]) == causal


@pytest.mark.parametrize("probe", ["prompt", "mean"])
def test_each_two_of_several_classes_are_a_task_in_which_both_weigh_the_same(probe: Any) -> None:
    """As if the examples of each class were repeated until there are as many of both."""
    model, three = model_of("gpt2"), task("gpt2", 4, 9, 7)
    found = tp.SkillNeurons(probe=probe, batch_size=4).predictivity(model, three, prompts=prompts("gpt2")[:1])
    assert found.pairs == ((4, 7), (4, 9), (7, 9))
    counts = {len((three.discovery.train().answers == answer).nonzero()) for answer in found.classes}
    assert len(counts) > 1  # or the weights would say nothing
    splits = (three.discovery.train(), three.discovery.validation())
    with prompts("gpt2")[0].attached(model):
        seen = [activations(model, part, probe) for part in splits]
    for pair in found.pairs:
        rows = [rows_of_two(part, *pair) for part in splits]
        own = [values[:, chosen] for values, chosen in zip(seen, rows, strict=True)]
        parts = [part.rows(chosen) for part, chosen in zip(splits, rows, strict=True)]
        baseline, accuracy = told_apart(*own, *parts)
        assert (found.of(*pair).baseline[0] - baseline).abs().max() < 1e-6
        assert (found.of(*pair).accuracy[0] - accuracy).abs().max() < 1e-12


def test_a_neuron_at_its_threshold_is_not_above_it() -> None:
    """Nor by rounding: the mean of seven times 0.1 is 0.1."""
    classes, own = Classes((3, 5)), torch.tensor([0, 0, 1, 1, 1, 1, 1])
    values = torch.tensor([0.1, 0.0]).expand(7, 1, 2)
    means = ClassMeans(classes, own)
    for rows in torch.arange(7).split(2):
        means.take(0, rows, values[rows])
    counts = PairCounts(classes, own, means.baselines())
    counts.take(0, torch.arange(7), values)
    assert counts.accuracies()[0].tolist() == [[[2 / 7, 2 / 7]]]


def test_a_search_costs_one_forward_run_of_each_example_and_keeps_one_reading() -> None:
    model, labelled = model_of("gpt2"), task("gpt2")
    with counted(model) as passes:
        tp.SkillNeurons().score(model, labelled, prompts=prompts("gpt2"))
    assert passes.forward == pytest.approx(2 * 2 * 13) and passes.backward == 0
    alive: list[Any] = []

    def take(layer: int, rows: Tensor, read: Tensor) -> None:
        assert not read.requires_grad
        assert sum(one() is not None for one in alive) == 0
        alive.append(weakref.ref(read))

    with prompts("gpt2")[0].attached(model):
        read_neurons(backend_of(model), labelled.test, take, probe="prompt", layers=[0, 1], batch_size=4)
    assert len(alive) == 2 * 4


def test_logits_are_not_computed_where_the_model_can_do_without() -> None:
    model = fresh("gpt2")
    widths: list[int] = []
    model.unembed.register_forward_hook(lambda _module, _inputs, logits: widths.append(logits.shape[1]))
    tp.SkillNeurons(probe="answer").score(model, _without_prompt(task("gpt2")))
    assert all(width == 1 for width in widths)  # of a bridge, a stub of one token


def _without_prompt(labelled: Task) -> Task:
    """Prompt tokens become ordinary ones."""
    parts = [getattr(labelled.streams["main"], split) for split in ("train", "validation", "test")]
    plain = [dataclasses.replace(part, clean=dataclasses.replace(part.clean, ids=part.clean.ids % 5)) for part in parts]
    return dataclasses.replace(labelled, streams={"main": Stream(*plain)})


# ---- from accuracies to scores


def hand_made(accuracies: Tensor, classes: tuple[int, ...] = (7, 9)) -> tp.Predictivity:
    layers, width = accuracies.shape[2], accuracies.shape[4]
    sites = tp.Sites((tp.sites.Neurons(tuple(range(layers)), width),))
    return tp.Predictivity(sites, classes, torch.zeros_like(accuracies), accuracies, "prompt", {"seed": 1})


def random_accuracies(pairs: int = 1) -> Tensor:
    return torch.rand(pairs, 4, 2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_trials_and_positions_are_aggregated_as_asked() -> None:
    accuracies = random_accuracies()
    found, best = hand_made(accuracies), torch.maximum(accuracies, 1 - accuracies)[0]
    assert torch.equal(found.values(), best.amax(2).mean(0))
    assert torch.equal(found.values(aggregate="min"), best.amax(2).amin(0))
    assert torch.equal(found.values(positions=1), best[:, :, 1].mean(0))
    scores = found.scores(positions=1)
    assert scores["m1.n3"] == pytest.approx(float(found.values(positions=1)[1, 3])) and scores.provenance == {"seed": 1}
    assert scores.samples is not None and torch.allclose(scores.samples.mean(0), scores.values)
    assert found.scores(aggregate="min").samples is None
    with pytest.raises(ValueError, match="between 0 and 2, for so many were read, but is 3"):
        found.values(positions=3)


def test_the_top_of_each_sub_task_is_the_top_of_all() -> None:
    """Taking neurons by their value takes the first of each sub-task, then the second of each, and so on."""
    predictivity = (
        torch.rand(3, 2, 8, generator=torch.Generator().manual_seed(1)) / torch.tensor([1.0, 2, 4])[:, None, None]
    )
    found = best_of_pairs(predictivity)
    for layer, values in enumerate(found):
        orders = predictivity[:, layer].argsort(-1, descending=True)
        for rank in range(1, 8):
            union = set(orders[:, :rank].flatten().tolist())
            assert set(values.argsort(descending=True)[: len(union)].tolist()) == union
    assert torch.equal(best_of_pairs(predictivity[:1]), predictivity[0])
    tied = torch.tensor([[[0.5, 0.9, 0.5, 0.9]]])
    assert torch.equal(best_of_pairs(tied), tied[0])


def test_a_saved_predictivity_is_the_same_again(tmp_path: Path) -> None:
    found = tp.SkillNeurons(probe="mean").predictivity(model_of("gpt2"), task("gpt2"), prompts=prompts("gpt2"))
    found.save(tmp_path / "found.safetensors")
    again = tp.Predictivity.load(tmp_path / "found.safetensors")
    assert (again.sites, again.classes, again.probe, again.provenance) == (
        *(found.sites, found.classes, found.probe),
        found.provenance,
    )
    assert torch.equal(again.baselines, found.baselines) and torch.equal(again.accuracies, found.accuracies)
    assert again.provenance["prompts"] == [prompt.hash for prompt in prompts("gpt2")]
    assert tp.method_from(again.provenance) == tp.SkillNeurons(probe="mean")
    scores = found.scores()
    for file in ("scores.json", "scores.safetensors"):
        scores.save(tmp_path / file)
        assert torch.equal(tp.Scores.load(tmp_path / file).values, scores.values)
        assert tp.Scores.load(tmp_path / file).provenance == scores.provenance
    with pytest.raises(ValueError, match="is not a tlprune predictivity"):
        tp.Predictivity.load(tmp_path / "scores.safetensors")


def test_several_classes_have_no_single_threshold() -> None:
    found = hand_made(random_accuracies(3), (4, 7, 9))
    assert torch.equal(found.of(4, 9).accuracy, found.accuracies[1])
    assert found.scores().samples is None and torch.equal(found.values(), best_of_pairs(found.of_pairs()))
    with pytest.raises(ValueError, match=r"3 pairs\. Choose two: found\.of\(4, 7\)\.baseline"):
        found.baseline  # noqa: B018
    with pytest.raises(ValueError, match=r"\(4, 7\), \(4, 9\), \(7, 9\); but got \(9, 4\)"):
        found.of(9, 4)
    with pytest.raises(ValueError, match="needs tensors"):
        hand_made(random_accuracies(2), (4, 7, 9))


def test_settings_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, labelled = model_of("gpt2"), task("gpt2")
    found = tp.SkillNeurons().predictivity(model, labelled, prompts=prompts("gpt2"))
    method = tp.SkillNeurons(aggregate="min", positions=1, pattern="m1", neurons=5)
    scores = method.score(model, labelled, prompts=prompts("gpt2"))
    assert torch.equal(scores.values, found.values(aggregate="min", positions=1)[1].float())
    assert method.find(model, labelled, prompts=prompts("gpt2")).names == scores.top(5).names


# ---- one neuron, and the prompt alone


def test_a_neuron_is_read_out_with_its_own_threshold_and_direction() -> None:
    model, labelled = model_of("llama"), task("llama")
    found = tp.SkillNeurons().predictivity(model, labelled, prompts=prompts("llama"))
    options: dict[str, Any] = {"neurons": [f"m1.n{neuron}" for neuron in range(4)], "prompts": prompts("llama")}
    validation, every = labelled.discovery.validation(), found.predictivities[0, :, 1, :, :4]
    assert torch.allclose(tp.neuron_accuracy(model, validation, found, **options), every.amax(1).T)
    assert torch.allclose(tp.neuron_accuracy(model, validation, found, positions=1, **options), every[:, 1].T)
    accuracy = tp.neuron_accuracy(model, labelled.test, found, **options)
    for neuron in range(4):  # of both directions
        known = every[..., neuron]
        for trial, prompt in enumerate(prompts("llama")):
            with prompt.attached(model):
                values = activations(model, labelled.test, "prompt")[1, :, :, neuron]
            place = int(known[trial].argmax())
            fires = values[:, place] > found.baseline[trial, 1, place, neuron]
            right = (fires == found.for_second[0, trial, 1, place, neuron]) == (labelled.test.answers[:, 0] == 9)
            assert float(accuracy[neuron, trial]) == pytest.approx(float(right.double().mean()))
    both = found.for_second[0, :, 1, :, :4]
    assert both.any() and not both.all()


def test_activations_of_neurons_are_those_of_the_model() -> None:
    model, batch = model_of("gpt2"), task("gpt2").test
    found = tp.neuron_activations(model, batch, ["m1.n2", "m0.n5"], prompts=prompts("gpt2"), batch_size=5)
    for trial, prompt in enumerate(prompts("gpt2")):
        with prompt.attached(model):
            expected = activations(model, batch, "prompt")
        for values, (layer, number) in zip(found[:, trial], ((1, 2), (0, 5)), strict=True):
            assert torch.allclose(values, expected[layer, :, :, number], atol=1e-10)


@NEEDS_HOOKED_TRANSFORMER  # 4.x refuses stand-ins for tokenizers
def test_a_prompt_alone_is_the_prompt_without_words(monkeypatch: pytest.MonkeyPatch) -> None:
    model, labelled = model_of("gpt2"), task("gpt2")
    first, row = vocabulary_of(model), labelled.discovery.train().clean.ids[0].tolist()
    for special in ((), row[:1]):
        monkeypatch.setattr(model, "tokenizer", SimpleNamespace(all_special_ids=list(special), padding_side="right"))
        found = tp.prompt_activations(model, labelled, prompts=prompts("gpt2"), pattern="m1")
        ids = torch.tensor([[token for token in row if token >= first or token in special]])
        assert len(ids[0]) > PROMPT or not special
        empty = labelled.test.rows(torch.arange(1))
        empty = dataclasses.replace(empty, clean=tp.Tokens(ids), corrupt=tp.Tokens(ids))
        for values, prompt in zip(found, prompts("gpt2"), strict=True):
            with prompt.attached(model):
                assert torch.allclose(values, activations(model, empty, "prompt")[1:2, 0], atol=1e-10)


def test_correlation_is_one_with_what_grows_with_predictivity() -> None:
    found = hand_made(random_accuracies())
    same = found.correlation(found.predictivities[0] ** 3)
    assert same.shape == (4, 2, 3) and torch.allclose(same, torch.ones_like(same))
    assert torch.allclose(found.correlation(-found.predictivities[0]), -same)
    with pytest.raises(ValueError, match="Read the same neurons with the same prompts"):
        found.correlation(torch.zeros(1, 2, 3, 5))


# ---- what was planted


@cache
def built(seed: int = 0) -> Planted:
    return tp.planted("sentiment", seed=seed)


@pytest.mark.parametrize("seed", range(6))
def test_the_planted_neurons_are_exactly_the_top_ones(seed: int) -> None:
    one = built(seed)
    labelled, prompt = asked_by_prompt(one)
    found = {
        "prompt": tp.SkillNeurons().score(one.model, labelled, prompts=[prompt]),
        **{probe: tp.SkillNeurons(probe=probe).score(one.model, one.task) for probe in ("answer", "mean", "max")},
    }
    for scores in found.values():
        assert scores.top(threshold=0.99).names == list(one.neurons)
    assert torch.equal(found["prompt"].values, found["answer"].values)
    others = found["answer"].values[[name not in one.neurons for name in _names(found["answer"])]]
    assert len(others) == 42 and float((others > 0.6).sum()) > 3  # others know something, but not all


def _names(scores: tp.Scores) -> list[str]:
    return [scores.sites.name(index) for index in range(len(scores.sites))]


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("seed", range(3))
def test_without_the_planted_neurons_the_model_answers_by_chance_and_without_others_as_before(
    seed: int, ablation: str
) -> None:
    one = built(seed)
    replaced = tp.Zero() if ablation == "zero" else tp.Mean(one.task.discovery.train().clean)
    sites = tp.neurons(one.model)
    names = [sites.name(index) for index in range(len(sites)) if sites.name(index) not in one.neurons]
    drawn = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[: len(one.neurons)]

    def accuracy(removed: list[str]) -> float:
        kept = tp.Circuit.from_names(sites, {*names, *one.neurons} - {*removed})
        best = kept.on(one.model, ablation=replaced)(one.task.test)[:, 0].argmax(-1)
        return float((best == one.task.test.answers[:, 0]).double().mean())

    assert accuracy([]) == 1
    assert accuracy([names[index] for index in drawn]) == 1
    shares = [float((one.task.test.answers == answer).double().mean()) for answer in (10, 11)]
    assert min(shares) > 0.4 and accuracy(list(one.neurons)) in shares


# ---- what is refused


def changed(labelled: Task, split: str, change: Any) -> Task:
    stream = labelled.streams["main"]
    return dataclasses.replace(
        labelled, streams={"main": dataclasses.replace(stream, **{split: change(getattr(stream, split))})}
    )


@pytest.mark.parametrize(
    ("split", "rows", "message"),
    [
        ("train", lambda batch: batch.answers[:, 0] == 7, r"of two at least but train has .* 0 of answer 9"),
        ("validation", lambda batch: batch.answers[:, 0] == 9, r"but validation has 0 of answer 7"),
        ("train", lambda batch: torch.arange(13) < 3, r"at least 2 examples in train .* train has 2 of answer 7, 1 of"),
    ],
)
def test_splits_that_cannot_tell_classes_apart_are_refused(split: str, rows: Any, message: str) -> None:
    labelled = changed(task("gpt2"), split, lambda batch: batch.rows(rows(batch).nonzero()[:, 0]))
    with pytest.raises(ValueError, match=message):
        tp.SkillNeurons().score(model_of("gpt2"), labelled, prompts=prompts("gpt2"))


def test_tasks_without_anything_to_read_are_refused() -> None:
    model, labelled = model_of("gpt2"), task("gpt2")
    plain, given = _without_prompt(labelled), prompts("gpt2")
    with pytest.raises(ValueError, match=r"same prompt tokens \(ids from .* have none"):
        tp.SkillNeurons().score(model, plain, prompts=given)
    with pytest.raises(ValueError, match="met through their tokens"):
        tp.SkillNeurons(probe="mean").score(model, plain, prompts=given)
    with pytest.raises(ValueError, match="3 and 3 and positions is 3"):
        tp.SkillNeurons(positions=3).score(model, labelled, prompts=given)
    only = changed(labelled, "validation", lambda batch: dataclasses.replace(batch, clean=_prompt_alone(batch, model)))
    with pytest.raises(ValueError, match="but 13 of 13 have none"):
        tp.SkillNeurons(probe="max").score(model, only, prompts=given)
    fewer = changed(labelled, "train", lambda batch: dataclasses.replace(batch, clean=_shorter(batch)))
    with pytest.raises(ValueError, match="these have between 2 and 3"):
        tp.SkillNeurons().score(model, fewer, prompts=given)
    missing = changed(labelled, "train", lambda b: dataclasses.replace(b, answers=torch.full_like(b.answers, -100)))
    with pytest.raises(ValueError, match=r"each needs one answer, but those of train have 1, 13 of them missing"):
        tp.SkillNeurons().score(model, missing, prompts=given)


def _prompt_alone(batch: Batch, model: Any) -> tp.Tokens:
    mask = (batch.clean.ids >= vocabulary_of(model)).long()
    return tp.Tokens(batch.clean.ids, mask)


def _shorter(batch: Batch) -> tp.Tokens:
    ids = batch.clean.ids.clone()
    ids[0, batch.positions[0, 0]] = 1
    return tp.Tokens(ids, batch.clean.attention_mask)


def test_a_read_out_needs_what_was_measured() -> None:
    model, labelled = model_of("gpt2"), task("gpt2")
    found = tp.SkillNeurons().predictivity(model, labelled, prompts=prompts("gpt2"))
    options: dict[str, Any] = {"neurons": ["m0.n1"], "prompts": prompts("gpt2")}
    with pytest.raises(ValueError, match="thresholds for 2 prompts but got 1"):
        tp.neuron_accuracy(model, labelled.test, found, neurons=["m0.n1"], prompts=prompts("gpt2")[:1])
    with pytest.raises(ValueError, match=r"'m9\.n1' is not a neuron of these sites"):
        tp.neuron_accuracy(model, labelled.test, found, neurons=["m9.n1"], prompts=prompts("gpt2"))
    with pytest.raises(ValueError, match="between 0 and 2, for so many were read, but is 4"):
        tp.neuron_accuracy(model, labelled.test, found, positions=4, **options)
    other = dataclasses.replace(labelled.test, answers=torch.full_like(labelled.test.answers, 3))
    with pytest.raises(ValueError, match="examples of these but got none"):
        tp.neuron_accuracy(model, other, found, **options)
    with pytest.raises(ValueError, match="A list of neurons is needed"):
        tp.neuron_activations(model, other, [], prompts=prompts("gpt2"))


def test_activations_that_overflow_are_no_thresholds() -> None:
    model = fresh("gpt2")
    with torch.no_grad():
        backend_of(model).parameters()["blocks.1.mlp.b_in"][3] = torch.inf
    with pytest.raises(FloatingPointError, match="neuron in layer 1 is no finite number"):
        tp.SkillNeurons(probe="answer").score(model, _without_prompt(task("gpt2")))
