"""Out of a TransformerBridge: what it computes with, in a stock model of the class that it wraps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tlprune.backends.activations import Backend
from tlprune.backends.bridge_weights import Place, Places
from tlprune.models.converters import CONVERTERS
from tlprune.models.converters.layout import refuse_homeless, spread

WRAPPER = "._original_component"


def wrapped_model(model: Any) -> Any:
    """The transformers model behind a bridge; ``None`` for all else, bridges of TransformerLens' own model included."""
    wrapped = getattr(model, "original_model", None)
    return wrapped if "PreTrainedModel" in {base.__name__ for base in type(wrapped).__mro__} else None


@torch.no_grad()
def write_bridge(hf_model: Any, backend: Backend, parameters: Mapping[str, Tensor]) -> None:
    """Write a bridge's weights, some of which were changed, into a new model of the class behind it.

    What no mask can reach (a bias of a gate) is copied as it is.

    Raises:
        ValueError: a parameter that is not zero has no place in that class, or q, k and v are one matrix there and no
            converter says in which layout.
    """
    wrapped, places = wrapped_model(backend.model), _places(backend)
    stock, named = hf_model.state_dict().keys(), wrapped.state_dict().items()
    state = {name.replace(WRAPPER, ""): value for name, value in named if name.replace(WRAPPER, "") in stock}
    homeless: dict[str, Tensor] = {}
    for name, value in parameters.items():
        home = _home(wrapped, places.all[name], state)
        if home is None:
            homeless[name] = value
        else:
            state[home] = places.all[name].written(value)
    for name, (ours, value) in _fused(backend, homeless).items():
        if name in state:
            state[name] = value
            homeless = {name: value for name, value in homeless.items() if name not in ours}
    _refuse_split(hf_model, homeless)
    refuse_homeless(hf_model, homeless)
    hf_model.load_state_dict(state)


def _refuse_split(hf_model: Any, homeless: Mapping[str, Tensor]) -> None:
    split = [name for name in homeless if name.rpartition(".")[2].startswith("W_")]
    if split:
        raise ValueError(
            f"Exporting needs to know where each matrix is, but {type(hf_model).__name__} keeps {split[0]} within "
            "another one, in a layout that no converter knows. Export a GPT-2, a GPT-NeoX, or a model with a matrix "
            "each for q, k and v."
        )


def _places(backend: Any) -> Places:
    return backend.places


def _home(wrapped: Any, place: Place, state: Mapping[str, Tensor]) -> str | None:
    """The stock name of a tensor, if the stock model has it as one."""
    names = [name for name, module in wrapped.named_modules(remove_duplicate=False) if module is place.module]
    found = [f"{name.replace(WRAPPER, '')}.{place.attribute}" for name in names]
    return next((name for name in found if name in state and place.stored is not None), None)


def _fused(backend: Backend, homeless: Mapping[str, Tensor]) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """Stock tensors that a bridge splits, each with the names of its parts; its own copy of them is dead."""
    wrapped, shape = wrapped_model(backend.model), backend.architecture
    converter: Any = CONVERTERS.get(type(wrapped).__name__)
    if converter is None:
        return {}
    sizes = {"n": shape.n_heads, "k": shape.n_kv_heads, "h": backend.model.cfg.d_head}
    weights = [weight for weight in spread(converter.weights(wrapped.config), shape.n_layers) if len(weight.ours) > 1]
    return {
        weight.theirs: (weight.ours, weight.write(homeless, sizes))
        for weight in weights
        if all(name in homeless for name in weight.ours)
    }
