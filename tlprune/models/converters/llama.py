"""Llama and its relatives (Mistral, Qwen 2 and 3, Gemma 1 to 3): RMSNorm, rotary positions, gated MLPs."""

from __future__ import annotations

from typing import Any

from tlprune.models.converters.layout import Weight
from tlprune.models.converters.rotary import activation, refuse, rotary_settings, window_settings


def llama_settings(config: Any) -> dict[str, Any]:
    settings = {"use_qk_norm": config.model_type == "qwen3"}
    if config.model_type.startswith("qwen"):
        settings["default_prepend_bos"] = False  # Qwen was trained without such a token, and has none
    return {**_settings(config, config.hidden_act), **settings}


def llama_weights(config: Any) -> list[Weight]:
    return [*_weights(second_norm="post_attention_layernorm"), *(_qk_norms() if config.model_type == "qwen3" else [])]


def gemma_settings(config: Any) -> dict[str, Any]:
    refuse(_name(config), {"bidirectional attention": getattr(config, "use_bidirectional_attention", False)})
    # transformers before 5 kept Gemma 1's activation under both names, and used this one.
    function = getattr(config, "hidden_activation", None) or config.hidden_act
    return {**_settings(config, function), **({} if config.model_type == "gemma" else _post_norm_settings(config))}


def _post_norm_settings(config: Any) -> dict[str, Any]:
    """What Gemma 2 and 3 have: Gemma 2 caps attention scores, Gemma 3 normalises q and k instead."""
    second = config.model_type == "gemma2"
    return {
        "use_normalization_before_and_after": True,
        "use_qk_norm": not second,
        "attn_scale": config.query_pre_attn_scalar**0.5,
        "attn_scores_soft_cap": (second and config.attn_logit_softcapping) or -1.0,
        "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
    }


def gemma_weights(config: Any) -> list[Weight]:
    """Gemma's norms multiply by ``1 + weight``, and its embeddings by the root of the width."""
    scale = config.hidden_size**0.5
    if config.model_type == "gemma":
        return _weights(second_norm="post_attention_layernorm", offset=1.0, embedding_scale=scale)
    block = "model.layers.{}."
    return [
        *_weights(second_norm="pre_feedforward_layernorm", offset=1.0, embedding_scale=scale),
        Weight(f"{block}post_attention_layernorm.weight", ("blocks.{}.ln1_post.w",), offset=1.0),
        Weight(f"{block}post_feedforward_layernorm.weight", ("blocks.{}.ln2_post.w",), offset=1.0),
        *([] if config.model_type == "gemma2" else _qk_norms(offset=1.0)),
    ]


def _weights(*, second_norm: str, offset: float = 0.0, embedding_scale: float = 1.0) -> list[Weight]:
    block, ours = "model.layers.{}.", "blocks.{}."
    attention, mine = f"{block}self_attn.", f"{ours}attn."
    weights = [
        Weight("model.embed_tokens.weight", ("embed.W_E",), factor=embedding_scale),
        Weight(f"{block}input_layernorm.weight", (f"{ours}ln1.w",), offset=offset),
        Weight(f"{attention}o_proj.weight", (f"{mine}W_O",), "m (n h) -> n h m"),
        Weight(f"{attention}o_proj.bias", (f"{mine}b_O",)),
        Weight(f"{block}{second_norm}.weight", (f"{ours}ln2.w",), offset=offset),
        Weight(f"{block}mlp.up_proj.weight", (f"{ours}mlp.W_in",), "f m -> m f"),
        Weight(f"{block}mlp.gate_proj.weight", (f"{ours}mlp.W_gate",), "f m -> m f"),
        Weight(f"{block}mlp.down_proj.weight", (f"{ours}mlp.W_out",), "m f -> f m"),
        Weight("model.norm.weight", ("ln_final.w",), offset=offset),
        Weight("lm_head.weight", ("unembed.W_U",), "v m -> m v"),
    ]
    for part, heads in (("q", "n"), ("k", "k"), ("v", "k")):
        weights += [
            Weight(f"{attention}{part}_proj.weight", (f"{mine}W_{part.upper()}",), f"({heads} h) m -> {heads} m h"),
            Weight(f"{attention}{part}_proj.bias", (f"{mine}b_{part.upper()}",), f"({heads} h) -> {heads} h"),
        ]
    return weights


def _qk_norms(*, offset: float = 0.0) -> list[Weight]:
    theirs, ours = "model.layers.{{}}.self_attn.{}_norm.weight", "blocks.{{}}.attn.{}_norm.w"
    return [Weight(theirs.format(part), (ours.format(part),), offset=offset) for part in "qk"]


def _settings(config: Any, activation_function: str) -> dict[str, Any]:
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    refuse(_name(config), {"MLP biases": getattr(config, "mlp_bias", False)})
    return {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": heads,
        "n_key_value_heads": None if kv == heads else kv,
        "d_head": d_head,
        "d_mlp": config.intermediate_size,
        "n_ctx": config.max_position_embeddings,
        "d_vocab": config.vocab_size,
        "act_fn": activation(activation_function),
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        **rotary_settings(_name(config), config, d_head),
        **window_settings(config),
    }


def _name(config: Any) -> str:
    return type(config).__name__.removesuffix("Config")
