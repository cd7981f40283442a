"""Back to Hugging Face: a stock transformers model that computes what a masked TransformerLens model does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.activations import Backend
from tlprune.masking.folding import folded_parameters
from tlprune.masking.masked import Masked
from tlprune.models.bridge_export import wrapped_model, write_bridge
from tlprune.models.checkpoints import unfilled
from tlprune.models.converters import CONVERTERS
from tlprune.models.huggingface import remembered_config

Write = Callable[[Any, Mapping[str, Tensor]], None]


@torch.no_grad()
def to_huggingface(model: Any, *, config: Any | None = None) -> Any:
    """A new transformers model of the stock class, with the same shapes and the outputs of the masked model.

    Ablated heads' rows of the output projection, ablated MLPs' and neurons' output weights and masked weights are 0
    (a smaller model is another thing); means go into biases where the architecture has them. ``save_pretrained`` then
    writes a checkpoint that transformers reads without this library; ``model.tokenizer.save_pretrained`` goes beside.

    Args:
        model: a :class:`~tlprune.Masked` whose hard circuit is built in, over heads, MLPs, layers, nodes, neurons or
            weights, under Zero, a Mean over positions, or learned constants; or a TransformerLens model.
        config: the Hugging Face configuration, or a directory that holds it; by default that of the model that
            :func:`~tlprune.from_huggingface` was given, or of the one behind a TransformerBridge, which is left as it
            is.

    Raises:
        ValueError: the masks hold edges, differ by span, freeze norms or need to know prompts (Resample); a mean has
            no bias to go into (Llama, Qwen, Gemma); or the model is not from Hugging Face and there is no ``config``.

    Example:
        >>> import tlprune as tp
        >>> model = tp.load("testbed")
        >>> masks = tp.Circuit.from_names(tp.heads(model), ["a0.h1", "a2.h3"])
        >>> masked = tp.Masked(model, masks, tp.Zero())
        >>> exported = to_huggingface(masked)
        >>> type(exported).__name__
        'GPT2LMHeadModel'
        >>> tokens = torch.tensor([[3, 1, 4]], device=exported.device)
        >>> bool((exported(tokens).logits - masked(tokens)).abs().max() < 1e-4)
        True
    """
    lens = model.model if isinstance(model, Masked) else model
    backend = backend_of(lens)
    config, write = way_back(lens, backend, config)
    parameters = folded_parameters(model) if isinstance(model, Masked) else backend.parameters()
    exported = written(config, lambda new: write(new, parameters), backend.dtype)
    return exported.to(device=backend.device).eval()


def way_back(model: Any, backend: Backend, config: Any | None) -> tuple[Any, Write]:
    """The configuration to build from, and what writes parameters into the model that is built."""
    wrapped = wrapped_model(model)
    if config is None and wrapped is not None:
        return remembered_config(wrapped), lambda new, parameters: write_bridge(new, backend, parameters)
    found = _configuration_of(model, config)
    return found, CONVERTERS[found.architectures[0]].restore


def _configuration_of(model: Any, config: Any | None) -> Any:
    """A copy of the configuration to build from."""
    if isinstance(config, (str, Path)):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(config, local_files_only=True)
    config = getattr(model, "huggingface_config", None) if config is None else config
    if config is None:
        raise ValueError(
            "Exporting needs the Hugging Face configuration, but this model does not know its own. Load it with "
            "tp.from_huggingface(...), or give config=, a configuration or a directory that holds one."
        )
    return _with_class(copy.deepcopy(config), getattr(model.cfg, "original_architecture", None))


def _with_class(config: Any, usual: str | None) -> Any:
    """The configuration, which names a class that can be written."""
    config.architectures = config.architectures or [str(usual)]
    if config.architectures[0] not in CONVERTERS:
        raise ValueError(
            f"The configuration is of {config.architectures[0]}, but what can be exported is "
            f"{', '.join(sorted(CONVERTERS))}. Give a configuration whose architectures name one of these."
        )
    return config


def written(config: Any, write: Callable[[Any], None], dtype: torch.dtype) -> Any:
    """A model of the configured class, filled by ``write``; embeddings are tied if they were and still agree."""
    was_tied, config.tie_word_embeddings = getattr(config, "tie_word_embeddings", False), False
    model = _filled(config, write, dtype)
    if was_tied and _ties_agree(model):
        config.tie_word_embeddings = True
        model = _filled(config, write, dtype)
    return model


def _filled(config: Any, write: Callable[[Any], None], dtype: torch.dtype) -> Any:
    import transformers

    model = unfilled(getattr(transformers, config.architectures[0]), copy.deepcopy(config), dtype=dtype)
    write(model)
    return model


def _ties_agree(model: Any) -> bool:
    """Whether input and output embeddings are one matrix, up to the rounding of a factor between them."""
    output = model.get_output_embeddings()
    if output is None:
        return True
    own, other = model.get_input_embeddings().weight, output.weight
    return own.shape == other.shape and bool(
        (own - other).abs().max() <= 4 * torch.finfo(own.dtype).eps * other.abs().max()
    )
