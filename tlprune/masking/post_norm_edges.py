"""Edges of post-norm models (BERT): every reader carries a residual stream of its own through all norms before it.

For reader ``r``, with ``x`` a writer's output in this run, ``x~`` what replaces it, ``b`` an attention's output bias
and ``N`` the model's own norms::

    S = x~_input + m (x_input - x~_input)
    S = N1(S + b + sum_h x~_h + sum_h m_hr (x_h - x~_h))       for each attention before r
    S = N2(S + x~_m + m_mr (x_m - x~_m))                       for each MLP before r

q, k and v of a layer read ``S`` behind the layers before it, its MLP reads behind its own ``N1``, the head behind all.
With all masks 1 every ``S`` is the model's own stream; with all masks 0 it is that of the replacing run.

A layer has ``Q`` readers of its attention (3 per head; 1 where q, k and v are joined), so one run takes
``sum_l (2 l Q + 2 l + 1) + 2 L = Q L (L - 1) + L^2 + 2 L`` norms of one stream in ``L`` layers, where the model takes
``2 L``. Nothing is kept of them: a set of readers is computed again in the backward, layer by layer, so that the most
at one time is a stream per layer for one set of readers, and one layer's insides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tlprune.backends.activations import Activations, Backend, Projection
from tlprune.backends.post_norms import LayerNorm, PostNormBackend, PostNorms
from tlprune.graph import Graph, Readers
from tlprune.masking.beside import Beside, check_gradients
from tlprune.masking.mixing import lead_axes, without_ones

Streams = Float[Tensor, "reader example pos d_model"]


@dataclass(frozen=True)
class Written:
    """What some writers of one place sent.

    Attributes:
        differences: ``x - x~`` of each.
        base: the sum of their ``x~`` and of what no edge carries, ``(example, pos, d_model)``, or 1 for either.
    """

    differences: Float[Tensor, "writer example pos d_model"]
    base: Float[Tensor, "_ _ d_model"]

    def sent(self, mask: Float[Tensor, "*lead reader writer"]) -> Float[Tensor, "reader example pos d_model"]:
        """``base + sum_w m_w (x_w - x~_w)`` for each reader, in at least float32."""
        rounded, differences = mask.to(self.differences.dtype), self.differences
        if mask.dim() > 2:
            mixed = torch.einsum(f"{lead_axes(mask)}rw,wbpd->rbpd", without_ones(rounded), differences)
        else:
            mixed = (rounded @ differences.flatten(1)).unflatten(1, differences.shape[1:])
        return self.base + mixed.to(self.base.dtype)


@dataclass(frozen=True)
class Layer:
    """One layer between its readers: what it wrote so far, and its norms.

    Attributes:
        norms: its own.
        scales: what each of them divides by, if not what it finds in its input.
        heads: what its heads sent, the attention's output bias in their base.
        mlp: what its MLP sent, once it has.
    """

    norms: PostNorms
    scales: tuple[Tensor | None, Tensor | None]
    heads: Written
    mlp: Written | None = None

    def __call__(self, streams: Streams, mask: Float[Tensor, "*lead reader writer"]) -> Streams:
        """The streams behind the layer, or behind its attention as long as there is no MLP."""
        count = len(self.heads.differences)
        first = self.norms.after_attention(streams + self.heads.sent(mask[..., :count]), self.scales[0])
        if self.mlp is None:
            return first
        return self.norms.after_mlp(first + self.mlp.sent(mask[..., count:]), self.scales[1])


class PostNormCall:
    """One run of a post-norm model: what has been written so far and what each reader is to see (a ``Steering``)."""

    def __init__(
        self,
        backend: Backend,
        graph: Graph,
        lead: Sequence[int],
        mask: Tensor,
        replaced: Activations,
        *,
        beside: Beside,
    ) -> None:
        assert isinstance(backend, PostNormBackend)
        self.backend, self.graph, self.mask, self.replaced, self.beside = backend, graph, mask, replaced, beside
        self.shape = (*lead, backend.d_model)
        self.exact = torch.promote_types(backend.dtype, torch.float32)
        learned = mask.requires_grad or any(tensor.requires_grad for tensor in replaced.tensors)
        self.trained = torch.is_grad_enabled() and learned
        self.input: Written | None = None
        self.layers: list[Layer] = []
        self.reads = 0

    # ---- writers

    def embedding(self, index: int, value: Tensor) -> None:
        check_gradients(self.trained)
        if self.graph.convention.embeddings == "kept":
            self.input = Written(value[None][:0], value.to(self.exact))
        else:
            self.input = self._written(value, self.replaced.embeddings[index])

    def heads(self, layer: int, z: Tensor) -> None:
        check_gradients(self.trained)
        weight, norms = self.backend.output_weight(layer), self.backend.post_norms(layer)
        other = weight if self.beside.outputs is None else self.beside.outputs[layer]
        replaced = self.replaced.heads[layer]
        base = torch.einsum("bphe,hed->bpd", replaced.to(self.exact), other.to(self.exact))
        if other is weight:
            differences = torch.einsum("bphe,hed->hbpd", z - replaced, weight)
        else:
            sent, instead = (torch.einsum("bphe,hed->hbpd", x, w) for x, w in ((z, weight), (replaced, other)))
            differences = sent - instead
        heads = Written(differences, base + norms.bias.to(self.exact))
        self.layers.append(Layer(_lent(norms), self._scales(layer), heads))

    def mlp(self, layer: int, output: Tensor) -> None:
        check_gradients(self.trained)
        mlp = self._written(output, self.replaced.mlps[layer])
        self.layers[layer] = replace(self.layers[layer], mlp=mlp)

    def _written(self, value: Tensor, replaced: Tensor) -> Written:
        return Written((value - replaced)[None], replaced.to(self.exact))

    def _scales(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """What the layer's two norms divide by, where that is fixed."""
        second = self.beside.edits.get(("mlp_norm", layer))
        return self.beside.scales.get(layer), None if second is None else second(self.mask)

    # ---- readers

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        readers = self._next("attention", layer)
        projection = _lent_projection(self.backend.projection(layer, self.graph.convention))

        read = self._reading(readers)

        def project() -> tuple[Tensor, ...]:
            streams = read()
            if self.graph.convention.qkv == "joined":
                streams = streams.repeat(3, 1, 1, 1)
            return projection(streams.flatten(1, 2))

        q, k, v = (part.unflatten(1, self.shape[:2]).permute(1, 2, 0, 3) for part in _again(project))
        return q, k, v

    def mlp_input(self, layer: int) -> Tensor:
        return self._stream(self._next("mlp", layer))

    def final(self) -> Tensor:
        return self._stream(self._next("logits", self.graph.architecture.n_layers))

    def _stream(self, readers: Readers) -> Tensor:
        read = self._reading(readers)
        return _again(lambda: read()[0].to(self.backend.dtype))

    def _reading(self, readers: Readers) -> Callable[[], Streams]:
        """What each of the readers sees, of what has been written by now, to be computed again whenever asked."""
        source, layers, mask = self.input, tuple(self.layers), readers.block(self.mask)
        assert source is not None

        def read() -> Streams:
            start, step = len(self.graph.embeddings), self.graph.architecture.n_heads + 1
            streams = source.sent(mask[..., :start]).expand(len(readers.names), *self.shape)
            for layer, own in zip(layers, mask[..., start:].split(step, dim=-1), strict=False):
                streams = _again(layer, streams, own)
            self._show(readers, streams)
            return streams

        return read

    def _show(self, readers: Readers, streams: Tensor) -> None:
        if self.beside.seen is not None:
            self.beside.seen.update(zip(readers.names, streams.detach().to(self.backend.dtype), strict=True))

    def _next(self, kind: str, layer: int) -> Readers:
        check_gradients(self.trained)
        readers = self.graph.readers[self.reads]
        if (readers.kind, readers.layer) != (kind, layer):
            raise RuntimeError(f"The model asked for {kind} of layer {layer} where {readers.names[0]} was due.")
        self.reads += 1
        return readers

    def check_complete(self) -> None:
        """Raise unless every writer wrote and every reader read exactly once."""
        shape = self.graph.architecture
        whole = len(self.layers) == shape.n_layers and all(layer.mlp for layer in self.layers)
        if self.reads != len(self.graph.readers) or not whole:
            raise RuntimeError(
                f"{self.reads} of {len(self.graph.readers)} sets of readers and the attention of {len(self.layers)} of "
                f"{shape.n_layers} layers were met during the run, so a hook did not fire. Is part of the model "
                "skipped or replaced?"
            )


def _again(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """A function's value, which autograd computes again in the backward instead of keeping what it needs for it."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def _lent(norms: PostNorms) -> PostNorms:
    first, second = (
        LayerNorm(_untrained(norm.gain), _untrained(norm.shift), norm.epsilon)
        for norm in (norms.after_attention, norms.after_mlp)
    )
    return PostNorms(first, second, norms.bias)


def _lent_projection(projection: Projection) -> Projection:
    weights, biases = (tuple(map(_untrained, part)) for part in (projection.weights, projection.biases))
    return replace(projection, weights=weights, biases=biases)


def _untrained(tensor: Tensor) -> Tensor:
    """A parameter without gradient in this run stays so in the backward, when its own flag is back."""
    return tensor if tensor.requires_grad else tensor.detach()
