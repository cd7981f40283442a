"""What the edges of post-norm models need beside what all models have: the norms between one sum and the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tlprune.backends.activations import Backend


@dataclass(frozen=True)
class LayerNorm:
    """``gain * (x - mean x) / scale + shift``, with a model's own tensors.

    Attributes:
        gain: its weight.
        shift: its bias.
        epsilon: added to the variance.
    """

    gain: Float[Tensor, "d_model"]
    shift: Float[Tensor, "d_model"]
    epsilon: float

    def __call__(
        self, stream: Float[Tensor, "*rows d_model"], scale: Float[Tensor, "example pos 1"] | None = None
    ) -> Float[Tensor, "*rows d_model"]:
        """Normalise in the precision of the stream, by its own scale or by a given one."""
        gain, shift = self.gain.to(stream.dtype), self.shift.to(stream.dtype)
        if scale is None:
            return F.layer_norm(stream, stream.shape[-1:], gain, shift, self.epsilon)
        return gain * (stream - stream.mean(-1, keepdim=True)) / scale.to(stream.dtype) + shift


@dataclass(frozen=True)
class PostNorms:
    """One block between its writers: ``after_attention(S + heads + bias)``, then ``after_mlp(S + mlp)``.

    Attributes:
        after_attention: of the sum with the attention's output.
        after_mlp: of the sum with the MLP's output.
        bias: the attention's output bias, which belongs to no head.
    """

    after_attention: LayerNorm
    after_mlp: LayerNorm
    bias: Float[Tensor, "d_model"]


@runtime_checkable
class PostNormBackend(Backend, Protocol):
    """A backend of post-norm models. Its projections have no norm: q, k and v read the normalised stream as it is."""

    def post_norms(self, layer: int) -> PostNorms: ...
