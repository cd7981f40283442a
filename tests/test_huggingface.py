"""Converted models say what the Hugging Face models say, and leave them as they were."""

from __future__ import annotations

import copy
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from hooked import NEEDS_HOOKED_TRANSFORMER
from huggingface_models import CONFIGURATIONS, GEMMA2, LLAMA, MODELS, QWEN2, VOCABULARY, fresh_model, kept_model
from styles import error
from torch import Tensor

import tlprune as tp
from tlprune.models.sentencepiece import sentencepiece_tokenizer

pytestmark = NEEDS_HOOKED_TRANSFORMER
PROMPTS = torch.randint(VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(0))
# The first prompt is whole, the others are padded by 2 and by 6 tokens.
PADDING = {
    "none": torch.ones(3, 11, dtype=torch.long),
    "right": (torch.arange(11) < torch.tensor([[11], [9], [5]])).long(),
    "left": (torch.arange(11) >= torch.tensor([[0], [2], [6]])).long(),
}
# Hugging Face computes RMS norms and rotary angles in float32, in a float64 model too.
TOLERANCE = {"gpt2": 1e-12, "neox": 1e-6}
# In float64 its padded Gemma 2 is not a number: its masks are the lowest float64, and its softmax is in float32.
PRECISION = {"gemma2": torch.float32, "gemma3": torch.float32}


def theirs(model: Any, mask: Tensor) -> Tensor:
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(PROMPTS, attention_mask=mask, position_ids=places).logits


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_keeps_its_logits(name: str, padding: str) -> None:
    family, mask = name.partition("-")[0], PADDING[padding]
    model = kept_model(name, PRECISION.get(family, torch.float64))
    expected = theirs(model, mask)[mask.bool()]
    with torch.no_grad():
        actual = tp.from_huggingface(model, device="cpu")(PROMPTS, attention_mask=mask)[mask.bool()]
    assert error(actual, expected) < TOLERANCE.get(family, 1e-5)
    assert expected.std() > 0.5


@pytest.mark.parametrize(
    "name", ["mistral-sliding", "qwen2-sliding", "gemma2", "gemma3-scaled", "llama-3", "llama-linear"]
)
def test_the_tests_see_windows_and_rotary_scaling(name: str) -> None:
    """Without these settings the logits would be others, so the comparison above is one of them."""
    family, settings = MODELS[name]
    plain = {**settings, "sliding_window": None, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}
    if family.startswith("Gemma"):
        plain |= {"sliding_window": 99, "rope_parameters": None}
    model = type(kept_model(name))(type(kept_model(name).config)(**plain)).double().eval()
    model.load_state_dict(kept_model(name).state_dict())
    mask = PADDING["none"]
    assert (theirs(model, mask) - theirs(kept_model(name), mask)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "neox", "qwen3", "gemma2"])
def test_directories_and_objects_give_the_same_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_model(name, torch.float32).save_pretrained(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", _refuse)
    monkeypatch.setattr(socket, "getaddrinfo", _refuse)
    from_object, from_directory = tp.from_huggingface(fresh_model(name, torch.float32)), tp.load(tmp_path, device="cpu")
    assert from_directory.cfg.model_name == tmp_path.name
    for own, other in zip(from_object.state_dict().values(), from_directory.state_dict().values(), strict=True):
        torch.testing.assert_close(own.cpu(), other, atol=0, rtol=0)


def _refuse(*_: Any) -> None:
    raise AssertionError("the network was asked")


@pytest.mark.parametrize("name", ["gpt2", "neox-tied", "llama", "gemma2"])
def test_the_given_model_is_left_as_it_was(name: str) -> None:
    model = fresh_model(name).train()
    model.get_input_embeddings().weight.requires_grad_(False)
    before, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    random_state = torch.random.get_rng_state()
    converted = tp.from_huggingface(model, device="cpu", dtype=torch.float32)
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert not converted.training and model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.requires_grad for p in converted.parameters())
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_object_keeps_its_precision_unless_told_otherwise() -> None:
    model = fresh_model("llama", torch.bfloat16)
    assert {p.dtype for p in tp.from_huggingface(model).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in tp.from_huggingface(model, dtype=torch.float64).parameters()} == {torch.float64}


@pytest.mark.parametrize("kv", ["shared", "per_query_head"])
@pytest.mark.parametrize(
    "name", ["gpt2", "neox", "llama", "mistral-sliding", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"]
)
def test_edges_of_a_converted_model_are_all_of_it(name: str, kv: Any) -> None:
    model = tp.from_huggingface(kept_model(name), device="cpu")
    sites = tp.edges(model, kv=kv)
    masked, ones = tp.Masked(model, tp.Masks(sites)), torch.ones(len(sites), dtype=torch.float64)
    assert error(masked(PROMPTS, PROMPTS.flip(1), mask=ones), model(PROMPTS)) < 1e-9
    assert error(masked(PROMPTS, PROMPTS.flip(1), mask=0 * ones), model(PROMPTS.flip(1))) < 1e-9


def test_strings_begin_as_the_models_prompts_did() -> None:
    begins = {
        name: tp.from_huggingface(kept_model(name)).cfg.default_prepend_bos for name in ("llama", "qwen2", "qwen3")
    }
    assert begins == {"llama": True, "qwen2": False, "qwen3": False}


# ---- tokenizers


def test_a_directory_with_a_sentencepiece_file_alone_has_its_tokens(data_dir: Path) -> None:
    directory = data_dir / "models" / "babyllama-tok105"
    model = tp.load(directory)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tok105.model"))
    for text in ("Once upon a time", "Hi,  “x” was 12!\nTim", "é", ""):
        assert model.tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)
    assert model.to_string(model.to_tokens("Once upon a time")[0, 1:]) == "Once upon a time"
    assert model.to_tokens("Once")[0, 0] == pieces.bos_id()


def test_sentencepiece_merges_are_those_of_the_file(tmp_path: Path) -> None:
    text = "the cat sat on the mat and the rat ate the hat that sat there"
    for name, options in (("bytes", {"byte_fallback": True}), ("plain", {"remove_extra_whitespaces": False})):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text] * 50), model_prefix=str(tmp_path / name), model_type="bpe",
            vocab_size=290 if name == "bytes" else 30, normalization_rule_name="identity", minloglevel=2, **options,
        )  # fmt: skip
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / f"{name}.model"))
        tokenizer = sentencepiece_tokenizer(tmp_path / f"{name}.model")
        for prompt in (text, "that  hen", "ünï the"):
            assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == pieces.encode(prompt)


def test_a_sentencepiece_file_that_changes_characters_is_left_out(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["fi 1 A e cat sat mat"] * 20), model_prefix=str(tmp_path / "nfkc"), model_type="bpe",
        vocab_size=24, normalization_rule_name="nfkc", minloglevel=2,
    )  # fmt: skip
    assert sentencepiece_tokenizer(tmp_path / "nfkc.model") is None


def test_a_given_tokenizer_is_copied_and_the_hub_not_asked(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(data_dir / "models" / "stories260K")
    tokenizer.init_kwargs["name_or_path"] = tokenizer.name_or_path = "nobody/knows-this"
    before, side = tokenizer.pad_token, tokenizer.padding_side
    monkeypatch.setattr(socket, "getaddrinfo", _refuse)
    model = tp.from_huggingface(kept_model("llama"), tokenizer=tokenizer)
    assert (tokenizer.pad_token, tokenizer.padding_side) == (before, side)
    assert model.tokenizer is not tokenizer
    assert model.tokenizer("Once upon")["input_ids"][-2:] == tokenizer("Once upon")["input_ids"][-2:]


# ---- what is refused


WRONGLY_SCALED = {
    "sliding_attention": {"rope_type": "linear", "rope_theta": 30.0, "factor": 3.0},
    "full_attention": {"rope_type": "default", "rope_theta": 500.0},
}


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("Llama", {"mlp_bias": True}, "Llama has MLP biases"),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "scaling 'dynamic'"),
        ("Llama", {"hidden_act": "gelu_10"}, "activation function is 'gelu_10'"),
        (
            "Mistral",
            {"sliding_window": 3, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "scaled rotary positions in windows",
        ),
        ("Gemma2", {"use_bidirectional_attention": True}, "bidirectional attention"),
        ("Gemma3", {"rope_parameters": WRONGLY_SCALED}, "scaled rotary positions in windows"),
    ],
)
def test_settings_that_would_be_got_wrong_are_refused(
    family: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    config = getattr(transformers, CONFIGURATIONS.get(family, f"{family}Config"))(**LLAMA | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with pytest.raises(ValueError, match=reason):
        tp.from_huggingface(model)
    config.architectures = [f"{family}ForCausalLM"]
    config.save_pretrained(tmp_path)  # no weights: refused before they are read
    with pytest.raises(ValueError, match=reason):
        tp.from_huggingface(tmp_path)


MIXTRAL = {**QWEN2, "num_local_experts": 4}
DEEPSEEK = {**QWEN2, "kv_lora_rank": 8, "n_routed_experts": 4, "num_key_value_heads": 4}
T5 = {"vocab_size": 20, "d_model": 8, "num_layers": 1, "num_heads": 2, "d_kv": 4, "d_ff": 8}
UNSUPPORTED = [
    ("MixtralForCausalLM", "MixtralConfig", MIXTRAL, "a mixture of 4 experts, MoE"),
    ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", {**QWEN2, "num_experts": 4}, "a mixture of 4 experts, MoE"),
    ("DeepseekV2ForCausalLM", "DeepseekV2Config", DEEPSEEK, "multi-head latent attention, MLA"),
    ("T5ForConditionalGeneration", "T5Config", T5, "an encoder and a decoder"),
    ("Olmo2ForCausalLM", "Olmo2Config", QWEN2, "norms behind attention and MLP alone"),
    ("MambaForCausalLM", "MambaConfig", {"hidden_size": 8, "num_hidden_layers": 1}, ""),
]


@pytest.mark.parametrize(("architecture", "config", "settings", "reason"), UNSUPPORTED)
def test_other_architectures_are_refused_by_name_before_weights_are_read(
    architecture: str, config: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    made = getattr(transformers, config)(**settings)
    made.architectures = [architecture]
    made.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"{architecture}.*cannot be converted.*Supported are.*Gemma2ForCausalLM"
    ) as refusal:
        tp.load(tmp_path)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
def test_quantised_checkpoints_are_refused_before_weights_are_read(method: str, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**LLAMA, architectures=["LlamaForCausalLM"])
    config.quantization_config = {"quant_method": method, "load_in_4bit": True}
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"LlamaForCausalLM with quantised weights \({method}\).*Supported are"):
        tp.load(tmp_path)


def test_a_configuration_that_names_no_class_is_of_its_kind(tmp_path: Path) -> None:
    fresh_model("gpt2", torch.float32).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert tp.load(tmp_path).cfg.original_architecture == "GPT2LMHeadModel"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"A checkpoint of no named class cannot be converted"):
        tp.load(tmp_path)


def test_objects_that_are_no_supported_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"LlamaModel cannot be converted"):
        tp.from_huggingface(kept_model("llama").model)
    with pytest.raises(ValueError, match=r"Linear cannot be converted"):
        tp.from_huggingface(torch.nn.Linear(2, 2))


def test_a_class_with_parameters_of_its_own_is_refused() -> None:
    model = fresh_model("llama")
    model.model.layers[1].mlp.extra = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"parameter model\.layers\.1\.mlp\.extra of its own"):
        tp.from_huggingface(model)
    del model.model.layers[1].mlp.extra
    model.model.layers[1].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"no parameter model\.layers\.1\.mlp\.up_proj\.weight"):
        tp.from_huggingface(model)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    config = transformers.Gemma2Config(**GEMMA2, architectures=["Gemma2ForCausalLM"])
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no weights that can be read"):
        tp.from_huggingface(tmp_path)
