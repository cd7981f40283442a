"""Bridges go back to stock Hugging Face models, and Hugging Face models become bridges where there is nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bridges import EXACT, GEMMA2, KINDS, SIZES, bridged, hf_model
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import CLEAN, CORRUPT, SHAPE, STYLES, error
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.models.transformer_lens import build_bridge, has_hooked_transformer

each_kind = pytest.mark.parametrize("kind", KINDS)
SITES: dict[str, Callable[[Any], tp.Sites]] = {
    "nodes": lambda model: tp.heads(model) + tp.mlps(model),
    "neurons": tp.neurons,
    "weights": tp.weights,
    "all": lambda model: tp.heads(model) + tp.layers(model, "a1") + tp.mlps(model) + tp.neurons(model),
}
each_place = pytest.mark.parametrize("place", SITES)


def half(model: Any, place: str, ablation: Any, seed: int = 0) -> tp.Masked:
    sites = SITES[place](model)
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(seed)) < 0.5
    kept[:2] = torch.tensor([True, False])  # whatever the seed, something is kept and something is not
    return tp.Masked(model, tp.Circuit(sites, kept), ablation)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(CLEAN.ids).logits


@each_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_there_and_back_is_the_same_model_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    original, back = hf_model(kind, dtype), tp.to_huggingface(bridged(kind, dtype))
    assert type(back) is type(original)
    assert back.state_dict().keys() == original.state_dict().keys()
    for name, value in original.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    assert len(list(back.parameters())) == len(list(original.parameters()))  # as tied as it was
    assert _settings(back) == _settings(original)


def _settings(model: Any) -> dict[str, Any]:
    """All of a configuration but the class that it names, which is set when it is saved."""
    return {name: value for name, value in model.config.to_dict().items() if name not in ("architectures", "dtype")}


@each_place
@each_kind
def test_zeroed_parts_are_built_in(kind: str, place: str) -> None:
    masked = half(bridged(kind), place, tp.Zero())
    exported = tp.to_huggingface(masked)
    assert error(logits(exported), masked(CLEAN)) <= EXACT[kind]
    assert error(logits(exported), logits(hf_model(kind))) > 1e-3


MEANS = [(kind, place) for kind in ("gpt2", "neox", "neox_serial", "llama_biased") for place in ("nodes", "all")]


@pytest.mark.parametrize(("kind", "place"), MEANS)
def test_means_go_into_biases(kind: str, place: str) -> None:
    model = bridged(kind)
    exported = tp.to_huggingface(half(model, place, tp.Mean(CORRUPT)))
    assert error(logits(exported), half(model, place, tp.Mean(CORRUPT))(CLEAN)) <= EXACT[kind]
    assert error(logits(exported), logits(tp.to_huggingface(half(model, place, tp.Zero())))) > 1e-3


@pytest.mark.parametrize(("kind", "place"), [("llama", "a0"), ("gemma2", "a1"), ("qwen3", "m1")])
def test_means_without_a_bias_to_go_into_are_refused(kind: str, place: str) -> None:
    model = bridged(kind)
    sites = tp.layers(model) if place.startswith("a") else tp.mlps(model)
    kept = torch.tensor([sites.name(index) != place for index in range(len(sites))])
    with pytest.raises(ValueError, match=rf"ForCausalLM has no blocks\.{place[1]}\.(attn|mlp)\..*Use Zero"):
        tp.to_huggingface(tp.Masked(model, tp.Circuit(sites, kept), tp.Mean(CORRUPT)))


@NEEDS_HOOKED_TRANSFORMER
@each_place
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama_biased"])
def test_what_is_exported_is_what_a_hooked_transformer_exports(kind: str, place: str) -> None:
    """Gemma's gains and embeddings are stored shifted and scaled, which rounds in a HookedTransformer."""
    hooked = tp.from_huggingface(hf_model(kind), device="cpu")
    ours, theirs = (tp.to_huggingface(half(model, place, tp.Zero())) for model in (bridged(kind), hooked))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-15 if "gemma" in kind else 0, rtol=1e-15)
    assert ours.config.tie_word_embeddings == theirs.config.tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_numbers_that_masks_keep_are_kept_to_the_bit(dtype: torch.dtype) -> None:
    """Gemma stores ``g - 1``: where a mask is 1 the stored number stays, where it is 0 it becomes -1."""
    sites = tp.weights(bridged("gemma2", dtype), "blocks.1.ln1.w")
    kept = torch.arange(len(sites)) % 3 > 0
    exported = tp.to_huggingface(tp.Masked(bridged("gemma2", dtype), tp.Circuit(sites, kept)))
    name = "model.layers.1.input_layernorm.weight"
    expected = torch.where(kept, hf_model("gemma2", dtype).state_dict()[name], -1.0)
    assert torch.equal(exported.state_dict()[name], expected)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_embeddings_stay_tied_unless_masks_differ_there(kind: str) -> None:
    model = bridged(kind)
    tied = tp.to_huggingface(half(model, "nodes", tp.Zero()))
    assert tied.config.tie_word_embeddings and tied.lm_head.weight is tied.get_input_embeddings().weight
    sites = tp.weights(model, "embed.W_E")
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) < 0.5
    masked = tp.Masked(model, tp.Circuit(sites, kept))
    untied = tp.to_huggingface(masked)
    assert not untied.config.tie_word_embeddings
    assert error(logits(untied), masked(CLEAN, CORRUPT)) <= EXACT[kind]
    assert torch.equal(untied.lm_head.weight, hf_model(kind).lm_head.weight)


@pytest.mark.parametrize("kind", ["gpt2", "neox", "gemma3"])
def test_the_bridge_is_left_as_it_was_and_shares_nothing(kind: str) -> None:
    model = bridged(kind, torch.float32)
    config = copy.deepcopy(model.original_model.config.to_dict())
    before, state = copy.deepcopy(model.original_model.state_dict()), torch.random.get_rng_state()
    expected = model(CLEAN.ids).detach()
    exported = tp.to_huggingface(half(model, "all", tp.Zero()))
    with torch.no_grad():
        for parameter in exported.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.original_model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.original_model.config.to_dict() == config
    assert torch.equal(model(CLEAN.ids), expected)
    assert not exported.training and all(parameter.requires_grad for parameter in exported.parameters())


@pytest.mark.parametrize("kind", ["gpt2", "neox"])
def test_what_a_bridge_computes_with_is_exported_and_not_its_dead_copy(kind: str) -> None:
    """A bridge splits q, k and v; what was one matrix stays in it, unused, and may be out of date."""
    model = bridged(kind)
    with torch.no_grad():
        model.blocks[1].attn.k.original_component.weight.mul_(2)
    assert error(logits(tp.to_huggingface(model)), model(CLEAN.ids).detach()) <= EXACT[kind]
    assert error(logits(tp.to_huggingface(model)), logits(hf_model(kind))) > 1e-3


def test_saved_models_are_read_by_stock_transformers(tmp_path: Path) -> None:
    masked = half(bridged("gemma2", torch.float32), "nodes", tp.Zero())
    tp.to_huggingface(masked).save_pretrained(tmp_path)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(read) is transformers.Gemma2ForCausalLM
    assert error(logits(read), masked(CLEAN)) <= 1e-5
    assert error(tp.bridge(tmp_path, device="cpu")(CLEAN.ids), masked(CLEAN)) <= 1e-5


def test_a_family_without_a_converter_is_exported_too() -> None:
    sizes: dict[str, Any] = SIZES | GEMMA2
    original = transformers.VaultGemmaForCausalLM(transformers.VaultGemmaConfig(**sizes)).eval()
    model = tp.bridge(copy.deepcopy(original))
    masked = half(model, "all", tp.Zero())
    exported = tp.to_huggingface(masked)
    assert type(exported) is type(original)
    assert error(logits(exported), masked(CLEAN)) <= 1e-5
    assert error(logits(exported), logits(original)) > 1e-4


def test_matrices_split_in_an_unknown_way_are_refused() -> None:
    sizes: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "pad_token_id": 0}
    model = tp.bridge(transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes)))
    with pytest.raises(ValueError, match=r"Phi3ForCausalLM keeps blocks\.0\.attn\.W_. within another one"):
        tp.to_huggingface(half(model, "nodes", tp.Zero()))


@pytest.mark.skipif(has_hooked_transformer(), reason="TransformerLens 3.9 has no bridge of a model of its own")
def test_a_bridge_of_no_hugging_face_model_needs_a_configuration() -> None:
    model = build_bridge(**SHAPE | STYLES["gpt2"], model_name="own", init_weights=True)
    with pytest.raises(ValueError, match=r"does not know its own.*give config="):
        tp.to_huggingface(model)


# ---- from Hugging Face


@pytest.mark.skipif(has_hooked_transformer(), reason="this TransformerLens has HookedTransformer")
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_hugging_face_models_become_bridges_where_there_is_nothing_else(kind: str, tmp_path: Path) -> None:
    """Of a copy: the given model is left as it is, and can be used and changed beside the bridge."""
    given = hf_model(kind, torch.float32).train()
    given.save_pretrained(tmp_path)
    before, state = copy.deepcopy(given.state_dict()), torch.random.get_rng_state()
    model, read = tp.from_huggingface(given, device="cpu"), tp.from_huggingface(tmp_path, device="cpu")
    assert type(model).__name__ == type(read).__name__ == "TransformerBridge"
    assert torch.equal(torch.random.get_rng_state(), state)
    assert given.training and not model.training
    assert backend_of(model).fingerprint()["weights"] == backend_of(read).fingerprint()["weights"]
    with torch.no_grad():
        expected = logits(given.eval())
        assert error(model(CLEAN.ids), expected) <= 1e-5
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert torch.equal(logits(given), expected)
    assert tp.from_huggingface(given, device="cpu", dtype=torch.float64).cfg.dtype == torch.float64
