"""Where the Hugging Face modules behind a TransformerBridge keep TransformerLens' tensors, and in which layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

Layout = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """One tensor of TransformerLens, as a view of a Hugging Face parameter.

    Attributes:
        module: the module that owns the parameter.
        attribute: the parameter's name there.
        shape: of the tensor in TransformerLens' layout.
        show: from the stored layout to TransformerLens', without a copy unless ``rounds``.
        store: back.
        rounds: numbers are shifted or scaled on the way, and not only moved.
    """

    module: Module
    attribute: str
    shape: tuple[int, ...]
    show: Layout
    store: Layout
    rounds: bool = False

    @property
    def stored(self) -> Tensor | None:
        """The parameter as it is at this moment; ``None`` for a bias that Hugging Face leaves out."""
        return getattr(self.module, self.attribute, None)

    def tensor(self, like: Tensor) -> Tensor:
        """The tensor in TransformerLens' layout; zeros, of the type and device of ``like``, for a bias left out."""
        stored = self.stored
        return like.new_zeros(self.shape) if stored is None else self.show(stored)

    def exact(self, like: Tensor) -> Tensor:
        """The same, in float32 at least where showing it rounds; Gemma adds 1 to its gains in float32, too."""
        stored = self.stored
        if stored is None or not self.rounds:
            return self.tensor(like)
        return self.show(stored.to(torch.promote_types(stored.dtype, torch.float32)))

    def changed(self, change: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """What to store for a function of the tensor."""
        stored = like if self.stored is None else self.stored
        return self.store(change(self.exact(like).detach())).to(stored.dtype)

    def written(self, value: Tensor) -> Tensor:
        """What to store for a value; numbers that are the tensor's own stay as they are stored, without rounding."""
        stored = self.stored
        assert stored is not None
        same = self.store(value) == self.store(self.show(stored))
        return torch.where(same, stored, self.store(value))


class Places:
    """All tensors of a bridge by TransformerLens' names, in the order of HookedTransformer.

    Args:
        model: a TransformerBridge of a decoder.
    """

    def __init__(self, model: Any) -> None:
        self.config = model.cfg
        self.all = dict(self._of_model(model))

    def __getitem__(self, name: str) -> Tensor:
        return self.all[name].tensor(self.like)

    def exact(self, name: str) -> Tensor | None:
        """A tensor as the model computes with it; ``None`` if the model has no such tensor."""
        return self.all[name].exact(self.like) if name in self.all else None

    def changes(self, changed: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[tuple[Module, str, Tensor]]:
        """What functions of some tensors are where they are stored; biases left out stay so, as zeros do."""
        for name, change in changed.items():
            place = self.all[name]
            if place.stored is not None:
                yield place.module, place.attribute, place.changed(change, self.like)

    def held(self) -> dict[str, Tensor]:
        """The parameters behind all tensors, each by the first of its names."""
        found: dict[str, Tensor] = {}
        for name, place in self.all.items():
            own = place.stored
            if own is not None and not any(own is other for other in found.values()):
                found[name] = own
        return found

    @property
    def like(self) -> Tensor:
        """The token embedding, the first of all, which says where and in which precision the model is."""
        embedding = next(iter(self.all.values())).stored
        assert embedding is not None
        return embedding

    def _of_model(self, model: Any) -> Iterator[tuple[str, Place]]:
        yield "embed.W_E", _embedding(model.embed, (self.config.d_vocab, self.config.d_model))
        if self.config.positional_embedding_type == "standard":
            yield "pos_embed.W_pos", plain(model.pos_embed, "weight", (self.config.n_ctx, self.config.d_model))
        for layer, block in enumerate(model.blocks):
            yield from ((f"blocks.{layer}.{name}", place) for name, place in self._of_block(block))
        yield from self._of_norm("ln_final", model.ln_final)
        vocabulary = self.config.d_vocab_out
        yield "unembed.W_U", matrix(model.unembed, (self.config.d_model, vocabulary))
        yield "unembed.b_U", plain(model.unembed, "bias", (vocabulary,))

    def _of_block(self, block: Any) -> Iterator[tuple[str, Place]]:
        for name in ("ln1", "ln1_post", *(() if self.config.attn_only else ("ln2", "ln2_post"))):
            if name in block._modules:
                yield from self._of_norm(name, getattr(block, name))
        yield from self._of_attention(block.attn)
        if not self.config.attn_only:
            yield from self._of_mlp(block.mlp)

    def _of_norm(self, name: str, norm: Any, width: int | None = None) -> Iterator[tuple[str, Place]]:
        shape, kind = (width or self.config.d_model,), self.config.normalization_type
        if kind in ("LN", "RMS"):
            from_one = kind == "RMS" and getattr(self.config, "rmsnorm_uses_offset", False)
            yield f"{name}.w", (_from_one if from_one else plain)(norm, "weight", shape)
        if kind == "LN":
            yield f"{name}.b", plain(norm, "bias", shape)

    def _of_attention(self, attention: Any) -> Iterator[tuple[str, Place]]:
        heads, width, d_head = self.config.n_heads, self.config.d_model, self.config.d_head
        groups = getattr(self.config, "n_key_value_heads", None) or heads
        yield "attn.W_Q", _heads(attention.q, (heads, width, d_head))
        yield "attn.W_O", _output(attention.o, (heads, d_head, width))
        yield "attn.b_Q", _head_bias(attention.q, (heads, d_head))
        yield "attn.b_O", plain(attention.o, "bias", (width,))
        for part in "kv":
            yield f"attn.W_{part.upper()}", _heads(getattr(attention, part), (groups, width, d_head))
        for part in "kv":
            yield f"attn.b_{part.upper()}", _head_bias(getattr(attention, part), (groups, d_head))
        for norm in ("q_norm", "k_norm"):
            if hasattr(attention, norm):
                yield from self._of_norm(f"attn.{norm}", getattr(attention, norm), d_head)

    def _of_mlp(self, mlp: Any) -> Iterator[tuple[str, Place]]:
        width, neurons = self.config.d_model, self.config.d_mlp
        into, out = getattr(mlp, "in"), mlp.out
        weight_in, weight_out = matrix(into, (width, neurons)), matrix(out, (neurons, width))
        bias_in, bias_out = plain(into, "bias", (neurons,)), plain(out, "bias", (width,))
        if self.config.gated_mlp:
            gate = matrix(mlp.gate, (width, neurons))
            names = ("W_in", "W_out", "W_gate", "b_in", "b_out")
            places = (weight_in, weight_out, gate, bias_in, bias_out)
        else:
            names, places = ("W_in", "b_in", "W_out", "b_out"), (weight_in, bias_in, weight_out, bias_out)
        yield from ((f"mlp.{name}", place) for name, place in zip(names, places, strict=True))


def own_module(bridge: Any) -> Any:
    """The Hugging Face module behind a part of a bridge; a module that no bridge is in front of, itself."""
    return getattr(bridge, "original_component", bridge)


def plain(bridge: Any, attribute: str, shape: tuple[int, ...]) -> Place:
    """A tensor that both store alike."""
    return Place(own_module(bridge), attribute, shape, _same, _same)


def _from_one(bridge: Any, attribute: str, shape: tuple[int, ...]) -> Place:
    """A gain that is stored as what it differs from one (Gemma)."""
    show, store = (lambda stored: 1 + stored), (lambda shown: shown - 1)
    return Place(bridge.original_component, attribute, shape, show, store, rounds=True)


def _embedding(bridge: Any, shape: tuple[int, ...]) -> Place:
    """The token embedding, with the factor that some models multiply it by (Gemma: the root of the width)."""
    module = bridge.original_component
    scale = getattr(module, "embed_scale", None)
    if scale is None:
        return plain(bridge, "weight", shape)
    # The type in which a model was built decides how exact its factor is: float32 is what all types share.
    show = lambda stored: stored * scale.to(torch.float32).to(stored.dtype)  # noqa: E731
    store = lambda shown: shown / scale.to(torch.float32).to(shown.dtype)  # noqa: E731
    return Place(module, "weight", shape, show, store, rounds=True)


def _head_bias(bridge: Any, shape: tuple[int, ...]) -> Place:
    """``(head, d_head)``, of one row."""
    return Place(bridge.original_component, "bias", shape, lambda row: row.view(shape), lambda shown: shown.flatten())


def matrix(bridge: Any, shape: tuple[int, ...]) -> Place:
    """A matrix, inputs first."""
    module = own_module(bridge)
    return Place(module, "weight", shape, _turn(module), _turn(module))


def _heads(bridge: Any, shape: tuple[int, ...]) -> Place:
    """``(head, d_model, d_head)``, of a matrix whose outputs are all heads, one after the other."""
    module, (heads, _, d_head) = bridge.original_component, shape
    turn = _turn(module)
    return Place(
        module,
        "weight",
        shape,
        lambda stored: turn(stored).unflatten(1, (heads, d_head)).movedim(1, 0),
        lambda shown: turn(shown.movedim(0, 1).flatten(1)),
    )


def _output(bridge: Any, shape: tuple[int, ...]) -> Place:
    """``(head, d_head, d_model)``, of a matrix whose inputs are all heads, one after the other."""
    module, (heads, d_head, _) = bridge.original_component, shape
    turn = _turn(module)
    return Place(
        module,
        "weight",
        shape,
        lambda stored: turn(stored).unflatten(0, (heads, d_head)),
        lambda shown: turn(shown.flatten(0, 1)),
    )


def _turn(module: Module) -> Layout:
    """``Linear`` stores outputs first, GPT-2's ``Conv1D`` inputs first."""
    return (lambda matrix: matrix.mT) if isinstance(module, torch.nn.Linear) else _same


def _same(tensor: Tensor) -> Tensor:
    return tensor
