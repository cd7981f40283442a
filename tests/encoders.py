"""Tiny random encoders of Hugging Face, one for each way in which they differ, and prompts for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

import tlprune as tp
from tlprune.models.encoder import Head
from tlprune.task import Tokens

VOCABULARY, LENGTH, PAD = 31, 7, {"Bert": 0, "Roberta": 1}
SHAPE = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 20,
    "vocab_size": VOCABULARY, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
# Class, and what of its configuration is unlike the others'.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert classes": ("BertForSequenceClassification", {"num_labels": 3}),
    "bert labels": ("BertForSequenceClassification", {"num_labels": 3, "problem_type": "multi_label_classification"}),
    "bert number": ("BertForSequenceClassification", {"num_labels": 1, "layer_norm_eps": 1e-5}),
    "bert words": ("BertForMaskedLM", {}),
    "bert words untied": ("BertForMaskedLM", {"tie_word_embeddings": False, "hidden_act": "gelu_new"}),
    "bert words relu": ("BertForMaskedLM", {"hidden_act": "relu"}),
    "bert choices": ("BertForMultipleChoice", {"hidden_act": "silu"}),
    "bert": ("BertModel", {}),
    "roberta classes": ("RobertaForSequenceClassification", {"num_labels": 2, "type_vocab_size": 1}),
    "roberta number": ("RobertaForSequenceClassification", {"num_labels": 1, "type_vocab_size": 1}),
    "roberta words": ("RobertaForMaskedLM", {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "hidden_act": "relu"}),
    "roberta choices": ("RobertaForMultipleChoice", {"type_vocab_size": 1}),
    "roberta": ("RobertaModel", {"type_vocab_size": 1}),
}


def hf_model_of(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A new random model; every parameter is random, biases and the gains of norms too."""
    import transformers

    architecture, options = MODELS[name]
    family = "Roberta" if architecture.startswith("Roberta") else "Bert"
    config = getattr(transformers, f"{family}Config")(**(SHAPE | {"pad_token_id": PAD[family]} | options | changes))
    model = getattr(transformers, architecture)(config).to(dtype).eval()
    randomise(model, seed=sum(map(ord, name)))
    return model


@torch.no_grad()
def randomise(model: Any, *, seed: int) -> None:
    """Numbers of size 0.2 everywhere, around 1 in the gains of norms."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        gain = name.lower().endswith(("norm.weight", "ln.w", "ln1.w", "ln2.w"))
        parameter.copy_(1 + noise if gain else noise)


@cache
def encoder_of(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A style's one encoder, for tests that leave it as it is."""
    return fresh_encoder(name, dtype)


def fresh_encoder(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    return tp.from_huggingface(hf_model_of(name, dtype, **changes), device="cpu")


def prompts(name: str, seed: int = 1, *, padding: str | None = None, examples: int = 3) -> Tokens:
    """Random prompts without the padding token, or of several lengths padded on one side; types where there are two."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (examples, LENGTH), generator=generator)
    types = (torch.arange(LENGTH) >= torch.arange(examples)[:, None] + 2).long()
    types = None if name.startswith("roberta") else types
    if padding is None:
        return Tokens(ids, None, types)
    mask = mask_of(examples, padding)
    pad = PAD["Roberta" if name.startswith("roberta") else "Bert"]
    return Tokens(ids.masked_fill(mask == 0, pad), mask, types)


def mask_of(examples: int, side: str) -> Tensor:
    """Prompts of 7, 5, 3, 7, ... tokens."""
    lengths = torch.tensor([LENGTH - 2 * (row % 3) for row in range(examples)])[:, None]
    places = torch.arange(LENGTH)
    return (places < lengths if side == "right" else places >= LENGTH - lengths).long()


def call(model: Any, tokens: Tokens, **options: Any) -> Any:
    """A TransformerLens encoder's output."""
    return model(
        tokens.ids, token_type_ids=tokens.token_types, one_zero_attention_mask=tokens.attention_mask, **options
    )


def call_hf(model: Any, tokens: Tokens, **options: Any) -> Any:
    """A Hugging Face encoder's output."""
    return model(tokens.ids, attention_mask=tokens.attention_mask, token_type_ids=tokens.token_types, **options)


def plain_encoder(dtype: torch.dtype = torch.float64) -> Any:
    """TransformerLens' own HookedEncoder, which predicts masked words, with random parameters."""
    from transformer_lens import HookedEncoder, HookedTransformerConfig

    from tlprune.models.transformer_lens import quiet_construction

    config = HookedTransformerConfig(
        n_layers=2, d_model=24, n_ctx=16, d_head=6, n_heads=4, d_mlp=20, d_vocab=VOCABULARY, act_fn="gelu",
        attention_dir="bidirectional", eps=1e-5, dtype=dtype, device="cpu", init_weights=False, model_name="plain",
    )  # fmt: skip
    with quiet_construction():
        model = HookedEncoder(config)
    randomise(model, seed=3)
    return model.eval()


@cache
def kept_encoder(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A model of a name in ``ENCODERS``, for tests that leave it as it is."""
    if name == "bert mean":
        model = fresh_encoder("bert", dtype)
        model.head = Head("pooling", pooling="mean")
        return model
    return plain_encoder(dtype) if name == "plain" else encoder_of(name, dtype)


# One for each way in which a masked run differs: head, position table, norm, activation.
ENCODERS = (
    *("plain", "bert classes", "bert number", "bert words", "bert choices", "bert", "bert mean"),
    *("roberta classes", "roberta words"),
)
