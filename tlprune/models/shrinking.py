"""Physically smaller Hugging Face models: what a mask took away is not there any more."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tlprune.backends import backend_of
from tlprune.masking.folding import folded_parameters
from tlprune.masking.masked import Masked
from tlprune.models.checkpoints import unfilled
from tlprune.models.export import Write, way_back, written
from tlprune.models.modeling_shrunk import FAMILIES, Layer, Whole, cut, layers_of, shrunk_class
from tlprune.models.shrunk_files import BIASES

# Output weights of attention and of the MLP.
WEIGHTS = ("blocks.{}.attn.W_O", "blocks.{}.mlp.W_out")


@torch.no_grad()
def shrink(model: Any, *, config: Any | None = None) -> Any:
    """A transformers model without the heads and neurons that a masked model ablates, and with its outputs.

    A head or neuron goes when its output weights are 0 after the mask is built in: with it go its part of the query,
    key and value, or in and gate, matrices. What it is replaced by goes into the output bias of attention or the MLP,
    which is added where the architecture has none. An attention without heads, or an MLP without neurons, leaves that
    bias only, or nothing. With grouped queries, a key/value head goes with the last of its query heads, and those that
    stay keep equally many query heads: the most that one of them needs. So an ablated query head may stay, with output
    weights 0.

    If all layers have the same sizes and the stock configuration can state them, the result is a model of the stock
    class. Otherwise its class is named ``Shrunk...``, a subclass of the stock one. ``save_pretrained`` writes either;
    :func:`~tlprune.load_shrunk` reads it, and :func:`~tlprune.load` gives a TransformerLens model of it.

    Args:
        model: a :class:`~tlprune.Masked` whose hard circuit is built in, over heads, MLPs, layers, nodes, neurons or
            weights, under Zero, a Mean over positions, or learned constants; or a TransformerLens model, a
            TransformerBridge included.
        config: as for :func:`~tlprune.to_huggingface`.

    Raises:
        ValueError: the masks hold edges, differ by span, freeze norms or need to know prompts (Resample); a mean would
            have to stand behind a norm (Gemma 2 and 3); or the model is not from Hugging Face and there is no
            ``config``.

    Example:
        >>> import tlprune as tp
        >>> model = tp.load("testbed")
        >>> masks = tp.Circuit.from_names(tp.heads(model), ["a0.h1", "a2.h3"])
        >>> masked = tp.Masked(model, masks, tp.Zero())
        >>> small = shrink(masked)
        >>> type(small).__name__, [len(layer.heads) for layer in small.sizes]
        ('ShrunkGPT2LMHeadModel', [1, 0, 1, 0])
        >>> round(small.num_parameters() / tp.to_huggingface(masked).num_parameters(), 2)
        0.72
        >>> tokens = torch.tensor([[3, 1, 4]], device=small.device)
        >>> bool((small(tokens).logits - masked(tokens)).abs().max() < 1e-4)
        True
    """
    lens = model.model if isinstance(model, Masked) else model
    backend = backend_of(lens)
    parameters = folded_parameters(model) if isinstance(model, Masked) else backend.parameters()
    config, write = way_back(lens, backend, config)
    whole, added = _with_biases(_supported(config), parameters, write)
    shape = Whole.of(whole.config)
    sizes = tuple(_size(parameters, layer, tuple(parts), shape) for layer, parts in enumerate(added))
    cut(whole, sizes)
    return _of_class(whole, sizes).to(device=backend.device).eval()


def _supported(config: Any) -> Any:
    if config.model_type in FAMILIES:
        return config
    raise ValueError(
        f"A {config.model_type} cannot be shrunk: it is not known where its heads and neurons are. Shrinking is for "
        f"{', '.join(FAMILIES)}; tp.to_huggingface(...) gives a model of the same shapes."
    )


def _with_biases(config: Any, parameters: Mapping[str, Tensor], write: Write) -> tuple[Any, list[list[str]]]:
    """A whole model, and the parts of each layer that were given an output bias which their class does not have."""
    places = [
        (layer, part, name.format(layer)) for layer in range(config.num_hidden_layers) for part, name in BIASES.items()
    ]
    without = {**parameters, **{name: torch.zeros_like(parameters[name]) for *_, name in places}}
    whole = written(config, lambda new: write(new, without), next(iter(parameters.values())).dtype)
    outer = FAMILIES[whole.config.model_type].outer
    outputs = [layer.get_submodule(matrix.path) for layer in layers_of(whole) for matrix in outer]
    added: list[list[str]] = [[] for _ in range(config.num_hidden_layers)]
    for linear, (layer, part, name) in zip(outputs, places, strict=True):
        if linear.bias is None and bool(parameters[name].any()):
            added[layer].append(part)
        if linear.bias is not None or part in added[layer]:
            linear.bias = nn.Parameter(parameters[name].clone())
    return whole, added


def _size(parameters: Mapping[str, Tensor], layer: int, biases: tuple[str, ...], shape: Whole) -> Layer:
    """The heads and neurons of a layer that have output weights other than 0."""
    heads, neurons = (parameters[name.format(layer)].flatten(1).any(1).nonzero().flatten() for name in WEIGHTS)
    return Layer(*_grouped(heads.tolist(), shape), tuple(neurons.tolist()), biases)


def _grouped(heads: Sequence[int], shape: Whole) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Heads that stay, so that each key/value head that stays has as many; and these key/value heads."""
    group = shape.heads // shape.key_value_heads
    needed = {kv: [head for head in heads if head // group == kv] for kv in range(shape.key_value_heads)}
    needed = {kv: own for kv, own in needed.items() if own}
    most = max(map(len, needed.values()), default=0)
    staying = [
        head for kv, own in needed.items() for head in _filled_up(own, range(kv * group, (kv + 1) * group), most)
    ]
    return tuple(staying), tuple(needed)


def _filled_up(own: Sequence[int], group: Iterable[int], most: int) -> list[int]:
    """Some heads of a group, and as many of its others as make ``most``."""
    others = [head for head in group if head not in own]
    return sorted([*own, *others[: most - len(own)]])


def _of_class(whole: Any, sizes: tuple[Layer, ...]) -> Any:
    """A cut model as a stock model of smaller layers where there is one, else as one of a shrunk class."""
    config = stock_config(whole.config, sizes)
    if config is None:
        kind, arguments = shrunk_class(type(whole).__name__), (copy.deepcopy(whole.config), sizes)
    else:
        kind, arguments = type(whole), (config,)
    small = unfilled(kind, *arguments, dtype=whole.dtype)
    small.load_state_dict(whole.state_dict())
    return small


def stock_config(config: Any, sizes: Sequence[Layer]) -> Any | None:
    """The configuration of a stock model with these layers; ``None`` if there is none."""
    from huggingface_hub.errors import StrictDataclassError

    first, whole, family = sizes[0], Whole.of(config), FAMILIES[config.model_type]
    counts = {(len(size.heads), len(size.key_value_heads), len(size.neurons)) for size in sizes}
    fewer = len(first.heads) < whole.heads
    if len(counts) > 1 or 0 in counts.pop() or any(size.biases for size in sizes) or (fewer and not family.free_heads):
        return None
    data = config.to_dict() | {family.width: len(first.neurons)}
    if fewer:
        data |= {"num_attention_heads": len(first.heads), "head_dim": whole.d_head}
        data |= {"num_key_value_heads": len(first.key_value_heads)}
    try:
        return type(config).from_dict(data)
    except StrictDataclassError:  # Llama's must divide the width by the number of heads
        return None
