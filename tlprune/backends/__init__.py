"""One module per kind of model; the only places that name a TransformerLens hook."""

from __future__ import annotations

from typing import Any

from tlprune.backends.activations import Backend
from tlprune.backends.hooked_transformer import HookedTransformerBackend


def backend_of(model: Any) -> Backend:
    """The backend for a model.

    Raises:
        ValueError: no backend supports this kind of model.
    """
    if "HookedTransformer" not in {base.__name__ for base in type(model).__mro__}:
        raise ValueError(
            f"tlprune needs a HookedTransformer but got {type(model).__name__}. Load one with tp.load(...) or "
            "transformer_lens.HookedTransformer (TransformerLens 3.9)."
        )
    return HookedTransformerBackend(model)
