"""Encoders go back to Hugging Face: stock models that compute what the masked ones do, written and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoders import MODELS, call_hf, fresh_encoder, hf_model_of, prompts
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import error
from test_encoder_nodes import clean, others
from torch import Tensor

import tlprune as tp

pytestmark = NEEDS_HOOKED_TRANSFORMER
each_model = pytest.mark.parametrize("name", MODELS)
FEW = ("bert classes", "bert words", "bert choices", "bert", "roberta number", "roberta words", "roberta")
KINDS = {
    "heads": tp.heads, "mlps": tp.mlps, "layers": tp.layers, "nodes": tp.nodes, "neurons": tp.neurons,
    "weights": tp.weights, "all": lambda model: tp.nodes(model) + tp.neurons(model) + tp.weights(model),
}  # fmt: skip


def output_of(hf_model: Any, name: str) -> Tensor:
    """What a head says of padded prompts; of choices one score per row, as the masked model gives it."""
    tokens = clean(name)
    if "choices" in name:
        found = hf_model(
            tokens.ids[:, None],
            attention_mask=None if tokens.attention_mask is None else tokens.attention_mask[:, None],
            token_type_ids=None if tokens.token_types is None else tokens.token_types[:, None],
        )
        return found.logits[:, None]
    found = call_hf(hf_model, tokens)
    found = found.logits if hasattr(found, "logits") else found.pooler_output
    return found if found.dim() == 3 else found[:, None]


def masked_of(model: Any, kind: str, ablation: Any) -> tp.Masked:
    """About half of the sites are kept, and of the nodes neither the first nor all."""
    sites = KINDS[kind](model)
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) < 0.5
    kept[:2] = torch.tensor([False, True])
    return tp.Masked(model, tp.Circuit(sites, kept), ablation)


@each_model
def test_there_and_back_is_the_same_model(name: str) -> None:
    """But for the bias beside an untied decoder, which transformers does not read."""
    original = hf_model_of(name)
    back = tp.to_huggingface(fresh_encoder(name))
    assert type(back) is type(original)
    assert back.state_dict().keys() == original.state_dict().keys()
    for key, value in original.state_dict().items():
        if not (name == "bert words untied" and key == "cls.predictions.bias"):
            assert torch.equal(back.state_dict()[key], value), key


@pytest.mark.parametrize("ablation", ["zero", "mean", "constant"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FEW)
def test_what_is_ablated_is_built_in(name: str, kind: str, ablation: str) -> None:
    model = fresh_encoder(name)
    neurons = tuple(range(3)) if kind in ("neurons", "all") else ()
    mean = tp.Mean(others(name))
    chosen = {"zero": tp.Zero(), "mean": mean, "constant": tp.Constant(model, mean, neurons=neurons)}[ablation]
    masked = masked_of(model, kind, chosen)
    exported = tp.to_huggingface(masked)
    assert error(output_of(exported, name), masked(clean(name))) <= 1e-9
    assert error(output_of(exported, name), output_of(hf_model_of(name), name)) > 1e-3


@pytest.mark.parametrize("name", ["bert classes", "bert words", "roberta number", "bert"])
def test_saved_models_are_read_by_stock_transformers_and_by_load(name: str, tmp_path: Path) -> None:
    masked = masked_of(fresh_encoder(name, torch.float32), "heads", tp.Zero())
    tp.to_huggingface(masked).save_pretrained(tmp_path)
    stock = getattr(transformers, MODELS[name][0]).from_pretrained(tmp_path).eval()
    assert error(output_of(stock, name), masked(clean(name))) <= 1e-5
    read = tp.load(tmp_path, device="cpu")
    plain = tp.Masked(read, tp.Circuit(tp.mlps(read), torch.ones(3, dtype=torch.bool)), tp.Zero())
    assert error(plain(clean(name)), masked(clean(name))) <= 1e-5


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_a_trunk_without_a_pooler_gives_means_and_comes_back_with_one_of_zeros(family: str) -> None:
    name = family.lower()
    whole = hf_model_of(name)
    trunk = type(whole)(whole.config, add_pooling_layer=False).double().eval()
    trunk.load_state_dict({key: value for key, value in whole.state_dict().items() if "pooler" not in key})
    model, tokens = tp.from_huggingface(trunk, device="cpu"), prompts(name)
    states = call_hf(trunk, tokens).last_hidden_state
    assert error(model(tokens.ids, token_type_ids=tokens.token_types), states.mean(1)) <= 1e-12
    back = tp.to_huggingface(model)
    assert error(call_hf(back, tokens).last_hidden_state, states) <= 1e-12
    assert not back.pooler.dense.weight.any()
