"""What Hugging Face configurations say of activations, rotary positions and attention windows, for TransformerLens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def refuse(architecture: str, reasons: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first reason that holds."""
    for reason, found in reasons.items():
        if found:
            raise ValueError(
                f"This {architecture} has {reason}, which HookedTransformer cannot follow. Choose a checkpoint "
                "without, or pass a model that you loaded yourself."
            )


def activation(name: str) -> str:
    """The activation function, by the name that both libraries have for it."""
    from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

    if name not in SUPPORTED_ACTIVATIONS:
        raise ValueError(
            f"This model's activation function is {name!r}, but HookedTransformer knows "
            f"{', '.join(sorted(SUPPORTED_ACTIVATIONS))}. Pass a model that you loaded yourself."
        )
    return name


def rotary_settings(architecture: str, config: Any, d_head: int) -> dict[str, Any]:
    """Settings for rotary positions, which may differ between layers with and without windows (Gemma 3).

    Raises:
        ValueError: they are scaled in a way other than Llama 3's or a constant factor, or where TransformerLens does
            not scale.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in rope:
        everywhere = _rotary(architecture, rope["full_attention"], config, d_head)
        within = _rotary(architecture, rope["sliding_attention"], config, d_head)
        scaled = rope["sliding_attention"].get("rope_type", "default") != "default"
        _refuse_scaled_windows(architecture, scaled or "use_NTK_by_parts_rope" in everywhere)
        return {**everywhere, "rotary_base_local": within["rotary_base"]}
    settings = _rotary(architecture, rope, config, d_head)
    _refuse_scaled_windows(architecture, "rotary_scaling_factor" in settings and bool(window_settings(config)))
    return settings


def _refuse_scaled_windows(architecture: str, found: bool) -> None:
    refuse(architecture, {"scaled rotary positions in windows": found})


def _rotary(architecture: str, rope: Mapping[str, Any], config: Any, d_head: int) -> dict[str, Any]:
    return {
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "rotary_dim": int(d_head * rope.get("partial_rotary_factor", 1.0)),
        "rotary_base": rope.get("rope_theta", 10000.0),
        **_scaling(architecture, rope, config),
    }


def _scaling(architecture: str, rope: Mapping[str, Any], config: Any) -> dict[str, Any]:
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return {}
    if kind == "linear":
        return {"rotary_scaling_factor": rope["factor"]}
    if kind == "llama3":
        return {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": rope["factor"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_original_ctx_len": rope.get("original_max_position_embeddings") or config.max_position_embeddings,
        }
    raise ValueError(
        f"This {architecture} has rotary scaling {kind!r}, but the converter knows 'default', 'linear' and 'llama3'. "
        "Pass a model that you loaded yourself."
    )


def window_settings(config: Any) -> dict[str, Any]:
    """Settings for layers that attend to the last ``sliding_window`` tokens alone."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    if not window or "sliding_attention" not in kinds:
        return {}
    names = {"sliding_attention": "local", "full_attention": "global"}
    return {"use_local_attn": True, "window_size": window, "attn_types": [names[kind] for kind in kinds]}
