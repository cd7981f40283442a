"""Pruning to skill neurons: a small model that is the masked one, with exactly the others gone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import LENGTH, hf_model_of
from hooked import NEEDS_HOOKED_TRANSFORMER
from huggingface_models import kept_model
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.prompting import embedded_tokens
from tlprune.models.modeling_shrunk import FAMILIES, axis_of, layers_of
from tlprune.sites import Neurons, Sites
from tlprune.skills.pruning import skill_circuit
from tlprune.studies.shrinkage import outputs
from tlprune.task import MAIN, Batch, Stream, Task, Tokenisation

pytestmark = NEEDS_HOOKED_TRANSFORMER
NAMES = ("bert words", "roberta words", "gpt2", "neox", "llama", "qwen2", "gemma")


def model_of(name: str) -> Any:
    theirs = hf_model_of(name) if " " in name else kept_model(name)
    return tp.from_huggingface(theirs, device="cpu")


def batch_of(name: str, count: int, seed: int) -> Batch:
    """Prompts of 7, 5 and 3 tokens whose answer is read at the last one, or at the first in encoders."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 29, (count, LENGTH), generator=generator)
    lengths = LENGTH - 2 * (torch.arange(count) % 3)[:, None]
    mask = (torch.arange(LENGTH) < lengths).long()
    ids = ids.masked_fill(mask == 0, 1 if name.startswith("roberta") else 0)
    positions = torch.zeros_like(lengths) if " " in name else lengths - 1
    answers = torch.randint(3, 29, (count, 1), generator=generator)
    return Batch(torch.arange(count), tp.Tokens(ids, mask), tp.Tokens(ids, mask), positions, answers, answers - 1)


def task_of(name: str, **metrics: Any) -> Task:
    batches = [batch_of(name, count, seed) for seed, count in enumerate((6, 3, 5))]
    return Task("skill", {MAIN: Stream(*batches)}, Tokenisation(False), metrics=metrics)


def scores_of(model: Any, seed: int = 0) -> tp.Scores:
    sites = tp.neurons(model)
    return tp.Scores(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(seed)))


def widths(small: Any) -> list[int]:
    """Neurons of each layer, counted on its output weights: a model of equal layers is of the stock class."""
    outer = FAMILIES[small.config.model_type].outer[1]
    linears = [layer.get_submodule(outer.path) for layer in layers_of(small)]
    return [linear.weight.shape[axis_of(linear, of_outputs=False)] for linear in linears]


@torch.no_grad()
def means_by_hand(model: Any, batch: Batch) -> list[Tensor]:
    """Of each layer's neurons, prompt by prompt without padding, from what enters the MLP's last matrix."""
    seen: list[list[Tensor]] = [[] for _ in model.blocks]
    hooks = [
        block.mlp.hook_post.register_forward_hook(lambda _module, _inputs, value, own=own: own.append(value[0]))
        for block, own in zip(model.blocks, seen, strict=True)
    ]
    try:
        for ids, length in zip(batch.clean.ids, batch.clean.lengths.tolist(), strict=True):
            model(ids[None, :length])
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(values).mean(0) for values in seen]


@pytest.mark.parametrize("name", NAMES)
def test_the_small_model_is_the_masked_one(name: str) -> None:
    """Encoders that predict words and decoders, gated MLPs and those without biases."""
    model, task = model_of(name), task_of(name)
    found = tp.skill_pruned(model, task, scores_of(model), keep=0.2, layers=range(model.cfg.n_layers))
    masked = tp.Masked(model, found.circuit, found.means)
    expected = masked(task.test)
    assert float((backend_of(found.model).logits(task.test.clean, task.test.positions) - expected).abs().max()) < 1e-5
    with torch.no_grad():
        own = outputs(found.small, task.test, predicts="tokens")
    assert float((own - expected).abs().max()) < 1e-5 and found.saved.difference < 1e-5
    assert float((backend_of(model).logits(task.test.clean, task.test.positions) - expected).abs().max()) > 1e-3
    assert backend_of(found.model).predicts == "tokens"
    width = model.cfg.d_mlp
    assert widths(found.small) == [int(0.2 * width)] * model.cfg.n_layers
    matrices = 3 if name in ("llama", "qwen2", "gemma") else 2
    biases = 0 if matrices == 3 else 1  # of the neurons themselves
    gone = model.cfg.n_layers * (width - int(0.2 * width)) * (matrices * model.cfg.d_model + biases)
    added = model.cfg.n_layers * model.cfg.d_model * (matrices == 3)
    assert found.saved.whole.parameters - found.saved.small.parameters == gone - added


@pytest.mark.parametrize("name", ["bert words", "gpt2", "llama"])
def test_means_of_what_goes_are_in_the_bias_and_those_of_what_stays_are_not(name: str) -> None:
    """``b' = b + W z`` over the neurons that go, with means over real tokens of the training prompts alone."""
    model, task = model_of(name), task_of(name)
    found = tp.skill_pruned(model, task, scores_of(model), keep=0.2, layers=[1])
    by_hand = means_by_hand(model, task.discovery.train())
    gone = ~found.circuit.kept.view(model.cfg.n_layers, -1)[1]
    before, after = model.blocks[1].mlp, found.model.blocks[1].mlp
    expected = before.b_out + (by_hand[1] * gone) @ before.W_out
    torch.testing.assert_close(after.b_out, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(after.W_out.any(1), ~gone)
    for layer, mean in enumerate(by_hand):
        torch.testing.assert_close(found.means.activations.neurons[layer].flatten(), mean, atol=1e-6, rtol=1e-5)
    assert torch.equal(found.model.blocks[0].mlp.b_out, model.blocks[0].mlp.b_out)


def test_the_first_quarter_of_the_layers_is_left_and_counts_are_rounded_down() -> None:
    sites = Sites((Neurons(tuple(range(12)), 3072),))
    scores = tp.Scores(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(0)))
    circuit = skill_circuit(scores)
    kept = circuit.kept.view(12, 3072)
    assert kept.sum(1).tolist() == [3072] * 3 + [61] * 9
    values = scores.values.view(12, 3072)
    assert all(values[layer][kept[layer]].min() > values[layer][~kept[layer]].max() for layer in range(3, 12))
    ties = tp.Scores(Sites((Neurons((4,), 5),)), torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0]))
    assert skill_circuit(ties, keep=0.4).names == ["m4.n1", "m4.n2"]
    assert skill_circuit(ties, keep=0.0).names == [] and len(skill_circuit(ties, keep=1.0)) == 5


def test_all_neurons_of_a_layer_may_go() -> None:
    model, task = model_of("llama"), task_of("llama")
    found = tp.skill_pruned(model, task, scores_of(model), keep=0.0, layers=[1])
    assert [len(layer.neurons) for layer in found.small.sizes] == [40, 0] and found.neurons == {0: 40, 1: 0}
    assert found.saved.difference < 1e-5


@pytest.mark.parametrize("name", ["bert words", "gpt2", "llama"])
def test_what_is_saved_is_read_again(name: str, tmp_path: Path) -> None:
    model, task = model_of(name), task_of(name)
    found = tp.skill_pruned(model, task, scores_of(model), keep=0.3, layers=[1], rounds=1)
    found.save(tmp_path / "pruned")
    lens = tp.load(tmp_path / "pruned" / "model", device="cpu", dtype=torch.float64)
    small = tp.load_shrunk(tmp_path / "pruned" / "model", device="cpu", dtype=torch.float64)
    with torch.no_grad():
        again, own = (outputs(one, task.test, predicts="tokens") for one in (small, found.small))
    assert float((again - own).abs().max()) < 1e-12 and widths(small) == widths(found.small)
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in found.small.state_dict().items())
    logits = [backend_of(one).logits(task.test.clean, task.test.positions) for one in (lens, found.model)]
    assert torch.equal(*logits)
    assert tp.Circuit.load(tmp_path / "pruned" / "circuit.json") == found.circuit
    means = tp.MeasuredMean.load(tmp_path / "pruned" / "means.safetensors", reference=task.discovery.train().clean)
    assert torch.equal(*(tp.Masked(model, found.circuit, one)(task.test) for one in (means, found.means)))
    facts = json.loads((tmp_path / "pruned" / "skill-pruning.json").read_text())
    assert facts == json.loads(json.dumps(found.as_dict()))
    assert facts["saved"]["speed"]["rounds"] == 1 and facts["neurons"]["1"] == int(0.3 * model.cfg.d_mlp)
    assert facts["provenance"]["layers"] == [1]


def test_figures_are_of_the_test_and_before_and_after_are_compared_on_the_same_examples() -> None:
    def word_accuracy(logits: Tensor, batch: Batch, _reference: Tensor) -> Tensor:
        """Even examples are right, odd ones where neurons are gone."""
        return (batch.index % 2 == 0).float() + (batch.index % 2 == 1) * (logits[:, 0, 0] > bound)

    model, task = model_of("gpt2"), task_of("gpt2")
    bound = torch.inf
    found = tp.skill_pruned(model, task_of("gpt2", word_accuracy=word_accuracy), scores_of(model), layers=[1, 2])
    assert found.correct["whole"].tolist() == [[1.0, 0.0, 1.0, 0.0, 1.0]]
    assert found.accuracy["pruned"].value == pytest.approx(0.6) and found.change["pruned"].value == 0
    assert found.accuracy["pruned"].low < 0.6 < found.accuracy["pruned"].high
    assert (found.change["pruned"].low, found.change["pruned"].high) == (0.0, 0.0)
    assert "5 test examples, 1 trial;" in str(found) and "+0.0%" in str(found)
    plain = tp.skill_pruned(model, task, scores_of(model), layers=[1, 2])
    logits = backend_of(model).logits(task.test.clean, task.test.positions)
    assert plain.correct["whole"][0].tolist() == (logits.argmax(-1) == task.test.answers)[:, 0].float().tolist()


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tp.skill_pruned(model, task_of("llama"), scores_of(model), layers=[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- soft prompts


def prompted_task(name: str, model: Any) -> Task:
    """Three prompt tokens, in front of a padded text in encoders, else behind one."""
    own = torch.arange(3) + embedded_tokens(backend_of(model).embedding)

    def prompted(batch: Batch) -> Batch:
        parts = [own.expand(len(batch), -1), batch.clean.ids if " " in name else batch.clean.ids[:, :3]]
        there = torch.ones(len(batch), 3, dtype=torch.long)
        assert batch.clean.attention_mask is not None
        if " " in name:
            tokens = tp.Tokens(torch.cat(parts, 1), torch.cat([there, batch.clean.attention_mask], 1))
        else:
            tokens = tp.Tokens(torch.cat(parts[::-1], 1))
        positions = torch.full((len(batch), 1), 0 if " " in name else 5)
        return dataclasses.replace(batch, clean=tokens, corrupt=tokens, positions=positions)

    plain = task_of(name).streams[MAIN]
    splits = [prompted(getattr(plain, split)) for split in ("train", "validation", "test")]
    return Task("skill", {MAIN: Stream(*splits)}, Tokenisation(False))


def prompts_of(name: str, model: Any, count: int) -> list[tp.Prompt]:
    generator = torch.Generator().manual_seed(4)
    shape = (3, model.cfg.d_model)
    place = "start" if " " in name else "end"
    return [tp.Prompt(torch.randn(shape, generator=generator, dtype=torch.float64), place) for _ in range(count)]


class Tuning:
    """Doubles a prompt, and remembers which models it was for."""

    def __init__(self) -> None:
        self.models = list[Any]()

    def tune(self, model: Any, task: Any, *, prompt: Any) -> Any:
        self.models.append(model)
        return tp.Prompt(2 * prompt.vectors, prompt.place, record={"made": "doubled"})


@pytest.mark.parametrize("name", ["bert words", "roberta words", "gpt2", "llama", "gemma"])
def test_a_prompt_attaches_to_the_small_model_as_to_the_masked_one(name: str) -> None:
    model = model_of(name)
    task, (prompt,) = prompted_task(name, model), prompts_of(name, model, 1)
    found = tp.skill_pruned(model, task, scores_of(model), prompts=[prompt], keep=0.2, layers=[1], rounds=1)
    with prompt.attached(model):
        expected = tp.Masked(model, found.circuit, found.means)(task.test)
    with prompt.attached(found.model):
        own = backend_of(found.model).logits(task.test.clean, task.test.positions)
    assert float((own - expected).abs().max()) < 1e-5 and found.saved.difference < 1e-5
    with torch.no_grad():
        small = outputs(found.small, task.test, predicts="tokens", vectors=prompt.vectors)
        other = outputs(found.small, task.test, predicts="tokens", vectors=prompt.vectors.flip(0))
    assert float((small - expected).abs().max()) < 1e-5
    assert float((other - expected).abs().max()) > 1e-3
    assert found.means.origin["attached"] == [prompt.hash]
    with pytest.raises(ValueError, match="soft prompt"):
        tp.skill_pruned(model, task, scores_of(model), keep=0.2, layers=[1])


def test_several_prompts_share_a_model_whose_means_are_over_all_and_are_tuned_again(tmp_path: Path) -> None:
    model = model_of("gpt2")
    task, prompts, tuning = prompted_task("gpt2", model), prompts_of("gpt2", model, 2), Tuning()
    found = tp.skill_pruned(model, task, scores_of(model), prompts=prompts, keep=0.2, tuning=tuning)
    by_hand = []
    for prompt in prompts:
        with prompt.attached(model):
            by_hand.append(means_by_hand(model, task.discovery.train()))
    for layer, both in enumerate(zip(*by_hand, strict=True)):
        assert not torch.allclose(*both, atol=1e-3)
        mean = found.means.activations.neurons[layer].flatten()
        torch.testing.assert_close(mean, torch.stack(both).mean(0), atol=1e-6, rtol=1e-5)
    assert tuning.models == [found.model] * 2
    assert {name: right.shape for name, right in found.correct.items()} == dict.fromkeys(
        ("whole", "pruned", "retuned"), (2, 5)
    )
    for stage, lens, own in (("pruned", found.model, prompts), ("retuned", found.model, found.retuned)):
        for prompt, right in zip(own, found.correct[stage], strict=True):
            with prompt.attached(lens):
                logits = backend_of(lens).logits(task.test.clean, task.test.positions)
            assert (logits.argmax(-1) == task.test.answers)[:, 0].float().tolist() == right.tolist()
    found.save(tmp_path)
    assert [tp.Prompt.load(tmp_path / "retuned" / str(n)).hash for n in range(2)] == [p.hash for p in found.retuned]
    assert tp.Prompt.load(tmp_path / "prompts" / "1").hash == prompts[1].hash


def test_bad_input() -> None:
    model, task = model_of("gpt2"), task_of("gpt2")
    scores = scores_of(model)
    with pytest.raises(ValueError, match="lies between 0 and 1 but is 2"):
        tp.skill_pruned(model, task, scores, keep=2)
    with pytest.raises(ValueError, match="layers that have scores, 0, 1, 2, but layers 1, 3"):
        tp.skill_pruned(model, task, scores, layers=[1, 3])
    with pytest.raises(ValueError, match="but layers none"):
        tp.skill_pruned(model, task, scores, layers=[])
    heads = tp.heads(model)
    with pytest.raises(ValueError, match=r"needs scores of neurons, .* as tp.SkillNeurons does"):
        tp.skill_pruned(model, task, tp.Scores(heads, torch.zeros(len(heads))))
    with pytest.raises(ValueError, match="prompts to start from but there are none"):
        tp.skill_pruned(model, task, scores, tuning=Tuning())
    other = scores_of(model_of("llama"))
    with pytest.raises(ValueError, match="neurons"):
        tp.skill_pruned(model, task, other)
