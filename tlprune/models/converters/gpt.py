"""GPT-2 and GPT-NeoX (Pythia): LayerNorm, biases everywhere, q, k and v in one matrix."""

from __future__ import annotations

from typing import Any

from tlprune.models.converters.layout import Weight
from tlprune.models.converters.rotary import activation, refuse, rotary_settings


def gpt2_settings(config: Any) -> dict[str, Any]:
    refuse("GPT2", {"cross-attention": getattr(config, "add_cross_attention", False)})
    return {
        "n_layers": config.n_layer,
        "d_model": config.n_embd,
        "n_heads": config.n_head,
        "d_head": config.n_embd // config.n_head,
        "d_mlp": config.n_inner or 4 * config.n_embd,
        "n_ctx": config.n_positions,
        "d_vocab": config.vocab_size,
        "act_fn": activation(config.activation_function),
        "eps": config.layer_norm_epsilon,
        "use_attn_scale": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "normalization_type": "LN",
    }


def gpt2_weights(config: Any) -> list[Weight]:
    block, ours = "transformer.h.{}.", "blocks.{}."
    return [
        Weight("transformer.wte.weight", ("embed.W_E",)),
        Weight("transformer.wpe.weight", ("pos_embed.W_pos",)),
        Weight(f"{block}ln_1.weight", (f"{ours}ln1.w",)),
        Weight(f"{block}ln_1.bias", (f"{ours}ln1.b",)),
        Weight(f"{block}attn.c_attn.weight", _attention("W"), "m (q n h) -> q n m h"),
        Weight(f"{block}attn.c_attn.bias", _attention("b"), "(q n h) -> q n h"),
        Weight(f"{block}attn.c_proj.weight", (f"{ours}attn.W_O",), "(n h) m -> n h m"),
        Weight(f"{block}attn.c_proj.bias", (f"{ours}attn.b_O",)),
        Weight(f"{block}ln_2.weight", (f"{ours}ln2.w",)),
        Weight(f"{block}ln_2.bias", (f"{ours}ln2.b",)),
        Weight(f"{block}mlp.c_fc.weight", (f"{ours}mlp.W_in",)),
        Weight(f"{block}mlp.c_fc.bias", (f"{ours}mlp.b_in",)),
        Weight(f"{block}mlp.c_proj.weight", (f"{ours}mlp.W_out",)),
        Weight(f"{block}mlp.c_proj.bias", (f"{ours}mlp.b_out",)),
        Weight("transformer.ln_f.weight", ("ln_final.w",)),
        Weight("transformer.ln_f.bias", ("ln_final.b",)),
        Weight("lm_head.weight", ("unembed.W_U",), "v m -> m v"),
    ]


def neox_settings(config: Any) -> dict[str, Any]:
    d_head = config.hidden_size // config.num_attention_heads
    return {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "d_head": d_head,
        "d_mlp": config.intermediate_size,
        "n_ctx": config.max_position_embeddings,
        "d_vocab": config.vocab_size,
        "act_fn": activation(config.hidden_act),
        "eps": config.layer_norm_eps,
        "normalization_type": "LN",
        "parallel_attn_mlp": config.use_parallel_residual,
        **rotary_settings("GPTNeoX", config, d_head),
    }


def neox_weights(config: Any) -> list[Weight]:
    block, ours = "gpt_neox.layers.{}.", "blocks.{}."
    return [
        Weight("gpt_neox.embed_in.weight", ("embed.W_E",)),
        Weight(f"{block}input_layernorm.weight", (f"{ours}ln1.w",)),
        Weight(f"{block}input_layernorm.bias", (f"{ours}ln1.b",)),
        Weight(f"{block}attention.query_key_value.weight", _attention("W"), "(n q h) m -> q n m h"),
        Weight(f"{block}attention.query_key_value.bias", _attention("b"), "(n q h) -> q n h"),
        Weight(f"{block}attention.dense.weight", (f"{ours}attn.W_O",), "m (n h) -> n h m"),
        Weight(f"{block}attention.dense.bias", (f"{ours}attn.b_O",)),
        Weight(f"{block}post_attention_layernorm.weight", (f"{ours}ln2.w",)),
        Weight(f"{block}post_attention_layernorm.bias", (f"{ours}ln2.b",)),
        Weight(f"{block}mlp.dense_h_to_4h.weight", (f"{ours}mlp.W_in",), "f m -> m f"),
        Weight(f"{block}mlp.dense_h_to_4h.bias", (f"{ours}mlp.b_in",)),
        Weight(f"{block}mlp.dense_4h_to_h.weight", (f"{ours}mlp.W_out",), "m f -> f m"),
        Weight(f"{block}mlp.dense_4h_to_h.bias", (f"{ours}mlp.b_out",)),
        Weight("gpt_neox.final_layer_norm.weight", ("ln_final.w",)),
        Weight("gpt_neox.final_layer_norm.bias", ("ln_final.b",)),
        Weight("lm_head.weight", ("unembed.W_U",), "v m -> m v"),
    ]


def _attention(kind: str) -> tuple[str, ...]:
    return tuple(f"blocks.{{}}.attn.{kind}_{part}" for part in "QKV")
