"""Architectures without a converter, refused by name before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Parts of a configuration, or of a class name, that say what kind of model it is.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
ENCODER_DECODERS = ("T5", "Bart", "MBart", "Pegasus", "Marian", "Whisper", "BlenderBot")


def refuse_architecture(architecture: str, config: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise a ValueError unless there is a converter for a class and nothing in its configuration rules it out.

    Args:
        architecture: name of the transformers class.
        config: its configuration as plain data.
        known: classes that have a converter.
    """
    if architecture in known and not config.get("quantization_config"):
        return
    raise ValueError(
        f"{architecture}{_reason(architecture, config)} cannot be converted. Supported are unquantised "
        f"{', '.join(sorted(known))}; another model that TransformerLens can load is passed as it is, as an object."
    )


def _reason(architecture: str, config: Mapping[str, Any]) -> str:
    method = (config.get("quantization_config") or {}).get("quant_method")
    experts = next((config[key] for key in EXPERTS if config.get(key)), None)
    reasons = {
        f" with quantised weights ({method})": config.get("quantization_config"),
        " (multi-head latent attention, MLA)": config.get("kv_lora_rank"),
        f" (a mixture of {experts} experts, MoE)": experts,
        " (an encoder and a decoder)": config.get("is_encoder_decoder") or architecture.startswith(ENCODER_DECODERS),
        " (norms behind attention and MLP alone)": architecture.startswith(("Olmo2", "Olmo3")),
    }
    return next((reason for reason, found in reasons.items() if found), "")
