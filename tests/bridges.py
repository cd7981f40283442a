"""Tiny random Hugging Face decoders, one for each way in which bridges differ."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from styles import SHAPE

import tlprune as tp
from tlprune.graph import Convention

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"vocab_size": SHAPE["d_vocab"], "max_position_embeddings": SHAPE["n_ctx"]}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "vocab_size": SHAPE["d_vocab"], "n_positions": 16}

GEMMA2 = GROUPED | {"sliding_window": 3, "query_pre_attn_scalar": 7}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": False}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "llama": ("Llama", SIZES | GROUPED),
    "llama_biased": ("Llama", SIZES | {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", SIZES | GROUPED | {"sliding_window": 3}),
    "qwen2": ("Qwen2", SIZES | GROUPED),
    "qwen3": ("Qwen3", SIZES | GROUPED | {"tie_word_embeddings": True}),
    "gemma": ("Gemma", SIZES | GROUPED),
    "gemma2": ("Gemma2", SIZES | GEMMA2 | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}),
    "gemma3": ("Gemma3", SIZES | GEMMA2 | WINDOWS),
    "neox": ("GPTNeoX", SIZES),
    "neox_serial": ("GPTNeoX", SIZES | {"use_parallel_residual": False}),
}
# Heads are masked in front of this norm and edges carry what is behind it, so node masks of heads are no edge masks.
NORMED_HEADS = ("gemma2", "gemma3")
# Hugging Face computes RMSNorm and the softmax of all but GPT-2 in float32, whatever the weights are.
EXACT = {kind: 1e-9 if kind == "gpt2" else 3e-6 for kind in KINDS}


def hf_model(kind: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A new model; every parameter is random, biases and the gains of norms too."""
    name, settings = KINDS[kind]
    config = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")(**settings | changes)
    config._attn_implementation = "eager"
    architecture = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model = getattr(transformers, architecture)(config).to(torch.float64)
    generator = torch.Generator().manual_seed(sum(map(ord, kind)))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_gain = parameter.dim() == 1 and parameter_name.endswith("weight") and "Gemma" not in name
            parameter.copy_(1 + noise if is_gain else noise)  # Gemma adds the 1 itself
    return model.to(dtype).eval()


def bridged(kind: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A new bridge of the same model."""
    return tp.bridge(hf_model(kind, dtype, **changes))


def conventions(kind: str) -> list[Convention]:
    """Every convention that a kind tells apart."""
    found = [Convention(embeddings) for embeddings in ("merged", "separate", "kept")] + [Convention(qkv="joined")]
    if "num_key_value_heads" in KINDS[kind][1]:
        found += [Convention(embeddings, "per_query_head") for embeddings in ("merged", "kept")]
    return found


CASES = [(kind, convention) for kind in KINDS for convention in conventions(kind)]
NAMES = [f"{kind}-{convention}".replace(", ", "-").replace(" ", "_") for kind, convention in CASES]
