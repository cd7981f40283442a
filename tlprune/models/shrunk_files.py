"""Shrunk models from their files, as they are or made whole again."""

from __future__ import annotations

import copy
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tlprune.models.checkpoints import PREFIX, read_checkpoint, stock_name, unfilled

# Output biases, by the part of a layer that has them.
BIASES = {"attention": "blocks.{}.attn.b_O", "mlp": "blocks.{}.mlp.b_out"}


def load_shrunk(
    directory: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Any:
    """The transformers model that :func:`~tlprune.shrink` gave, from the directory that its ``save_pretrained`` wrote.

    It is as small and as fast as it was; no code in the directory is run.

    Args:
        directory: a stock checkpoint, or one of a shrunk class with ``sizes.json``.
        device: where to put it; by default a GPU if there is one.
        dtype: of its weights.

    Raises:
        ValueError: not a whole checkpoint, its sizes are not those of its weights, or a class that cannot be shrunk.

    Example:
        >>> import tempfile
        >>> import tlprune as tp
        >>> model = tp.load("testbed", device="cpu")
        >>> masks = tp.Circuit.from_names(tp.mlps(model), ["m0", "m1"])
        >>> small = tp.shrink(tp.Masked(model, masks, tp.Zero()))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     small.save_pretrained(directory)
        ...     again = load_shrunk(directory, device="cpu")
        >>> again.num_parameters() == small.num_parameters()
        True
    """
    found = read_checkpoint(Path(directory), dtype)
    return found.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def is_shrunk(model: Any) -> bool:
    """Whether a transformers model is of a shrunk class: by name, as the file beside its weights is another module."""
    return PREFIX in {base.__name__ for base in type(model).__mro__}


def whole_of(model: Any) -> Any:
    """A stock model with the outputs of a shrunk one; a ValueError if it has biases that no stock model has."""
    whole, biases = made_whole(model)
    if biases:
        raise ValueError(
            f"This shrunk {type(whole).__name__} has {next(iter(biases))}, a mean of what was removed, and the stock "
            "class has no such bias. Load it on TransformerLens 3.9 with tp.load(...), or shrink it under Zero()."
        )
    return whole


@torch.no_grad()
def made_whole(model: Any) -> tuple[Any, dict[str, Tensor]]:
    """A stock model with the outputs of a shrunk one, in which what was removed is 0, and biases that it cannot hold.

    Heads and neurons keep their numbers. The biases go by their names in TransformerLens.
    """
    from tlprune.models.modeling_shrunk import FAMILIES, Layer, layers_of

    whole = _empty_stock(model)
    theirs = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in whole.named_parameters(remove_duplicate=False):
        same = name in theirs and theirs[name].shape == parameter.shape
        parameter.copy_(theirs[name]) if same else parameter.zero_()
    family, biases = FAMILIES[model.config.model_type], {}
    pairs = zip(layers_of(model), layers_of(whole), model.sizes, strict=True)
    for index, (small, large, size) in enumerate(pairs):
        _spread(small, large, family, Layer(*astuple(size)), whole.config)
        biases |= _move_biases(small, large, family, index)
    return whole, biases


def _empty_stock(model: Any) -> Any:
    import transformers

    config = copy.deepcopy(model.config)
    config.architectures = None
    config.__dict__.pop("auto_map", None)  # names the shrunk class
    stock = unfilled(getattr(transformers, stock_name(type(model).__name__)), config, dtype=model.dtype)
    return stock.to(device=model.device).eval()


def _spread(small: Any, large: Any, family: Any, size: Any, config: Any) -> None:
    """Put the matrices of a layer where they were in the whole one."""
    from tlprune.models.modeling_shrunk import Whole, axis_of, places_of

    for matrix in (*family.inner, *family.outer):
        if not getattr(size, matrix.unit):
            continue
        source, target, inner = (
            small.get_submodule(matrix.path),
            large.get_submodule(matrix.path),
            matrix in family.inner,
        )
        places = torch.tensor(places_of(matrix, size, Whole.of(config)), device=target.weight.device)
        target.weight.index_copy_(axis_of(target, of_outputs=inner), places, source.weight)
        if inner and target.bias is not None:
            target.bias.index_copy_(0, places, source.bias)


def _move_biases(small: Any, large: Any, family: Any, layer: int) -> dict[str, Tensor]:
    """Put the output biases of a layer in their places; those without a place are given back."""
    homeless = {}
    for matrix, (part, name) in zip(family.outer, BIASES.items(), strict=True):
        source, target = _output(small, family, matrix, part), large.get_submodule(matrix.path)
        if target.bias is not None:
            target.bias.copy_(source.bias)
        elif source.bias is not None:
            homeless[name.format(layer)] = source.bias.detach().clone()
    return homeless


def _output(layer: Any, family: Any, matrix: Any, part: str) -> Any:
    """The module of a shrunk layer that holds an output bias."""
    try:
        return layer.get_submodule(matrix.path)
    except AttributeError:
        constant = layer.get_submodule(getattr(family, part))
        return getattr(constant, "output", constant)
