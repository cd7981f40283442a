"""Where TransformerLens' own classes come from, across its versions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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


def build(**settings: Any) -> Any:
    """A HookedTransformer with these settings, without TransformerLens' notice of its successor."""
    model_class, config_class = hooked_transformer()
    with quiet_construction():
        return model_class(config_class(**settings))


@contextmanager
def quiet_construction() -> Iterator[None]:
    """Leave out the notice that TransformerLens 3.9 gives at every construction."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Hooked(Transformer|Encoder) is deprecated", DeprecationWarning)
        yield
