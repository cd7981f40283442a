"""Models without weights: shapes alone, for what needs to know no more."""

from __future__ import annotations

import copy
from typing import Any

import torch

from tlprune.learning.estimate import outlined_model
from tlprune.models.bridge import bridge
from tlprune.models.transformer_lens import build, build_bridge, has_hooked_transformer


def outline(config: Any, *, dtype: torch.dtype | None = None) -> Any:
    """A model of this shape without weights: it takes no memory and computes no numbers.

    It serves :func:`tlprune.estimate` and whatever makes sites of a model, such as :func:`tlprune.edges`.

    Args:
        config: of a decoder: Hugging Face's, for a TransformerBridge, or one of TransformerLens' own, for a
            HookedTransformer (on TransformerLens 4 a TransformerBridge).
        dtype: of its weights; by default what the configuration says.

    Raises:
        ValueError: it is no such configuration.

    Example:
        >>> import tlprune as tp, transformers
        >>> shape = dict(num_hidden_layers=40, num_attention_heads=40, hidden_size=5120, intermediate_size=13824)
        >>> model = outline(transformers.LlamaConfig(**shape, vocab_size=32016), dtype=torch.bfloat16)
        >>> tp.edges(model)
        Sites(3,877,661 edges)
    """
    if hasattr(config, "n_layers") and hasattr(config, "d_model"):
        return _own(config, dtype)
    if not hasattr(config, "num_hidden_layers"):
        raise ValueError(
            f"An outline needs the configuration of a model but got {type(config).__name__}. Give Hugging Face's "
            "(model.config) or TransformerLens' (model.cfg)."
        )
    return _behind_a_bridge(config, dtype)


def _own(config: Any, dtype: torch.dtype | None) -> Any:
    settings = {
        name: value for name, value in copy.deepcopy(config.to_dict()).items() if name not in ("device", "dtype")
    }
    settings |= {"device": "meta", "dtype": dtype or config.dtype, "init_weights": False}
    with torch.device("meta"):
        return build(**settings).eval() if has_hooked_transformer() else build_bridge(**settings)


def _behind_a_bridge(config: Any, dtype: torch.dtype | None) -> Any:
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    try:
        return bridge(_of_hugging_face(config, dtype))
    except NotImplementedError:
        # Where q, k and v are one matrix, a bridge wants memory to take views of; nothing is ever written there.
        model = _of_hugging_face(config, dtype).to_empty(device="cpu")
        model.tie_weights()
        return outlined_model(bridge(model))


def _of_hugging_face(config: Any, dtype: torch.dtype | None) -> Any:
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
        return model if dtype is None else model.to(dtype)
