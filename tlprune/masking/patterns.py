"""Attention patterns, read off what heads write when they are handed positions in place of values."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends.activations import Activations, Backend, Edits
from tlprune.graph import Graph
from tlprune.task import Tokens


@torch.no_grad()
def attention_patterns(
    backend: Backend, graph: Graph, tokens: Tokens, seen: Activations
) -> list[Float[Tensor, "example pos head source"]]:
    """How much each head's output at each position takes of the value at each source, layer by layer.

    Every layer reads the streams of a run that was observed, and the values of positions ``0, 1, ...`` are unit
    vectors, so that a head's output is its row of the pattern. This takes a pass for every ``d_head`` positions, and
    names no hook.

    Args:
        backend: the model; not one that normalises every sum.
        graph: its graph.
        tokens: the prompts.
        seen: what the model's writers wrote on them, with its streams.
    """
    length, width = tokens.ids.shape[1], backend.output_weight(0).shape[1]
    passes = [_Positions(backend, graph, seen, start) for start in range(0, length, width)]
    # A norm behind attention divides by a scale, here of what is no sum of values.
    scaled = range(graph.architecture.n_layers if seen.sent else 0)
    edits: Edits = {("attention_post_norm", layer): torch.ones_like for layer in scaled}
    for one in passes:
        backend.steer(tokens, one, graph.convention, None, edits)
    return [torch.cat(parts, -1)[..., :length] for parts in zip(*(one.written for one in passes), strict=True)]


class _Positions:
    """A run whose readers see given streams, and whose values say which position they are of (a ``Steering``)."""

    def __init__(self, backend: Backend, graph: Graph, seen: Activations, start: int) -> None:
        self.backend, self.graph, self.start = backend, graph, start
        pairs = zip(graph.readers, seen.streams, strict=True)
        self.streams = {(readers.kind, readers.layer): stream for readers, stream in pairs}
        self.written: list[Tensor] = []

    def embedding(self, index: int, value: Tensor) -> None:
        pass

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = projected(self.backend, self.graph, layer, self.streams["attention", layer])
        positions = torch.arange(v.shape[1], device=v.device)[:, None] - self.start
        unit = (positions == torch.arange(v.shape[-1], device=v.device)).to(v.dtype)
        return q, k, unit[None, :, None].expand_as(v)

    def heads(self, layer: int, z: Tensor) -> None:
        self.written.append(z)

    def mlp_input(self, layer: int) -> Tensor:
        return self.streams["mlp", layer]

    def mlp(self, layer: int, output: Tensor) -> None:
        pass

    def final(self) -> Tensor:
        return self.streams["logits", self.graph.architecture.n_layers]


def projected(
    backend: Backend, graph: Graph, layer: int, stream: Float[Tensor, "example pos d_model"]
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of a block whose readers all see one stream, each ``(example, pos, reader, d_head)``."""
    projection = backend.projection(layer, graph.convention)
    same = stream.flatten(0, 1).expand(sum(projection.splits), -1, -1)
    q, k, v = (part.unflatten(1, stream.shape[:2]).permute(1, 2, 0, 3) for part in projection(same))
    return q, k, v
