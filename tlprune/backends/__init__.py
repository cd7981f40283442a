"""One module per kind of model; the only places that name a TransformerLens hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tlprune.backends.activations import Backend
from tlprune.backends.bridge_encoder import BridgeEncoderBackend, is_encoder
from tlprune.backends.hooked_encoder import HookedEncoderBackend
from tlprune.backends.hooked_transformer import HookedTransformerBackend
from tlprune.backends.placement import refuse_placement
from tlprune.backends.transformer_bridge import TransformerBridgeBackend


def backend_of_bridge(model: Any) -> Backend:
    """The backend of decoders, or that of encoders."""
    return BridgeEncoderBackend(model) if is_encoder(model) else TransformerBridgeBackend(model)


# By the name of a model's class, or of one that it is made from.
BACKENDS: dict[str, Callable[[Any], Backend]] = {
    "HookedTransformer": HookedTransformerBackend,
    "HookedEncoder": HookedEncoderBackend,
    "TransformerBridge": backend_of_bridge,
}


def backend_of(model: Any) -> Backend:
    """The backend for a model, of one wrapped by ``torch.compile`` for the model inside.

    Raises:
        ValueError: no backend supports this kind of model, or its weights are sharded, placed apart or quantised.
    """
    model = getattr(model, "_orig_mod", model)
    for base in type(model).__mro__:
        if base.__name__ in BACKENDS:
            refuse_placement(model)
            return BACKENDS[base.__name__](model)
    raise ValueError(
        f"tlprune needs one of {', '.join(BACKENDS)} but got {type(model).__name__}. Load one with tp.load(...), with "
        "transformer_lens.HookedTransformer (TransformerLens 3.9) or with TransformerBridge.boot_transformers."
    )
