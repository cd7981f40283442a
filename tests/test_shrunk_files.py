"""Shrunk models are saved, and read as they are or made whole; broken files say so."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoders import call_hf, fresh_encoder, hf_model_of
from encoders import prompts as encoder_prompts
from hooked import NEEDS_HOOKED_TRANSFORMER
from huggingface_models import fresh_model, kept_model, randomise
from test_export import PROMPTS, REFERENCE, converted, logits
from torch import Tensor

import tlprune as tp
from tlprune.models.modeling_shrunk import Layer, shrunk_class

# Attention of layer 0 is gone in both; the MLP of layer 1 of one, and one neuron.
SIZES = {
    "gpt2": (
        Layer((), (), tuple(range(50))),
        Layer((0, 2), (0, 2), ()),
        Layer((0, 1, 2), (0, 1, 2), tuple(range(1, 50))),
    ),
    "llama": (Layer((), (), tuple(range(40))), Layer((2, 3), (1,), tuple(range(0, 40, 2)))),
}


def shrunk(name: str, *, biases: tuple[str, ...] = ()) -> Any:
    """A random shrunk model, made without TransformerLens."""
    sizes = [Layer(size.heads, size.key_value_heads, size.neurons, biases) for size in SIZES[name]]
    model = shrunk_class(type(kept_model(name)).__name__)(copy.deepcopy(kept_model(name).config), sizes).double()
    randomise(model, seed=3)
    return model.eval()


def removed_from(name: str, ablation: Any) -> tp.Masked:
    """Heads and MLPs gone, differently in each layer, attention of the first altogether."""
    model = converted(name)
    sites = tp.heads(model) + tp.mlps(model)
    removed = [*(f"a0.h{head}" for head in range(model.cfg.n_heads)), "a1.h0", "m1"]
    kept = torch.ones(len(sites), dtype=torch.bool)
    kept[[sites.index(place) for place in removed]] = False
    return tp.Masked(model, tp.Circuit(sites, kept), ablation)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max())


# ---- as they were


@pytest.mark.parametrize("biases", [(), ("mlp", "attention")])
@pytest.mark.parametrize("name", SIZES)
def test_a_saved_model_is_read_as_it_was(name: str, biases: tuple[str, ...], tmp_path: Path) -> None:
    model = shrunk(name, biases=biases)
    model.save_pretrained(tmp_path / "new" / "model")
    read = tp.load_shrunk(tmp_path / "new" / "model", device="cpu", dtype=torch.float64)
    assert type(read) is type(model) and read.sizes == model.sizes
    assert {key: value.shape for key, value in read.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    assert all(torch.equal(value, read.state_dict()[key]) for key, value in model.state_dict().items())
    assert error(logits(read), logits(model)) < 1e-12
    written = {file.name for file in (tmp_path / "new" / "model").iterdir()}
    files = {"config.json", "generation_config.json", "model.safetensors", "modeling_shrunk.py", "sizes.json"}
    assert written == files
    assert not read.training


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("name", ["bert classes", "bert words", "roberta number", "roberta"])
def test_encoders_are_read_as_they_were(name: str, tmp_path: Path) -> None:
    model = fresh_encoder(name)
    sites = tp.heads(model) + tp.mlps(model)
    kept = torch.ones(len(sites), dtype=torch.bool)
    kept[[0, 1, 2, 3, 6, 13]] = False
    small = tp.shrink(tp.Masked(model, tp.Circuit(sites, kept), tp.Mean(encoder_prompts(name, seed=2))))
    small.save_pretrained(tmp_path)
    read = tp.load_shrunk(tmp_path, device="cpu", dtype=torch.float64)
    assert isinstance(read, type(hf_model_of(name)))
    assert read.num_parameters() == small.num_parameters() < hf_model_of(name).num_parameters()
    tokens = encoder_prompts(name, padding="right")
    with torch.no_grad():
        assert error(call_hf(read, tokens)[0], call_hf(small, tokens)[0]) < 1e-12
    whole = tp.load(tmp_path, device="cpu", dtype=torch.float64)
    again = tp.from_huggingface(tp.to_huggingface(whole), device="cpu")
    for lens in (whole, again):
        assert (
            error(
                lens(tokens.ids, token_type_ids=tokens.token_types, one_zero_attention_mask=tokens.attention_mask),
                tp.from_huggingface(small, device="cpu")(
                    tokens.ids, token_type_ids=tokens.token_types, one_zero_attention_mask=tokens.attention_mask
                ),
            )
            < 1e-12
        )


def test_a_stock_checkpoint_is_read_too(tmp_path: Path) -> None:
    kept_model("gpt2").save_pretrained(tmp_path)
    read = tp.load_shrunk(tmp_path, device="cpu", dtype=torch.float64)
    assert type(read) is transformers.GPT2LMHeadModel
    assert error(logits(read), logits(kept_model("gpt2"))) < 1e-12


@NEEDS_HOOKED_TRANSFORMER
def test_a_real_checkpoint_shrinks_and_writes_the_same_story(data_dir: Path, tmp_path: Path) -> None:
    """Of 5 layers of 8 heads in 4 groups; without all heads of the first layer, and half of the neurons of another."""
    model = tp.load(data_dir / "models" / "stories260K", device="cpu")
    sites = tp.heads(model) + tp.neurons(model, "m3")
    kept = torch.ones(len(sites), dtype=torch.bool)
    kept[:8] = kept[[9, 12, 13]] = kept[40::2] = False
    masked = tp.Masked(model, tp.Circuit(sites, kept), tp.Zero())
    tp.shrink(masked).save_pretrained(tmp_path)
    small, whole = tp.load_shrunk(tmp_path, device="cpu"), tp.to_huggingface(masked)
    heads = [(len(layer.heads), len(layer.key_value_heads)) for layer in small.sizes]
    assert heads == [(0, 0), (6, 3), (8, 4), (8, 4), (8, 4)]
    prompt = torch.tensor([[1, 403, 407, 261]])
    told: dict[str, Any] = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(small.generate(prompt, **told), whole.generate(prompt, **told))
    with torch.no_grad():
        assert error(small(prompt).logits, masked(prompt)) < 1e-5


READER = """
import sys, json, torch, transformers
sys.modules["tlprune"] = None  # importing it is an error
for case in json.loads(sys.argv[1]):
    kind = getattr(transformers, case["auto"])
    model = kind.from_pretrained(case["folder"], trust_remote_code=True, dtype=torch.float64)
    tokens = torch.tensor(case["tokens"])
    assert model(tokens).logits.sub(torch.tensor(case["logits"], dtype=torch.float64)).abs().max() < 1e-5
    assert model.num_parameters() == case["parameters"]
    if case["generated"]:
        found = model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
        assert found.tolist() == case["generated"]
    model.save_pretrained(case["folder"] + " again")
    again = kind.from_pretrained(case["folder"] + " again", trust_remote_code=True, dtype=torch.float64)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
print("read")
"""


@NEEDS_HOOKED_TRANSFORMER
def test_transformers_alone_reads_them(tmp_path: Path) -> None:
    """In another process, where this library cannot be imported; and writes them again."""
    cases = []
    for name in ("gpt2", "llama", "qwen2", "mistral-sliding", "neox"):
        small = tp.shrink(removed_from(name, tp.Mean(REFERENCE)))
        generated = small.generate(PROMPTS, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
        cases.append(_case(tmp_path / name, small, "AutoModelForCausalLM", PROMPTS, generated.tolist()))
    for name, auto in (("bert classes", "SequenceClassification"), ("roberta words", "MaskedLM")):
        model = fresh_encoder(name)
        masks = tp.Circuit.from_names(tp.heads(model), ["a0.h1", "a2.h3"])
        small = tp.shrink(tp.Masked(model, masks, tp.Zero()))
        cases.append(_case(tmp_path / name, small, f"AutoModelFor{auto}", encoder_prompts(name).ids, None))
    told = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", READER, json.dumps(cases)],
        cwd=tmp_path, env=told, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.stdout.strip().endswith("read"), found.stderr


@torch.no_grad()
def _case(folder: Path, small: Any, auto: str, tokens: Tensor, generated: Any) -> dict[str, Any]:
    small.save_pretrained(folder)
    assert (folder / "sizes.json").exists()
    told = {"folder": str(folder), "auto": auto, "tokens": tokens.tolist(), "generated": generated}
    return told | {"logits": small(tokens).logits.tolist(), "parameters": small.num_parameters()}


# ---- made whole


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("ablation", [tp.Zero(), tp.Mean(REFERENCE)])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "neox-tied", "gemma"])
def test_a_transformer_lens_model_of_it_has_the_old_shape_and_names(name: str, ablation: Any, tmp_path: Path) -> None:
    masked = removed_from(name, ablation)
    small = tp.shrink(masked)
    small.save_pretrained(tmp_path)
    whole = tp.load(tmp_path, device="cpu", dtype=torch.float64)
    assert tp.heads(whole) == tp.heads(masked.model)
    bound = 1e-12 if name != "gemma" else 1e-10
    assert error(whole(PROMPTS), masked(PROMPTS)) < bound
    for head in range(whole.cfg.n_heads):
        same = torch.equal(whole.W_O[1, head], masked.model.W_O[1, head])
        assert same == (head > 0) and bool(whole.W_O[1, head].any()) == (head > 0)
    assert not whole.W_in[1].any()
    again = tp.shrink(whole)
    assert again.sizes == small.sizes
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in small.state_dict().items())


@pytest.mark.parametrize("name", SIZES)
def test_a_bridge_of_it_has_its_outputs(name: str, tmp_path: Path) -> None:
    """On every TransformerLens. The model given is left as it is."""
    model = shrunk(name)
    model.save_pretrained(tmp_path)
    for found in (tp.bridge(tmp_path, device="cpu", dtype=torch.float64), tp.bridge(model), tp.load(model)):
        assert len(tp.heads(found)) == sum(kept_model(name).config.num_attention_heads for _ in SIZES[name])
        assert error(found(PROMPTS.to(_device(found))).cpu(), logits(model)) < 1e-5
    assert type(model).__name__.startswith("Shrunk") and error(logits(model), logits(shrunk(name))) == 0


def _device(model: Any) -> torch.device:
    return next(iter(model.parameters())).device


def test_biases_that_no_bridge_has_are_refused(tmp_path: Path) -> None:
    model = shrunk("llama", biases=("attention",))
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.b_O.*no such bias.*Zero\(\)"):
        tp.bridge(model)


@NEEDS_HOOKED_TRANSFORMER
def test_a_model_of_the_file_beside_the_weights_is_known(tmp_path: Path) -> None:
    """Its classes are others, of the same names."""
    model = shrunk("gpt2")
    model.save_pretrained(tmp_path)
    spec = importlib.util.spec_from_file_location("modeling_elsewhere", tmp_path / "modeling_shrunk.py")
    assert spec and spec.loader
    sys.modules["modeling_elsewhere"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs = module.ShrunkGPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float64)
    assert not isinstance(theirs, type(model))
    assert error(tp.from_huggingface(theirs, device="cpu")(PROMPTS), logits(model)) < 1e-10
    with pytest.raises(AttributeError, match="no attribute 'ShrunkNothing'"):
        module.ShrunkNothing  # noqa: B018


@NEEDS_HOOKED_TRANSFORMER
def test_exports_of_a_read_model_are_stock(tmp_path: Path) -> None:
    shrunk("gpt2").save_pretrained(tmp_path / "small")
    whole = tp.load(tmp_path / "small", device="cpu", dtype=torch.float64)
    tp.to_huggingface(whole).save_pretrained(tmp_path / "whole")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"] and "auto_map" not in config
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float64)
    assert error(logits(stock), logits(shrunk("gpt2"))) < 1e-12


# ---- written over others


def test_what_is_written_over_a_model_takes_its_place(tmp_path: Path) -> None:
    small, stock = shrunk("gpt2"), fresh_model("gpt2")
    stock.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    small.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.glob("model*.safetensors*")] == ["model.safetensors"]
    assert error(logits(tp.load_shrunk(tmp_path, device="cpu", dtype=torch.float64)), logits(small)) < 1e-12
    stock.save_pretrained(tmp_path)
    assert (tmp_path / "sizes.json").exists(), "which is of nothing now"
    assert error(logits(tp.load_shrunk(tmp_path, device="cpu", dtype=torch.float64)), logits(stock)) < 1e-12


def test_a_model_in_several_files_is_read(tmp_path: Path) -> None:
    small = shrunk("llama")
    small.save_pretrained(tmp_path)
    small.save_pretrained(tmp_path, max_shard_size="10KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert error(logits(tp.load_shrunk(tmp_path, device="cpu", dtype=torch.float64)), logits(small)) < 1e-12


def test_a_write_that_fails_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = shrunk("gpt2")
    small.save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write = Path.write_text

    def fail(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "sizes.json":
            raise OSError("the disk is full")
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fail)
    randomise(small, seed=5)
    with pytest.raises(OSError, match="disk is full"):
        small.save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


# ---- what is refused


def _layer(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["layers"][1].update(changes)


TAMPERED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (lambda data: data.update(format="sizes"), "format 'sizes' instead of 'tlprune-sizes'"),
    "version": (lambda data: data.update(version=2), "version 2 instead of 1"),
    "no layers": (lambda data: data.pop("layers"), "'layers'"),
    "a layer less": (lambda data: data["layers"].pop(), "1 layers instead of 2"),
    "no heads": (lambda data: data["layers"][1].pop("heads"), "heads"),
    "another field": (_layer(experts=[1]), "experts"),
    "too high": (_layer(heads=[2, 4]), "layer 1: heads must be numbers below 4"),
    "negative": (_layer(neurons=[-1, 3]), "layer 1: neurons must be numbers below 40"),
    "no number": (_layer(neurons=["1"]), "layer 1: neurons must be numbers"),
    "a truth value": (_layer(neurons=[True]), "layer 1: neurons must be numbers"),
    "twice": (_layer(neurons=[3, 3]), "layer 1: neurons must rise"),
    "not a list": (_layer(neurons=3), "int"),
    "another group": (_layer(key_value_heads=[0]), "layer 1: key/value heads must have"),
    "no queries": (_layer(heads=[]), "layer 1: key/value heads must have"),
    "no keys": (_layer(key_value_heads=[]), "layer 1: key/value heads must have"),
    "uneven groups": (_layer(heads=[0, 2, 3], key_value_heads=[0, 1]), "layer 1: key/value heads must have"),
    "a strange bias": (_layer(biases=["embed"]), "layer 1: biases are of 'attention' and 'mlp'"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_broken_sizes_are_one_clear_error(case: str, tmp_path: Path) -> None:
    shrunk("llama").save_pretrained(tmp_path)
    data = json.loads((tmp_path / "sizes.json").read_text())
    change, reason = TAMPERED[case]
    change(data)
    (tmp_path / "sizes.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"sizes.json does not give the sizes.*{reason}.*Save the model again"):
        tp.load_shrunk(tmp_path, device="cpu")
    with pytest.raises(ValueError, match="does not give the sizes"):
        tp.load(tmp_path, device="cpu")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_sizes_that_are_no_object_are_one_clear_error(text: str, tmp_path: Path) -> None:
    shrunk("gpt2").save_pretrained(tmp_path)
    (tmp_path / "sizes.json").write_text(text)
    with pytest.raises(ValueError, match=r"sizes.json does not give the sizes"):
        tp.load_shrunk(tmp_path, device="cpu")
    (tmp_path / "sizes.json").unlink()
    with pytest.raises(ValueError, match=r"has no sizes.json"):
        tp.load_shrunk(tmp_path, device="cpu")


@pytest.mark.parametrize(
    "change",
    [_layer(neurons=[0, 2]), _layer(heads=[0, 1, 2, 3], key_value_heads=[0, 1]), _layer(biases=["mlp"])],
)
def test_sizes_of_other_weights_are_refused(change: Any, tmp_path: Path) -> None:
    """In good order by themselves, but the weights are not of these shapes, or lack one."""
    shrunk("llama").save_pretrained(tmp_path)
    data = json.loads((tmp_path / "sizes.json").read_text())
    change(data)
    (tmp_path / "sizes.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"weights in .* are not those of its sizes.json"):
        tp.load_shrunk(tmp_path, device="cpu")


def test_missing_weights_and_strange_classes_are_refused(tmp_path: Path) -> None:
    shrunk("gpt2").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights that can be read"):
        tp.load_shrunk(tmp_path, device="cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["ShrunkMambaForCausalLM"]}))
    with pytest.raises(ValueError, match="MambaForCausalLM cannot be converted"):
        tp.load_shrunk(tmp_path, device="cpu")


def test_pushing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="upload that folder"):
        shrunk("gpt2").save_pretrained(tmp_path, push_to_hub=True)
    assert not list(tmp_path.iterdir())
