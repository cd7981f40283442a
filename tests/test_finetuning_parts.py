"""Fine-tuning of a part: exactly that part moves, and what is written is a plain model with the same outputs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_finetuning import KilledError, bert_folder, command, data_folder, plan, records, same, weights  # noqa: F401
from torch import Tensor

import tlprune as tp
from tlprune.cli import main
from tlprune.finetuning import FineTune, finetune
from tlprune.finetuning.command import METRICS
from tlprune.finetuning.parts import plain, train_part, trained_parameters
from tlprune.finetuning.plan import RATES
from tlprune.finetuning.training import CHECKPOINT, Training
from tlprune.models.transformer_lens import has_hooked_transformer

IDS = torch.tensor([[3, 5, 7, 2], [4, 4, 8, 1]])
SHAPE = {"intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 12}
FAMILIES = {
    "bert": ("Bert", SHAPE),
    "roberta": ("Roberta", SHAPE),
    "gpt2": ("GPT2", {"n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 16, "pad_token_id": 0}),
    "llama": ("Llama", SHAPE | {"pad_token_id": 0}),
}
NORMS = ("LayerNorm", "layernorm", ".ln_")


def classifier(family: str) -> Any:
    name, shape = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(vocab_size=20, num_labels=3, **shape)
        return getattr(transformers, f"{name}ForSequenceClassification")(config).eval()


def descended(model: Any, steps: int = 3) -> Any:
    """After some steps of AdamW, which decays whatever collects gradients."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(IDS).logits, torch.tensor([0, 2])).backward()
        optimiser.step()
    return model


def changed(model: Any, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_bitfit_changes_biases_and_the_head_and_nothing_else(family: str) -> None:
    """But for biases without a gradient: one that is added to all keys cancels in the softmax."""
    model = classifier(family)
    before, heads = state(model), ("classifier.", "score.")
    train_part(model, "bitfit")
    moved = changed(descended(model), before)
    may = {name for name in before if name.endswith("bias") or name.startswith(heads)}
    assert moved <= may
    assert {name for name in may - moved if not name.endswith("key.bias")} == set()
    named = dict(model.named_parameters())
    assert trained_parameters(model) == sum(named[name].numel() for name in may)


def test_the_head_alone_and_what_the_checkpoint_lacks() -> None:
    model = classifier("bert")
    before = state(model)
    train_part(model, "head", new={"bert.pooler.dense.weight"})
    found = changed(descended(model), before)
    assert found == {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight"}


@pytest.mark.parametrize("part", ["lora", "ia3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_say_nothing_at_first_and_are_built_in_at_the_end(family: str, part: Any) -> None:
    pytest.importorskip("peft")
    model = classifier(family)
    before = state(model)
    with torch.no_grad():
        first = model(IDS).logits
        train_part(model, part, rank=2)
        assert torch.allclose(model(IDS).logits, first, atol=1e-6)
    descended(model)
    kept, built = state(model), plain(model)
    with torch.no_grad():
        adapted, merged = model(IDS).logits, built(IDS).logits
    assert torch.allclose(adapted, merged, atol=1e-5) and not torch.allclose(adapted, first, atol=1e-2)
    assert same(state(model), kept), "the model under way stays as it is"
    assert type(built) is type(classifier(family)) and built.state_dict().keys() == before.keys()
    moved = {name for name in changed(built, before) if not name.startswith(("classifier.", "score."))}
    blocks = ("encoder.layer.", "transformer.h.", "model.layers.")
    assert moved and all(any(block in name for block in blocks) for name in moved)
    assert not any(norm in name for name in moved for norm in NORMS)
    if part == "ia3":
        assert not any("query" in name or "intermediate" in name for name in moved)
    matrices = {name for name in before if any(block in name for block in blocks) and before[name].dim() == 2}
    assert part == "ia3" or moved == matrices
    assert plain(built) is built


def test_the_rank_and_the_scale_of_updates() -> None:
    """``2 B A`` of the asked rank, whatever that is."""
    pytest.importorskip("peft")
    for rank in (1, 3):
        model = classifier("bert")
        before = state(model)["bert.encoder.layer.0.attention.self.query.weight"]
        train_part(model, "lora", rank=rank)
        layer = descended(model).bert.encoder.layer[0].attention.self.query
        update = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        found = plain(model).bert.encoder.layer[0].attention.self.query.weight
        assert torch.allclose(found - before, update, atol=1e-6) and torch.linalg.matrix_rank(update) == rank


def test_a_part_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="BitFit trains biases but a LlamaModel has none"):
        train_part(classifier("llama"), "bitfit")
    model = classifier("bert")
    model.config.model_type = "unheard-of"
    with pytest.raises(ValueError, match="IA3 goes where peft knows keys, values and MLPs, but a unheard-of"):
        train_part(model, "ia3")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tlprune\[lora\]'"):
        train_part(classifier("bert"), "lora")


# ---- the whole of a fine-tuning


def small(plan: FineTune, part: Any, **changes: Any) -> FineTune:  # noqa: F811
    return dataclasses.replace(plan, trained=part, rate=None, train_count=96, epochs=1, **changes)


@pytest.mark.parametrize("part", ["bitfit", "lora"])
def test_a_run_that_was_killed_goes_on_bit_for_bit(
    plan: FineTune,  # noqa: F811
    part: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = small(plan, part, checkpoint_every=2)
    whole = finetune(dataclasses.replace(plan, out=tmp_path / "whole"))
    step = Training.step

    def dying(self: Training) -> dict[str, Any]:
        if self.done == 5:
            raise KilledError
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", dying)
        with pytest.raises(KilledError):
            finetune(plan)
    assert (plan.out / CHECKPOINT).exists()
    with pytest.raises(ValueError, match=r"was written with another .*trained"):
        finetune(dataclasses.replace(plan, trained="head", rate=plan.highest_rate))
    assert finetune(plan) == whole
    assert same(weights(plan.out), weights(tmp_path / "whole"))
    assert records(plan.out) == records(tmp_path / "whole")


def test_bitfit_writes_the_matrices_that_it_was_given(plan: FineTune, bert_folder: Path) -> None:  # noqa: F811
    facts = finetune(small(plan, "bitfit"))
    before, after = weights(bert_folder), weights(plan.out)
    for name, value in before.items():
        if not name.endswith("bias"):
            assert torch.equal(after[f"bert.{name}"], value)
    assert any(not torch.equal(after[f"bert.{name}"], value) for name, value in before.items() if name.endswith("bias"))
    assert facts["settings"]["rate"] == RATES["bitfit"] == 1e-3 and facts["settings"]["trained"] == "bitfit"
    biases = sum(value.numel() for name, value in before.items() if name.endswith("bias"))
    assert facts["trained_parameters"] == biases + 2 * 32 + 2


@pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has no HookedEncoder")
def test_the_model_of_a_run_with_adapters_is_one_like_any_other(plan: FineTune, data_folder: Path) -> None:  # noqa: F811
    """It says in TransformerLens what was measured, and takes masks."""
    facts = finetune(small(plan, "lora", keep_every=6))
    names = {path.name for path in plan.out.glob("*")} | {path.name for path in (plan.out / "step-6").glob("*")}
    assert "model.safetensors" in names and not any("adapter" in name for name in names)
    model = tp.load(plan.out, device="cpu")
    task = tp.tasks.classification(
        model, "sst2", source=data_folder, train_count=50, validation_count=20, seed=1, max_length=plan.max_length
    )
    found = tp.evaluate(
        model, tp.Circuit(tp.neurons(model), torch.ones(128, dtype=torch.bool)), task, ablation=tp.Zero()
    )
    assert found["circuit"].performance.means()["accuracy"] == pytest.approx(facts["test"]["accuracy"])
    assert json.loads((plan.out / METRICS).read_text().splitlines()[-1])["step"] == 6


def test_the_command_names_the_part(plan: FineTune, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert main(command(plan, "--trained", "bitfit", "--train-count", "16")) == 0
    assert "wrote the model" in capsys.readouterr().out
    assert json.loads((plan.out / "tlprune.json").read_text())["settings"]["trained"] == "bitfit"
