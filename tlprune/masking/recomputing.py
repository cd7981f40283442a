"""MLPs that are computed again in the backward instead of keeping what autograd would need of them.

An MLP keeps several tensors of its width for each token: what goes into its activation function, what comes out, and
everything between. Beside the engine's buffers these are most of what a run keeps. Computed again they are there for
one layer at a time, at the price of one more forward of the MLPs.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import Module, Parameter
from torch.nn.modules.dropout import _DropoutNd

from tlprune.backends.activations import ROUNDING, Backend, Edits, autocast_dtype
from tlprune.masking.beside import Mlps
from tlprune.task import Tokens

ALIVE = 5  # tensors of an MLP's width that autograd keeps of one MLP: gelu_new of parts has 8, a gated one 4
MOST_ALIVE = 1 << 28  # bytes of them that are not worth a second forward
INSIDE = ("preactivations", "neurons", "mlp", "mlp_norm", "mlp_post_norm")  # edits on the way through an MLP
_IN_TURN: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


class Recomputing:
    """Which MLPs of one run are computed again, and what they read.

    Those with anything on their way that will not be there in the backward are left alone: hooks, edits, dropout,
    masked weights.

    Args:
        backend: the model, before hooks of this run are on it.
        tokens: how many tokens a run has.
        edits: of this run.
        mlps: ``"auto"``: where more than 256 MiB would be kept.
    """

    def __init__(self, backend: Backend, tokens: int, *, edits: Edits, mlps: Mlps) -> None:
        self.backend = backend
        self.inputs: dict[int, Tensor] = {}
        wanted = mlps == "recomputed" or (mlps == "auto" and alive(backend, tokens) > MOST_ALIVE)
        able = wanted and backend.architecture.has_mlp and torch.is_grad_enabled()
        layers = range(backend.architecture.n_layers) if able else ()
        edited = {layer for kind, layer in edits if kind in INSIDE}
        bare = {layer for layer in layers if layer not in edited and is_bare(backend.mlp_modules(layer))}
        self.layers = bare if bare and _in_turn(backend) else set()

    def reads(self, layer: int, stream: Float[Tensor, "example pos d_model"]) -> Tensor:
        """What the model's MLP is given: without a gradient, if it is computed again."""
        if layer not in self.layers or not stream.requires_grad:
            return stream
        self.inputs[layer] = stream
        return stream.detach()

    def writes(self, layer: int, output: Float[Tensor, "example pos d_model"]) -> Tensor:
        """What the MLP gave, with its gradient."""
        stream = self.inputs.pop(layer, None)
        if stream is None:
            return output
        modules = self.backend.mlp_modules(layer)
        return Recomputed.apply(stream, output, modules, *_tensors(modules))


@torch.no_grad()
def _in_turn(backend: Backend) -> bool:
    """Whether an MLP is what its modules do one after the other; tried on one token, once for each model."""
    if backend.model not in _IN_TURN:
        seen = backend.observe(Tokens(torch.zeros(1, 1, dtype=torch.long, device=backend.device)))
        output = seen.mlps[0]
        error = (_through(backend.mlp_modules(0), seen.streams[1]) - output).abs().max()
        allowed = ROUNDING[backend.precision] * output.abs().max().clamp(min=1)
        _IN_TURN[backend.model] = bool(error <= allowed)
    return _IN_TURN[backend.model]


def alive(backend: Backend, tokens: int) -> int:
    """Bytes that autograd keeps of all MLPs of a run, about."""
    shape = backend.architecture
    return ALIVE * tokens * (backend.d_mlp or 0) * shape.n_layers * backend.dtype.itemsize


class Recomputed(Function):
    """An MLP's output, whose gradient is taken by running it again; its tensors are given to be held unchanged."""

    @staticmethod
    def forward(ctx: Any, stream: Tensor, output: Tensor, modules: Sequence[Module], *tensors: Tensor) -> Tensor:
        ctx.modules, ctx.cast = modules, _casting(stream.device)
        ctx.save_for_backward(stream, *tensors)
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        stream, *tensors = ctx.saved_tensors  # raises if one was changed since
        if not is_bare(ctx.modules):
            raise RuntimeError(
                "An MLP is computed again in the backward, but hooks were put on it since the forward, so the gradient "
                "would be another's. Remove them before the backward, or build Masked(..., mlps='stored')."
            )
        with torch.enable_grad(), ctx.cast():
            stream = stream.detach().requires_grad_()
            (found,) = torch.autograd.grad(_through(ctx.modules, stream), stream, gradient)
        return found, None, None, *[None] * len(tensors)


def _through(modules: Sequence[Module], stream: Tensor) -> Tensor:
    for module in modules:
        stream = module(stream)
    return stream


def is_bare(modules: Sequence[Module]) -> bool:
    """Whether nothing happens in these modules but what their own weights say."""
    inside = [part for module in modules for part in module.modules()]
    hooks = any(map(_is_hooked, inside))
    drops = any(isinstance(part, _DropoutNd) and part.training and part.p > 0 for part in inside)
    return not hooks and not drops and all(isinstance(tensor, Parameter) for tensor in _tensors(modules))


def _is_hooked(module: Module) -> bool:
    """Whether there are hooks that are not part of how TransformerLens runs a bridge."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *module._backward_hooks.values())
    return any(not getattr(hook, "__module__", "").startswith("transformer_lens.model_bridge") for hook in hooks)


def _tensors(modules: Sequence[Module]) -> list[Tensor]:
    held = [part._parameters.values() for module in modules for part in module.modules()]
    return [tensor for tensors in held for tensor in tensors if tensor is not None]


def _casting(device: torch.device) -> Any:
    """A context with the automatic casts that hold now."""
    dtype = autocast_dtype(device)
    return nullcontext if dtype is None else lambda: torch.autocast(device.type, dtype=dtype)
