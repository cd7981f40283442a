"""Exported models are stock Hugging Face models that compute what the masked ones do."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hooked import NEEDS_HOOKED_TRANSFORMER
from huggingface_models import MODELS, VOCABULARY, fresh_model, kept_model
from styles import error
from torch import Tensor

import tlprune as tp
from tlprune.models.transformer_lens import has_hooked_transformer

# TransformerLens has no faithful bridge of these two.
NAMES = [name for name in MODELS if has_hooked_transformer() or name not in ("gpt2-unscaled", "neox-tied")]
PROMPTS = torch.randint(VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(0))
REFERENCE = tp.Tokens(torch.randint(VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(1)))
KINDS: dict[str, Callable[[Any], tp.Sites]] = {
    "heads": tp.heads,
    "mlps": tp.mlps,
    "layers": tp.layers,
    "nodes": tp.nodes,
    "neurons": tp.neurons,
    "weights": tp.weights,
    "all": lambda model: (
        tp.heads(model) + tp.layers(model, "a1") + tp.mlps(model) + tp.neurons(model) + tp.weights(model)
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def converted(name: str, dtype: torch.dtype = torch.float64) -> Any:
    return tp.from_huggingface(kept_model(name, dtype), device="cpu")


def masked_of(model: Any, kind: str, ablation: Any, *, seed: int = 0) -> tp.Masked:
    """About half of the sites are kept."""
    sites = KINDS[kind](model)
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(seed)) < 0.5
    kept[:2] = torch.tensor([True, False])  # whatever the seed, something is kept and something is not
    return tp.Masked(model, tp.Circuit(sites, kept), ablation)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(PROMPTS).logits


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_the_same_model(name: str) -> None:
    """Gemma's gains and embeddings are stored shifted and scaled, which rounds."""
    original = kept_model(name)
    back = tp.to_huggingface(converted(name))
    assert type(back) is type(original)
    assert back.config.tie_word_embeddings == original.config.tie_word_embeddings
    assert back.state_dict().keys() == original.state_dict().keys()
    for key, value in original.state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], value, atol=1e-15 if "gemma" in name else 0, rtol=1e-15)
    assert len(list(back.parameters())) == len(list(original.parameters()))


@each_kind
@pytest.mark.parametrize("name", NAMES)
def test_zeroed_parts_are_built_in(name: str, kind: str) -> None:
    masked = masked_of(converted(name), kind, tp.Zero())
    exported = tp.to_huggingface(masked)
    assert error(logits(exported), masked(PROMPTS)) < 1e-5
    assert {key: value.shape for key, value in exported.state_dict().items()} == {
        key: value.shape for key, value in kept_model(name).state_dict().items()
    }
    assert error(logits(exported), logits(kept_model(name))) > 1e-3


# Means go into biases; attention of llama-biases has one, its MLPs have none.
WITH_BIASES = [(name, kind) for name in ("gpt2", "gpt2-untied", "neox", "neox-serial") for kind in KINDS]
WITH_BIASES += [("llama-biases", "heads"), ("qwen3-biases", "heads"), ("llama", "weights"), ("gemma2", "weights")]


@pytest.mark.parametrize("ablation", ["mean", "constant"])
@pytest.mark.parametrize(("name", "kind"), WITH_BIASES)
def test_means_go_into_biases(name: str, kind: str, ablation: str) -> None:
    model = converted(name)
    layers = tuple(range(model.cfg.n_layers)) if kind in ("neurons", "all") else ()
    mean = tp.Mean(REFERENCE)
    masked = masked_of(model, kind, mean if ablation == "mean" else tp.Constant(model, mean, neurons=layers))
    exported = tp.to_huggingface(masked)
    assert error(logits(exported), masked(PROMPTS)) < 1e-5
    if kind != "weights":
        assert error(logits(exported), logits(tp.to_huggingface(masked_of(model, kind, tp.Zero())))) > 1e-4


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "qwen2", "gemma2"])
def test_saved_models_are_read_by_stock_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = masked_of(converted(name, torch.float32), "heads", tp.Zero())
    tp.to_huggingface(masked).save_pretrained(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", _refuse)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(read) is type(kept_model(name))
    assert error(logits(read), masked(PROMPTS)) < 1e-5
    assert error(tp.load(tmp_path, device="cpu")(PROMPTS), masked(PROMPTS)) < 1e-5


def _refuse(*_: Any) -> None:
    raise AssertionError("the network was asked")


def test_a_real_checkpoint_is_exported(data_dir: Path, tmp_path: Path) -> None:
    model = tp.load(data_dir / "models" / "stories260K", device="cpu")
    masked = tp.Masked(model, tp.Circuit.from_names(tp.heads(model), ["a0.h1", "a1.h4", "a4.h7"]), tp.Zero())
    tp.to_huggingface(masked).save_pretrained(tmp_path)
    tokens = torch.randint(512, (2, 20), generator=torch.Generator().manual_seed(0))
    read = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert error(read(tokens).logits, masked(tokens)) < 1e-5


def test_what_is_ablated_is_zero_and_the_rest_as_it_was() -> None:
    model = converted("llama")
    kept = ["a0.h0", "a0.h1", "a0.h3", *(f"a1.h{head}" for head in range(4))]
    exported = tp.to_huggingface(tp.Masked(model, tp.Circuit.from_names(tp.heads(model), kept), tp.Zero()))
    changed = "model.layers.0.self_attn.o_proj.weight"
    before, after = kept_model("llama").state_dict(), exported.state_dict()
    expected = before[changed].clone()
    expected[:, 20:30] = 0
    assert torch.equal(after[changed], expected)
    assert all(torch.equal(after[key], value) for key, value in before.items() if key != changed)


def test_trained_masks_are_exported_as_their_hard_circuit() -> None:
    model = converted("gpt2")
    masks = tp.Masks(tp.heads(model))
    with torch.no_grad():
        masks.log_alpha.copy_(torch.linspace(-9, 9, len(masks.log_alpha)))
    circuit = masks.circuit()
    assert 0 < len(circuit) < len(circuit.sites)
    expected = tp.Masked(model, circuit, tp.Zero())(PROMPTS)
    assert error(logits(tp.to_huggingface(tp.Masked(model, masks, tp.Zero()))), expected) < 1e-9


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_embeddings_stay_tied_unless_masks_differ_there(name: str) -> None:
    model = converted(name)
    tied = tp.to_huggingface(masked_of(model, "mlps", tp.Zero()))
    assert tied.config.tie_word_embeddings and tied.lm_head.weight is tied.get_input_embeddings().weight
    sites = tp.weights(model, "unembed.W_U")
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) < 0.5
    masked = tp.Masked(model, tp.Circuit(sites, kept))
    untied = tp.to_huggingface(masked)
    assert not untied.config.tie_word_embeddings
    assert error(logits(untied), masked(PROMPTS, PROMPTS)) < 1e-5


@NEEDS_HOOKED_TRANSFORMER
def test_exporting_changes_nothing_else() -> None:
    model = converted("gpt2")
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    config = copy.deepcopy(model.huggingface_config.to_dict())
    exported = tp.to_huggingface(masked_of(model, "all", tp.Zero()))
    with torch.no_grad():
        for parameter in exported.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.huggingface_config.to_dict() == config
    assert not exported.training and all(parameter.requires_grad for parameter in exported.parameters())


@NEEDS_HOOKED_TRANSFORMER
def test_a_configuration_can_be_given(tmp_path: Path) -> None:
    model = converted("qwen3")
    del model.huggingface_config
    with pytest.raises(ValueError, match="does not know its own"):
        tp.to_huggingface(model)
    fresh_model("qwen3").save_pretrained(tmp_path)
    assert error(logits(tp.to_huggingface(model, config=tmp_path)), logits(kept_model("qwen3"))) < 1e-12
    unnamed = transformers.AutoConfig.from_pretrained(tmp_path)
    unnamed.architectures = None
    assert type(tp.to_huggingface(model, config=unnamed)) is type(kept_model("qwen3"))
    assert unnamed.architectures is None
    with pytest.raises(ValueError, match=r"configuration is of MambaForCausalLM.*GPT2LMHeadModel"):
        tp.to_huggingface(model, config=transformers.MambaConfig(architectures=["MambaForCausalLM"]))


# ---- what is refused


def test_masks_that_no_weights_stand_for_are_refused() -> None:
    model = converted("gpt2")
    half = [tp.heads(model), tp.heads(model) + tp.edges(model), tp.heads(model, spans=("subject",))]
    circuits = [tp.Circuit(sites, torch.arange(len(sites)) % 2 == 0) for sites in half]
    for circuit, options, reason in (
        (circuits[0], {"ablation": tp.Resample()}, "weights meets new tokens, for which resample"),
        (circuits[0], {"ablation": tp.GaussianNoise()}, "weights meets new tokens, for which gaussian_noise"),
        (circuits[0], {"ablation": tp.Mean(REFERENCE, over="examples")}, "Mean.reference. over positions"),
        (circuits[0], {"ablation": tp.Zero(), "norm": "frozen"}, "norm='recomputed'"),
        (circuits[1], {"ablation": tp.Zero()}, "these sites hold edges.*Mask heads, MLPs"),
        (circuits[2], {"ablation": tp.Zero()}, "belong to no known span"),
    ):
        with pytest.raises(ValueError, match=reason):
            tp.to_huggingface(tp.Masked(model, circuit, **options))


@pytest.mark.parametrize(
    ("name", "kind", "place"),
    [
        ("llama", "heads", r"LlamaForCausalLM has no blocks\.\d\.attn\.b_O"),
        ("llama-biases", "mlps", r"LlamaForCausalLM has no blocks\.\d\.mlp\.b_out"),
        ("qwen2", "neurons", r"Qwen2ForCausalLM has no blocks\.\d\.mlp\.b_out"),
        ("gemma2", "heads", r"Gemma2ForCausalLM has no blocks\.\d\.attn\.b_O"),
        ("gemma2", "mlps", r"mean of MLP \d belongs behind the norm"),
    ],
)
def test_means_without_a_bias_to_go_into_are_refused(name: str, kind: str, place: str) -> None:
    masked = masked_of(converted(name), kind, tp.Mean(REFERENCE), seed=1)
    with pytest.raises(ValueError, match=rf"{place}.*Zero\(\)"):
        tp.to_huggingface(masked)


@NEEDS_HOOKED_TRANSFORMER
def test_folded_models_are_refused() -> None:
    model = converted("gpt2")
    model.process_weights_(fold_ln=True)
    with pytest.raises(ValueError, match=r"has no .*ln.* folded"):
        tp.to_huggingface(model)
