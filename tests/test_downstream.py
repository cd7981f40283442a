"""Fine-tuning without a subnetwork: what is removed stays 0, everyone sees the same questions, figures add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bridges import bridged
from multiple_choice import decoder, questions, tokenizer
from torch import Tensor

import tlprune as tp
from tlprune.cli import main
from tlprune.finetuning.adapting import adapt, effective_weights
from tlprune.finetuning.choice_training import choice_training, new_chooser
from tlprune.finetuning.choosing import encode_choices, likelihoods_on, scores_of, scores_on
from tlprune.finetuning.removing import without
from tlprune.finetuning.training import Training
from tlprune.knowledge.baselines import knowledge_baseline
from tlprune.knowledge.downstream import ANSWERS, downstream
from tlprune.knowledge.downstream_plan import VARIANTS, DownstreamPlan
from tlprune.knowledge.downstream_result import Answers, Downstream
from tlprune.tasks.questions import Questions, divided_questions

CPU = torch.device("cpu")
PLAN = DownstreamPlan(
    ways=("head",), seeds=(0,), train_count=48, dev_count=20, test_count=30, epochs=2, batch_size=8, device="cpu"
)


@pytest.fixture(scope="module")
def model() -> Any:
    return decoder()


def circuit_of(model: Any, *, unit: Any = "weight", share: float = 0.3) -> tp.Circuit:
    sites = tp.weights(model, "blocks.1.*.W_*", unit=unit)
    return tp.Circuit(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) < share)


def trained(model: Any, way: Any, removed_weights: Any, folder: Path, *, steps: int = 5) -> tuple[Any, dict, dict]:
    """The model after some steps, where weights were removed, and the trunk's parameters before."""
    exported, removed = without(model, circuit_of(model))
    removed = {name.removeprefix("transformer."): where for name, where in removed.items()}
    chooser = new_chooser(exported, seed=0)
    before = {name: value.detach().clone() for name, value in chooser.trunk.named_parameters()}
    torch.manual_seed(0)
    adapt(chooser, removed, trained=way, removed_weights=removed_weights)
    splits = divided_questions(questions(90), train_count=None, validation_count=20, test_count=30, seed=0)
    plan = replace(PLAN, rate=1e-2).fine_tune(way, 0, folder)
    training = choice_training(chooser, tokenizer(), splits, plan)
    for _ in range(steps):
        training.step()
    return chooser, removed, before


# ---- what is read


def test_scores_are_those_of_each_choice_alone(model: Any) -> None:
    """One at a time and without padding, read at the last token."""
    chooser = new_chooser(without(model, None)[0], seed=1).eval()
    asked = questions(12)
    found = scores_on(chooser, encode_choices(tokenizer(), asked, max_length=24), tokenizer(), device=CPU)
    for row, (text, choices) in enumerate(zip(asked.texts, asked.choices, strict=True)):
        for place, choice in enumerate(choices):
            ids = torch.tensor([tokenizer()(f"{text} {choice}")["input_ids"]])
            state = chooser.trunk(ids).last_hidden_state[0, -1]
            assert float(found[row, place]) == pytest.approx((state @ chooser.head.weight[0]).item(), abs=1e-5)
        assert bool((found[row, len(choices) :] == -torch.inf).all())
    assert {len(choices) for choices in asked.choices} == {3, 4}
    assert chooser.training is False


def test_likelihoods_are_means_over_the_choices_tokens(model: Any) -> None:
    exported, _ = without(model, None)
    asked = Questions("mine", ("which is red ?", "then"), (("ball", "box and cup"), ("hat key", "moon")), (0, 1))
    found = likelihoods_on(exported, encode_choices(tokenizer(), asked, max_length=24), tokenizer(), device=CPU)
    for row, (text, choices) in enumerate(zip(asked.texts, asked.choices, strict=True)):
        for place, choice in enumerate(choices):
            question, own = (tokenizer()(words)["input_ids"] for words in (text, choice))
            logs = exported(torch.tensor([question + own])).logits[0].log_softmax(-1)
            told = [float(logs[len(question) + n - 1, token].detach()) for n, token in enumerate(own)]
            assert float(found[row, place]) == pytest.approx(sum(told) / len(told), abs=1e-5)


def test_long_questions_lose_their_beginning_and_no_choice() -> None:
    asked = Questions("mine", ("which is red ?",), (("ball", "box and cup"),), (0,))
    (row,) = encode_choices(tokenizer(), asked, max_length=4)
    words = [tokenizer().convert_ids_to_tokens(ids) for ids in row.ids]
    assert words == [["is", "red", "?", "ball"], ["?", "box", "and", "cup"]]
    assert row.starts == (3, 1)
    with pytest.raises(ValueError, match="'box and cup' takes 3 and none is left"):
        encode_choices(tokenizer(), asked, max_length=3)


# ---- what is removed


@pytest.mark.parametrize("unit", ["weight", "row", "column"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_the_exported_model_is_the_masked_one(kind: str, unit: Any) -> None:
    lens = bridged(kind)
    circuit = circuit_of(lens, unit=unit)
    exported, removed = without(lens, circuit)
    tokens = torch.randint(29, (2, 7), generator=torch.Generator().manual_seed(0))
    expected = tp.Masked(lens, circuit.complement, tp.Zero())(tokens)
    assert torch.allclose(exported(tokens).logits, expected, atol=1e-5)
    assert not torch.allclose(expected, lens(tokens), atol=1e-2)
    assert sum(int(where.sum()) for where in removed.values()) == tp.structure(circuit, draws=1).whole.kept


def test_what_is_not_within_blocks_or_of_this_model_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="must be weights within blocks"):
        without(model, tp.Circuit.from_names(tp.weights(model, "embed.W_E"), ["embed.W_E[0,0]"]))
    with pytest.raises(ValueError, match="must be weights within blocks"):
        without(model, tp.Circuit.from_names(tp.heads(model), ["a0.h0"]))
    other = circuit_of(bridged("llama"))
    with pytest.raises(ValueError, match=r"blocks\.1"):
        without(model, other)


def test_held_weights_are_exactly_zero_after_steps_and_free_ones_return(model: Any, tmp_path: Path) -> None:
    for removed_weights in ("held", "free"):
        chooser, removed, before = trained(model, "full", removed_weights, tmp_path)
        after = dict(chooser.trunk.named_parameters())
        for name, where in removed.items():
            moved = (after[name] != before[name])[~where].double().mean()
            assert float(moved) > 0.99
            assert bool((before[name][where] == 0).all())
            zero = (after[name][where] == 0).double().mean()
            assert zero == 1 if removed_weights == "held" else zero < 0.01
    assert len(removed) == 4


def test_a_head_moves_nothing_else(model: Any, tmp_path: Path) -> None:
    chooser, _, before = trained(model, "head", "free", tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in chooser.trunk.named_parameters())
    assert not torch.equal(chooser.head.weight, new_chooser(without(model, None)[0], seed=0).head.weight)


def test_held_gradients_count_for_nothing_in_the_clipped_norm(model: Any) -> None:
    exported, removed = without(model, circuit_of(model))
    removed = {name.removeprefix("transformer."): where for name, where in removed.items()}
    chooser = new_chooser(exported, seed=0)
    adapt(chooser, removed, trained="full", removed_weights="held")
    rows = encode_choices(tokenizer(), questions(4), max_length=24)
    scores_of(chooser, rows, tokenizer(), CPU).exp().sum().backward()
    for name, parameter in chooser.trunk.named_parameters():
        if name in removed:
            assert bool((parameter.grad[removed[name]] == 0).all())
            assert bool((parameter.grad[~removed[name]] != 0).any())


@pytest.mark.parametrize("removed_weights", ["held", "free"])
def test_updates_leave_held_weights_out(model: Any, removed_weights: Any, tmp_path: Path) -> None:
    """The adapted model equals one whose matrices are those with the update built in."""
    pytest.importorskip("peft")
    chooser, removed, before = trained(model, "lora", removed_weights, tmp_path)
    matrices = effective_weights(chooser, removed if removed_weights == "held" else {})
    for name, where in removed.items():
        zero = (matrices[name][where] == 0).double().mean()
        assert zero == 1 if removed_weights == "held" else zero < 0.01
        assert (matrices[name] != before[name])[~where].double().mean() > 0.99
    plain = new_chooser(without(model, None)[0], seed=0)
    plain.trunk.load_state_dict({**before, **matrices}, strict=False)
    plain.head.load_state_dict(chooser.head.state_dict())
    rows = encode_choices(tokenizer(), questions(5), max_length=24)
    found, expected = (scores_on(one, rows, tokenizer(), device=CPU) for one in (chooser, plain))
    assert torch.allclose(found, expected, atol=1e-5)


def test_updates_without_peft_say_what_to_install(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tlprune\[lora\]'"):
        adapt(new_chooser(without(model, None)[0], seed=0), {}, trained="lora", removed_weights="held")


# ---- the comparison


def test_a_random_removal_has_as_many_of_each_matrix(model: Any) -> None:
    circuit = circuit_of(model)
    group, other = circuit.sites.groups[0], knowledge_baseline(model, circuit, seed=1)
    counts = [[int(part.sum()) for part in one.kept.split(group.sizes)] for one in (circuit, other)]
    assert counts[0] == counts[1]
    assert other != circuit
    assert other != knowledge_baseline(model, circuit, seed=2)
    assert other == knowledge_baseline(model, circuit, seed=1)


def test_models_learn_and_are_asked_the_same(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    descend = Training._descend
    monkeypatch.setattr(Training, "_descend", lambda self, rows: (seen.append(rows), descend(self, rows))[1])
    plan = replace(PLAN, ways=("likelihood", "full"), rate=1e-2, epochs=3)
    state = torch.random.get_rng_state()
    found = downstream(model, circuit_of(model), questions(120), plan, out=tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(found.accuracy("full", variant).value > 0.9 for variant in VARIANTS)
    assert found.accuracy("likelihood", "whole").value < 0.9
    assert seen[:18] == seen[18:36] == seen[36:]
    assert len({tuple(rows) for rows in seen}) == 18
    again = downstream(model, circuit_of(model), questions(120), plan, out=tmp_path)
    assert again == found
    assert len(seen) == 54, "what is finished is not done again"
    assert not [*tmp_path.rglob("*.safetensors")]
    with pytest.raises(ValueError, match=r"another circuit \("):
        downstream(model, circuit_of(model, share=0.2), questions(120), plan, out=tmp_path)
    with pytest.raises(ValueError, match=r"another rate \("):
        downstream(model, circuit_of(model), questions(120), replace(plan, rate=1e-3), out=tmp_path)


def test_a_stopped_run_goes_on_and_answers_the_same(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, ways=("full",), rate=1e-3, checkpoint_every=4)
    whole = downstream(model, circuit_of(model), questions(120), plan, out=tmp_path / "whole")
    step = Training.step

    def stopping(self: Training) -> Any:
        if self.done == 9:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Training, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        downstream(model, circuit_of(model), questions(120), plan, out=tmp_path / "parts")
    monkeypatch.setattr(Training, "step", step)
    assert downstream(model, circuit_of(model), questions(120), plan, out=tmp_path / "parts") == whole
    lines = [(tmp_path / part / "full-whole-0" / "metrics.jsonl").read_text() for part in ("whole", "parts")]
    assert lines[0] == lines[1]


def figures() -> Downstream:
    generator = torch.Generator().manual_seed(0)

    def right(share: float) -> tuple[bool, ...]:
        return tuple((torch.rand(40, generator=generator) < share).tolist())

    shares: dict[Any, float] = {"whole": 0.9, "without": 0.2, "random": 0.9}
    runs = [Answers("head", one, seed, right(share)) for seed in (0, 1) for one, share in shares.items()]
    return Downstream(tuple(runs), "held", 5, 100, 0.25)


def test_figures_are_paired_by_question() -> None:
    found = figures()

    def mean(variant: str) -> Tensor:
        return torch.tensor([one.right for one in found.answers if one.variant == variant]).double().mean(0)

    difference = found.difference("head", "without", "whole")
    assert difference.value == pytest.approx(float((mean("without") - mean("whole")).mean()))
    assert difference.sign == -1
    assert found.difference("head", "random", "whole").sign == 0
    p = found.p_values()
    assert p["head", "without", "whole"] < 0.001
    assert p["head", "random", "whole"] > 0.1
    assert found.seeds("head", "whole") == [sum(one.right) / 40 for one in found.answers if one.variant == "whole"]
    data = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (data["questions"], len(data["accuracy"]), len(data["differences"])) == (40, 3, 3)
    assert "head, without the subnetwork less the whole model" in str(found)
    bars = found.plot().data
    assert [bar.y[0] for bar in bars] == [found.accuracy("head", one).value for one in VARIANTS]
    with pytest.raises(ValueError, match="'lora'"):
        found.shares("lora", "whole")


@pytest.mark.parametrize("wrong", [{"ways": ()}, {"ways": ("head", "head")}, {"seeds": ()}, {"seeds": (1, 1)}])
def test_plans_that_say_nothing_sensible_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must name one or more, each once"):
        replace(PLAN, **wrong)


# ---- the commands


def test_the_commands_write_what_they_find(
    model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlprune.knowledge.commands.saved.load", lambda name, device: {"mine": model}[name])
    circuit = circuit_of(model)
    circuit.save(tmp_path / "circuit.safetensors")
    assert main(["knowledge", "structure", str(tmp_path)]) == 0
    assert "layer 1" in capsys.readouterr().out
    assert json.loads((tmp_path / "structure.json").read_text())["whole"]["kept"] == len(circuit)
    assert (tmp_path / "structure.html").exists()
    rows = zip(*(getattr(questions(80), name) for name in ("texts", "choices", "labels")), strict=True)
    lines = [json.dumps({"question": text, "choices": choices, "answer": label}) for text, choices, label in rows]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    words = ["knowledge", "finetune", str(tmp_path), "--questions", str(tmp_path / "questions.jsonl"), "--ways", "head"]
    words += ["--seeds", "0", "--train-count", "16", "--dev-count", "10", "--test-count", "20", "--epochs", "1"]
    words += ["--device", "cpu"]
    assert main(words) == 2
    assert "does not say which model" in capsys.readouterr().err
    assert main([*words, "--model", "mine"]) == 0
    assert "head, without the subnetwork" in capsys.readouterr().out
    assert json.loads((tmp_path / "downstream" / "downstream.json").read_text())["questions"] == 20
    assert (tmp_path / "downstream" / "head-random-0" / ANSWERS).exists()
    other = tmp_path / "test.jsonl"
    other.write_text("\n".join(lines[:7]))
    asked = [*words, "--model", "mine", "--test", str(other), "--out", str(tmp_path / "other")]
    assert main(asked) == 0
    assert json.loads((tmp_path / "other" / "downstream.json").read_text())["questions"] == 7
    assert main(["knowledge", "structure", str(tmp_path / "downstream")]) == 2
    assert "has neither" in capsys.readouterr().err
