"""Where TransformerLens' own classes come from, across its versions."""

from __future__ import annotations

from typing import Any


def hooked_transformer() -> tuple[Any, Any]:
    """The classes HookedTransformer and HookedTransformerConfig.

    Raises:
        ValueError: this TransformerLens has none (4.0 and later).
    """
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        from importlib.metadata import version

        raise ValueError(
            f"tlprune needs HookedTransformer, which TransformerLens {version('transformer-lens')} no longer has. "
            "Install transformer-lens 3.9: pip install 'transformer-lens>=3.9,<4'."
        ) from None
    return HookedTransformer, HookedTransformerConfig
