"""Tiny random Hugging Face models, one for each way in which the architectures that can be converted differ."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers

VOCABULARY = 29
# The width is not heads times numbers per head, and the head counts differ, so that no two axes can be confused.
LLAMA = {
    "vocab_size": VOCABULARY, "num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 10, "intermediate_size": 40, "max_position_embeddings": 32,
}  # fmt: skip
QWEN2 = {key: value for key, value in LLAMA.items() if key != "head_dim"}
NEOX = {
    "vocab_size": VOCABULARY, "num_hidden_layers": 2, "hidden_size": 20, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 32, "rope_parameters": {"partial_rotary_factor": 0.4},
}  # fmt: skip
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 21, "n_layer": 3, "n_head": 3, "n_positions": 32, "n_inner": 50}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
SLIDING = {"sliding_window": 3}
GEMMA2 = LLAMA | SLIDING | {"query_pre_attn_scalar": 7, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
GEMMA3 = LLAMA | SLIDING | {"query_pre_attn_scalar": 7, "layer_types": ["sliding_attention", "full_attention"]}
SCALED_BY_KIND = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2-untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True}),
    "gpt2-unscaled": ("GPT2", GPT2 | {"scale_attn_weights": False, "activation_function": "relu"}),
    "neox": ("GPTNeoX", NEOX),
    "neox-serial": ("GPTNeoX", NEOX | {"use_parallel_residual": False, "hidden_act": "gelu_new"}),
    "neox-tied": ("GPTNeoX", NEOX | {"attention_bias": False, "tie_word_embeddings": True}),
    "llama": ("Llama", LLAMA | {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
    "llama-tied": ("Llama", LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 4, "rms_norm_eps": 0.1}),
    "llama-biases": ("Llama", LLAMA | {"attention_bias": True}),
    "llama-3": ("Llama", LLAMA | {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", LLAMA | {"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 3.0}}),
    "mistral": ("Mistral", LLAMA | {"sliding_window": None}),
    "mistral-sliding": ("Mistral", LLAMA | SLIDING),
    "qwen2": ("Qwen2", QWEN2 | {"tie_word_embeddings": True}),
    "qwen2-sliding": ("Qwen2", QWEN2 | SLIDING | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("Qwen3", LLAMA | {"num_key_value_heads": 1}),
    "qwen3-biases": ("Qwen3", LLAMA | {"attention_bias": True, "num_key_value_heads": 4}),
    "gemma": ("Gemma", LLAMA),
    "gemma2": ("Gemma2", GEMMA2),
    "gemma2-uncapped": (
        "Gemma2",
        GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False},
    ),
    "gemma3": ("Gemma3", GEMMA3),
    "gemma3-scaled": ("Gemma3", GEMMA3 | {"rope_parameters": SCALED_BY_KIND, "final_logit_softcapping": 4.0}),
}
CLASSES = {"GPT2": "GPT2LMHeadModel"}
CONFIGURATIONS = {"Gemma3": "Gemma3TextConfig"}


@cache
def kept_model(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A random model, for tests that leave it as it is."""
    return fresh_model(name, dtype)


def fresh_model(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A new random model; every parameter is random, biases and the gains of norms too."""
    family, settings = MODELS[name]
    config = getattr(transformers, CONFIGURATIONS.get(family, f"{family}Config"))(**settings)
    model = getattr(transformers, CLASSES.get(family, f"{family}ForCausalLM"))(config).to(dtype)
    randomise(model, seed=sum(map(ord, name)))
    return model.eval()


@torch.no_grad()
def randomise(model: Any, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(0.7 + noise if parameter.dim() == 1 else noise)
