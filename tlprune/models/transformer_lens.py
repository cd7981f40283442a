"""Where TransformerLens' own classes come from, across its versions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens still has HookedTransformer; 4.0 and later have TransformerBridge alone."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def hooked_transformer() -> tuple[Any, Any]:
    """The classes HookedTransformer and HookedTransformerConfig.

    Raises:
        ValueError: this TransformerLens has none (4.0 and later).
    """
    if not has_hooked_transformer():
        from importlib.metadata import version

        raise ValueError(
            f"This needs HookedTransformer, which TransformerLens {version('transformer-lens')} no longer has. Use "
            "tp.load(...), which gives a TransformerBridge, or install transformer-lens 3.9: "
            "pip install 'transformer-lens>=3.9,<4'."
        )
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    return HookedTransformer, HookedTransformerConfig


def build(**settings: Any) -> Any:
    """A HookedTransformer with these settings, without TransformerLens' notice of its successor."""
    model_class, config_class = hooked_transformer()
    with quiet_construction():
        return model_class(config_class(**settings))


def build_bridge(*, model_name: str, init_weights: bool = False, **settings: Any) -> Any:
    """A TransformerBridge of TransformerLens' own model with these settings, in evaluation mode.

    It has every bias of a HookedTransformer's head. Without ``init_weights`` the weights are the caller's to fill. The
    global random state is not touched.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native import boot  # pyright: ignore[reportAttributeAccessIssue]

    with torch.random.fork_rng(devices=[]):
        model = boot(TransformerBridgeConfig(**settings, init_weights=init_weights), model_name=model_name)
    head = model.unembed.original_component
    head.bias = torch.nn.Parameter(head.weight.new_zeros(len(head.weight)))
    return model.eval()


@contextmanager
def quiet_construction() -> Iterator[None]:
    """Leave out the notice that TransformerLens 3.9 gives at every construction."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Hooked(Transformer|Encoder) is deprecated", DeprecationWarning)
        yield


def official_names() -> dict[str, tuple[str, ...]]:
    """Names of the models that TransformerLens downloads, each with the others that it knows the model by."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    return {name: tuple(one for one in MODEL_ALIASES.get(name) or () if one != name) for name in OFFICIAL_MODEL_NAMES}
