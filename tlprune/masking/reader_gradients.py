"""What a loss sends back to every reader of a run, and its product with what writers would send otherwise.

A run leaves behind what is small: of q, k and v the gradients in front of the projections. Only at the end, summed over
runs, are they taken back through projection and norm, one set of readers at a time, and multiplied with the writers'
differences: one matrix product per set, however many runs there were.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends.activations import Activations, Backend, Projection
from tlprune.graph import Graph, Readers
from tlprune.masking.tap import Read

ALL = slice(None)
Differences = Float[Tensor, "writer token d_model"]


class ReaderGradients:
    """``dL/dx_r`` of every reader, summed over runs.

    Args:
        backend: the model.
        graph: its readers and writers.
        writers: whose edges are wanted, by their numbers in the graph; readers before them are left out.
    """

    def __init__(self, backend: Backend, graph: Graph, writers: slice = ALL) -> None:
        self.backend, self.graph = backend, graph
        self.first, self.last, _ = writers.indices(len(graph.writers))
        self.sets: list[tuple[Readers, _Attention | _Stream]] = []

    @torch.no_grad()
    def add(self, reads: Sequence[Read], loss: Float[Tensor, ""]) -> None:
        """Add the gradients of a loss at what readers took from the stream in one run."""
        reads = [read for read in reads if read.readers.width > self.first]
        parts = [part for read in reads for part in read.parts]
        found = torch.autograd.grad(loss, parts, allow_unused=True)
        known = iter(torch.zeros_like(part) if own is None else own for part, own in zip(parts, found, strict=True))
        self.sets = self.sets or [(read.readers, _set_of(read)) for read in reads]
        for (_, own), read in zip(self.sets, reads, strict=True):
            own.add(read, [next(known) for _ in read.parts])

    @torch.no_grad()
    def by_edge(self, sent: Activations, replaced: Activations, tokens: slice | Tensor = ALL) -> Float[Tensor, "edge"]:
        """``(x_w - x~_w) . dL/dx_r`` of every edge, summed over examples and positions; 0 for other writers' edges.

        A reader that sees one writer and nothing else, under Zero ablation and in front of a norm, is gated behind the
        norm, as in a masked run, because the norm would undo the gate.

        Args:
            sent: what writers send, ``x``.
            replaced: what ablated ones send, ``x~``.
            tokens: which positions are summed over, as numbers in all examples' positions one after the other.
        """
        found = differences(self.backend, self.graph, sent, replaced)[:, tokens]
        result = found.new_zeros(self.graph.n_edges)
        for readers, own in self.sets:
            end = min(self.last, readers.width)
            base = replaced.streams[self.graph.readers.index(readers)]
            if isinstance(own, _Attention) and self._scale_free(readers, own, base):
                products = own.behind_norm[:, tokens].sum(-1)[:, None]
            else:
                products = own.along(found[self.first : end], tokens)
            readers.block(result)[:, self.first : end] = products
        return result

    def _scale_free(self, readers: Readers, own: _Attention, base: Tensor) -> bool:
        """Whether the readers see nothing but one writer, whose scale a norm would undo."""
        alone = readers.width == 1 and self.graph.convention.embeddings != "kept"
        return alone and bool(own.units) and not bool(base.any())


def _set_of(read: Read) -> _Attention | _Stream:
    if read.projection is None:
        return _Stream()
    return _Attention(read.projection, joined=len(read.readers.names) < sum(read.projection.splits))


class _Stream:
    """Gradients at an MLP or at the logits."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0

    def add(self, read: Read, gradients: list[Tensor]) -> None:
        self.total = self.total + gradients[0].to(exact(gradients[0].dtype))

    def along(self, differences: Differences, tokens: slice | Tensor) -> Float[Tensor, "1 writer"]:
        assert isinstance(self.total, Tensor)
        return (differences.flatten(1) @ self.total.flatten(0, 1)[tokens].flatten())[None]


class _Attention:
    """Gradients at q, k and v of one block, and what it takes to bring them back through the norm.

    A norm ``u = (x - mean x) / s`` sends a gradient ``h`` back as ``(h - mean h - u (h . u) / d_model) / s``. The mean
    is taken out of the weights instead; what is along ``u`` is kept apart, one number for each reader and token.

    Args:
        projection: of the block.
        joined: whether q, k and v of a head are one reader.
    """

    def __init__(self, projection: Projection, *, joined: bool) -> None:
        self.projection, self.joined = projection, joined
        weight = projection.weights[0]
        self.outer = self.behind_norm = torch.zeros((), dtype=exact(weight.dtype), device=weight.device)
        self.inner: list[Tensor] = []
        self.units: list[Tensor] = []

    def add(self, read: Read, gradients: list[Tensor]) -> None:
        assert read.projection is not None
        outer, stream = _by_head(gradients), read.stream.flatten(0, 1)
        unit, inverse = _unit(read.projection, stream)
        if unit is not None:
            nothing = read.projection(stream.new_zeros(sum(read.projection.splits), 1, stream.shape[1]))
            inner = (outer * (_by_head(read.parts) - torch.cat(nothing))).sum(-1)
            self.behind_norm = self.behind_norm + self._per_reader(inner)
            self.inner.append(self._per_reader(inner * inverse[:, 0] / stream.shape[1]))
            self.units.append(unit)
        self.outer = self.outer + outer * inverse

    def along(self, differences: Differences, tokens: slice | Tensor) -> Float[Tensor, "reader writer"]:
        weights = torch.cat([_in_front_of_gain(self.projection, weight) for weight in self.projection.weights])
        gradient = self._per_reader(torch.bmm(self.outer[:, tokens], weights.mT))
        result = gradient.flatten(1) @ differences.flatten(1).T
        if self.units:
            # (token, writer, d_model) @ (token, d_model, run): how much of each difference only scales the stream.
            scaling = torch.bmm(differences.transpose(0, 1), torch.stack(self.units, -1)[tokens])
            result -= torch.stack(self.inner, -1)[:, tokens].flatten(1) @ scaling.transpose(1, 2).flatten(0, 1)
        return result

    def _per_reader(self, parts: Tensor) -> Tensor:
        return parts.unflatten(0, (3, -1)).sum(0) if self.joined else parts


def _in_front_of_gain(projection: Projection, weight: Tensor) -> Float[Tensor, "_ d_model d_head"]:
    """A weight as it acts on what the norm divided."""
    weight = weight.detach().to(exact(weight.dtype))
    if projection.gain is not None:
        weight = weight * projection.gain.detach().to(weight.dtype)[:, None]
    return weight - weight.mean(1, keepdim=True) if projection.norm == "layer" else weight


def _unit(projection: Projection, stream: Float[Tensor, "token d_model"]) -> tuple[Tensor | None, Tensor]:
    """What a norm makes of its input in front of its gain, if it divides by its input's scale; and 1 over the scale."""
    if projection.norm == "none":
        return None, stream.new_ones(1, 1)
    if projection.scale is not None:
        return None, 1 / projection.scale.to(stream.dtype)
    centred = stream - stream.mean(-1, keepdim=True) if projection.norm == "layer" else stream
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + projection.epsilon)
    return centred * inverse, inverse


def _by_head(parts: Sequence[Tensor]) -> Float[Tensor, "reader token d_head"]:
    return torch.cat([part.detach().permute(2, 0, 1, 3).flatten(1, 2).to(exact(part.dtype)) for part in parts])


def exact(dtype: torch.dtype) -> torch.dtype:
    """A type for sums: never below float32."""
    return torch.promote_types(dtype, torch.float32)


@torch.no_grad()
def differences(backend: Backend, graph: Graph, sent: Activations, replaced: Activations) -> Differences:
    """``x - x~`` of every writer, in at least float32."""
    lead, shape = sent.heads[0].shape[:2], graph.architecture
    result = torch.empty(len(graph.writers), *lead, backend.d_model, dtype=exact(backend.dtype), device=backend.device)
    for slot, (own, other) in enumerate(zip(entering(graph, sent), entering(graph, replaced), strict=True)):
        torch.sub(own, other, out=result[slot])
    for layer in range(shape.n_layers):
        first = graph.attention_writers(layer)
        z = sent.outgoing[layer] - replaced.outgoing[layer]
        heads = torch.bmm(z.permute(2, 0, 1, 3).flatten(1, 2), backend.output_weight(layer).detach())
        result[first : first + shape.n_heads] = heads.view(shape.n_heads, *result.shape[1:])
        if shape.has_mlp:
            torch.sub(sent.mlps[layer], replaced.mlps[layer], out=result[first + shape.n_heads])
    return result.flatten(1, 2)


def entering(graph: Graph, activations: Activations) -> tuple[Tensor, ...]:
    """What the embedding writers of a graph send."""
    if graph.convention.embeddings == "kept":
        return ()
    return activations.embeddings if graph.convention.embeddings == "separate" else activations.streams[:1]
