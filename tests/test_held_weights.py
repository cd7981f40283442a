"""Fine-tuning of pruned classifiers: what a circuit does not keep is exactly 0 at every step and in what is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import call, call_hf, fresh_encoder, prompts
from pruned_classifiers import half, half_of_folder, saved_classifier, zeros_where
from test_finetuning import KilledError, bert_folder, command, data_folder, plan, records, same, weights  # noqa: F401
from test_finetuning_parts import IDS, classifier, descended, state
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.cli import main
from tlprune.finetuning import FineTune, PruningPlan, finetune, prune
from tlprune.finetuning.command import splits_of
from tlprune.finetuning.cutting import cut
from tlprune.finetuning.measuring import inputs_of, loss_of
from tlprune.finetuning.parts import plain, train_part, trained_parameters
from tlprune.finetuning.plan import batches
from tlprune.finetuning.removing import circuit_hash, places_of, without
from tlprune.finetuning.training import Training
from tlprune.tasks.labelled.encoding import encode


@pytest.fixture
def pruned(plan: FineTune, bert_folder: Path, tmp_path: Path) -> FineTune:  # noqa: F811
    """A plan that starts with a classifier and half of its weights."""
    folder = saved_classifier(tmp_path / "given", bert_folder)
    half_of_folder(folder, tmp_path / "half.safetensors")
    return dataclasses.replace(plan, model=str(folder), circuit=tmp_path / "half.safetensors")


def removed_of(plan: FineTune) -> Any:  # noqa: F811
    assert plan.circuit is not None
    return places_of(tp.load(plan.model, device="cpu"), tp.Circuit.load(plan.circuit).complement)


# ---- where a circuit's weights are in Hugging Face's tensors


@pytest.mark.parametrize("name", ["bert classes", "bert number", "roberta classes", "roberta number"])
def test_an_encoder_without_weights_is_the_one_whose_own_are_zero(name: str) -> None:
    """Biases and the pooler too, which RoBERTa has in its classifier."""
    lens, tokens = fresh_encoder(name), prompts(name, padding="right")
    circuit = half(lens)
    exported, removed = without(lens, circuit)
    group: Any = circuit.sites.groups[0]
    with torch.no_grad():
        first = call(lens, tokens).clone()
        for own, kept in group.split(circuit.kept).items():
            backend_of(lens).parameters()[own].masked_fill_(kept, 0.0)
        expected = call(lens, tokens)
        assert torch.allclose(call_hf(exported, tokens).logits, expected, atol=1e-9)
    assert not torch.allclose(first, expected, atol=1e-2)
    assert sum(int(where.sum()) for where in removed.values()) == len(circuit)
    assert len(removed) == len(group.matrices) == 3 * 12 + 2
    pooler = "bert.pooler.dense" if name.startswith("bert") else "classifier.dense"
    assert {f"{pooler}.weight", f"{pooler}.bias", "classifier.weight"} & removed.keys() == {
        f"{pooler}.weight",
        f"{pooler}.bias",
    }


def test_a_circuit_of_something_else_is_refused(pruned: FineTune, bert_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    model = tp.load(pruned.model, device="cpu")
    with pytest.raises(ValueError, match=r"must be weights within blocks or of a pooler .* classifier\.W among them"):
        without(model, half(model, "blocks.0.*|classifier.W"))
    other = saved_classifier(tmp_path / "other", bert_folder, hidden_size=16)
    with torch.no_grad():
        moved = classifier("bert")
    for circuit, message in (
        (tp.Circuit.from_names(tp.heads(model), ["a0.h0"]), "weights within blocks or of a pooler but .* 8 heads"),
        (half(tp.load(other, device="cpu")), "which this model does not have"),
        (half(tp.load(bert_folder, device="cpu"), "blocks.*.W_*"), "was found on model"),
    ):
        circuit.save(tmp_path / "circuit.safetensors")
        with pytest.raises(ValueError, match=message):
            finetune(dataclasses.replace(pruned, circuit=tmp_path / "circuit.safetensors"))
    with pytest.raises(ValueError, match="does not have"):
        cut(moved, half(model))
    with pytest.raises(ValueError, match="Cannot read"):
        finetune(dataclasses.replace(pruned, circuit=tmp_path / "nowhere.safetensors"))


# ---- training


def test_removed_weights_are_zero_after_each_of_100_steps(pruned: FineTune, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under weight decay and clipping; all others of the same tensors move."""
    removed, step, seen = removed_of(pruned), Training.step, dict[int, dict[str, Tensor]]()

    def checked(self: Training) -> dict[str, Any]:
        found = step(self)
        assert zeros_where(self.own.state_dict(), removed)
        if self.done == 100:
            seen[100] = {name: value.clone() for name, value in self.own.state_dict().items()}
        return found

    monkeypatch.setattr(Training, "step", checked)
    facts = finetune(dataclasses.replace(pruned, epochs=5, weight_decay=0.1, evaluations=1))
    before = weights(Path(pruned.model))
    assert not zeros_where(before, removed)
    for name, where in removed.items():
        assert float((seen[100][name] != before[name])[~where].double().mean()) > 0.99
    circuit = tp.Circuit.load(str(pruned.circuit))
    count = len(circuit.sites) - len(circuit)
    expected = {"hash": circuit_hash(circuit), "weights": len(circuit.sites), "removed": count, "zero": count}
    assert facts["circuit"] == expected | {"sparsity": count / len(circuit.sites)}
    assert json.loads((pruned.out / "tlprune.json").read_text()) == facts
    assert facts["trained_parameters"] == sum(value.numel() for value in before.values()) - count
    assert zeros_where(weights(pruned.out), removed)
    assert float(facts["test"]["accuracy"]) > 0.8


def test_steps_are_those_of_adam_that_is_projected_after_each(pruned: FineTune, tmp_path: Path) -> None:
    """Held gradients give the same as plain Adam whose removed weights are set to 0 after every step."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    asked = PruningPlan(
        model=pruned.model, out=tmp_path / "rounds", data_dir=pruned.data_dir, dev_count=60, train_count=48,
        rate=1e-3, device="cpu", evaluations=1,
    ).stage("round-1", model=pruned.model, epochs=1, circuit=pruned.circuit)  # fmt: skip
    assert (asked.batch_size, asked.betas) == (16, (0.9, 0.99))
    finetune(asked)
    model = AutoModelForSequenceClassification.from_pretrained(pruned.model)
    tokenizer, removed = AutoTokenizer.from_pretrained(pruned.model), removed_of(pruned)
    train = splits_of(asked)["train"]
    rows = encode(tokenizer, train.prompts(), max_length=128)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    named = dict(model.named_parameters())

    @torch.no_grad()
    def project() -> None:
        for name, where in removed.items():
            named[name][where] = 0.0

    project()
    model.train()
    for number, chosen in enumerate(batches([len(row) for row in rows], 16, seed=0, epoch=0)):
        torch.manual_seed(number)
        inputs = inputs_of([rows[row] for row in chosen], tokenizer, torch.device("cpu"))
        optimiser.zero_grad()
        loss_of(model(**inputs).logits, train.rows(chosen)).backward()
        optimiser.step()
        project()
    after = weights(asked.out)
    for name, parameter in named.items():
        assert torch.allclose(after[name], parameter, atol=1e-6), name


@pytest.mark.parametrize("part", ["head", "bitfit", "lora", "ia3"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_removed_weights_stay_zero_whatever_part_is_trained(family: str, part: Any) -> None:
    """Adapters too: what is written is what was trained, without removed weights."""
    if part in ("lora", "ia3"):
        pytest.importorskip("peft")
    model = classifier(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    found = cut(model, half(tp.load(model, device="cpu")))
    whole = {name for name, where in found.removed.items() if where.any()}
    assert any(name.endswith("bias") for name in whole)
    train_part(model, part, rank=2, removed=found.removed)
    before = state(model)
    descended(model)
    built = plain(model, found.removed)
    assert zeros_where(built.state_dict(), found.removed)
    assert not same(state(model), before)
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, built(IDS).logits, atol=1e-5)
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    held = sum(int(where.sum()) for name, where in found.removed.items() if name in named)
    assert trained_parameters(model, found.removed) == sum(value.numel() for value in named.values()) - held


def dying_at(stop: int) -> Any:
    step = Training.step

    def dying(self: Training) -> dict[str, Any]:
        if self.done == stop:
            raise KilledError
        return step(self)

    return dying


def test_a_run_that_was_killed_goes_on_bit_for_bit(
    pruned: FineTune, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    pruned = dataclasses.replace(pruned, epochs=1)
    whole = finetune(dataclasses.replace(pruned, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", dying_at(12))
        with pytest.raises(KilledError):
            finetune(pruned)
    half_of_folder(Path(pruned.model), tmp_path / "other.safetensors", seed=1)
    with pytest.raises(ValueError, match=r"was written with another circuit"):
        finetune(dataclasses.replace(pruned, circuit=tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match=r"was written with another circuit"):
        finetune(dataclasses.replace(pruned, circuit=None))
    assert finetune(pruned) == whole
    assert same(weights(pruned.out), weights(tmp_path / "whole"))
    assert records(pruned.out) == records(tmp_path / "whole")


def test_without_training_only_the_removed_weights_differ(pruned: FineTune) -> None:
    facts = prune(pruned)
    removed, before, after = removed_of(pruned), weights(Path(pruned.model)), weights(pruned.out)
    for name, value in before.items():
        where = removed.get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(after[name], value.masked_fill(where, 0.0))
    assert facts["steps"] == 0 and facts["circuit"]["zero"] == facts["circuit"]["removed"] > 0
    assert {"accuracy", "loss"} <= facts["dev"].keys() & facts["test"].keys()


# ---- when it stops, and how fast it goes


def test_it_stops_when_nothing_gets_better(
    plan: FineTune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """After two measurements that are no better than the best, and also when the run was stopped between them."""
    known = {11: 0.5, 22: 0.4, 33: 0.9, 44: 0.9, 55: 0.8}
    real = Training.figures

    def figures(self: Training, split: str) -> dict[str, float]:
        return {"accuracy": known[self.done]} if split == "validation" else real(self, split)

    monkeypatch.setattr(Training, "figures", figures)
    plan = dataclasses.replace(plan, patience=2)
    facts = finetune(dataclasses.replace(plan, out=tmp_path / "whole"))
    assert (facts["steps"], facts["best_step"], facts["dev"]["accuracy"]) == (55, 33, 0.9)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", dying_at(50))
        with pytest.raises(KilledError):
            finetune(plan)
    assert finetune(plan) == facts
    assert same(weights(plan.out), weights(tmp_path / "whole"))


def test_a_rate_may_stay(plan: FineTune) -> None:  # noqa: F811
    constant = dataclasses.replace(plan, decay="none", warmup=0.5)
    assert [constant.factor(step, 4) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    for bad, message in (({"patience": 0}, "patience must be at least 1"), ({"betas": (0.9, 1.0)}, "betas must be")):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(plan, **bad)


def test_the_command_says_what_is_held(pruned: FineTune, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(pruned, "--circuit", str(pruned.circuit))) == 0
    assert f"of circuit {circuit_hash(tp.Circuit.load(str(pruned.circuit)))} are held at 0" in capsys.readouterr().out
