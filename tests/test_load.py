"""Models from directories say what Hugging Face says; what cannot be loaded is refused in one sentence."""

import json
import socket
from pathlib import Path

import pytest
import torch
import transformers
from hooked import NEEDS_HOOKED_TRANSFORMER

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.models.transformer_lens import has_hooked_transformer


def both_logits(directory: Path, architecture: str) -> tuple[torch.Tensor, torch.Tensor]:
    model = tp.load(directory)
    reference = getattr(transformers, architecture).from_pretrained(directory, dtype=torch.float32)
    ids = torch.randint(model.cfg.d_vocab, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids), reference(ids).logits


REAL = [
    ("stories260K", "LlamaForCausalLM"),
    ("babyllama-tok105", "LlamaForCausalLM"),
    ("gpt-nano-sort", "GPT2LMHeadModel"),
]


@pytest.mark.parametrize(("name", "architecture"), REAL)
def test_real_checkpoints_keep_their_logits(
    data_dir: Path, name: str, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", _no_network)
    ours, theirs = both_logits(data_dir / "models" / name, architecture)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def _no_network(*_: object) -> None:
    raise AssertionError("the network was asked")


def test_real_checkpoint_takes_edge_masks(data_dir: Path) -> None:
    model = tp.load(data_dir / "models" / "stories260K")
    ids = model.tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    everything = tp.connected_random(tp.Graph.of(model), 1701)
    logits = tp.Masked(model, everything)(ids, ids.flip(1))
    torch.testing.assert_close(logits, model(ids), atol=1e-4, rtol=1e-5)


def test_made_checkpoints_keep_their_logits(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=30, intermediate_size=40, head_dim=8, rope_theta=5000.0, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    small = transformers.GPT2Config(vocab_size=30, n_embd=24, n_layer=2, n_head=3, n_positions=16, n_inner=50)
    transformers.GPT2LMHeadModel(small).eval().save_pretrained(tmp_path / "gpt2")
    for name, architecture in (("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel")):
        ours, theirs = both_logits(tmp_path / name, architecture)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_object_is_returned_as_it_is() -> None:
    model = tp.planted("and").model
    assert tp.load(model) is model


def test_a_hugging_face_object_is_converted() -> None:
    config = transformers.GPT2Config(vocab_size=30, n_embd=24, n_layer=1, n_head=3, n_positions=16)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.arange(9)[None]
    ours = tp.load(theirs, dtype=torch.float64, device="cpu")
    torch.testing.assert_close(ours(ids), theirs(ids).logits.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["testbed", "planted", "planted-or", "taught"])
def test_models_of_the_package(name: str) -> None:
    model = tp.load(name, dtype=torch.float64)
    assert type(model).__name__ == ("HookedTransformer" if has_hooked_transformer() else "TransformerBridge")
    assert backend_of(model).dtype == torch.float64


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no model 'gtp2'"):
        tp.load("gtp2")
    with pytest.raises(ValueError, match=r"planted.*nand|nand.*planted"):
        tp.load("planted-nand")
    with pytest.raises(ValueError, match=r"no config\.json"):
        tp.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        tp.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MambaForNothing"]}))
    with pytest.raises(ValueError, match=r"MambaForNothing (cannot be converted|is no class of transformers)"):
        tp.load(tmp_path)


@NEEDS_HOOKED_TRANSFORMER
def test_unusual_llama_is_refused(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, mlp_bias=True
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Llama has MLP biases"):
        tp.load(tmp_path)
