"""The edge engine: one run of a model in which every reader sees its own mixture of upstream outputs.

``x_r = c_r + sum_w x~_wr + sum_w m_rw (x_w - x~_w)`` for reader ``r`` and writers ``w`` before it, where ``x`` is a
writer's output in this run, ``x~`` what replaces it, and ``c_r`` what no edge carries. The first two terms are the
residual stream of the replacing run (``Activations.streams``); the third is one matrix product per set of readers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.backends.activations import Activations, Backend, Projection, autocast_dtype
from tlprune.graph import Graph, Readers
from tlprune.grouping import of_heads, spread
from tlprune.masking.beside import Beside, check_gradients
from tlprune.masking.exchange import ReadProjected, ReadStream, WriteHeads, WriteStream
from tlprune.masking.in_play import Everything, in_play
from tlprune.masking.mixing import mix
from tlprune.masking.post_norm_edges import PostNormCall
from tlprune.masking.recomputing import Recomputing, is_bare
from tlprune.masking.workspace import Pool, Workspace
from tlprune.task import Tokens

MaskValues = Float[Tensor, "*lead edge"]


def run_edges(
    backend: Backend,
    graph: Graph,
    tokens: Tokens,
    mask: MaskValues,
    replaced: Activations,
    *,
    positions: Int[Tensor, "example answer"] | None = None,
    pool: Pool | None = None,
    beside: Beside | None = None,
) -> Float[Tensor, "example answer vocab"]:
    """Logits of a model whose edges are mixed with what replaces them.

    Args:
        backend: the model.
        graph: decides which edges there are.
        tokens: clean prompts.
        mask: 1 keeps an edge, 0 replaces it: ``(edge,)``; ``(example, edge)`` for a circuit per example;
            ``(example or 1, pos, edge)`` for one per position.
        replaced: what an ablated writer sends.
        positions: where logits are wanted; everywhere when ``None``.
        pool: buffers to reuse.
        beside: what else is different in this run.

    Raises:
        ValueError: the mask's shape does not fit.
        RuntimeError: a reader or writer was not met during the run.
    """
    check_mask(mask, graph, tokens)
    beside = beside or Beside()
    call = edge_call(backend, graph, tokens.ids.shape, mask, replaced, pool=pool or Pool(), beside=beside)
    logits = backend.steer(tokens, call, graph.convention, positions, beside.edits)
    call.check_complete()
    return logits


def edge_call(
    backend: Backend,
    graph: Graph,
    lead: Sequence[int],
    mask: Tensor,
    replaced: Activations,
    *,
    pool: Pool,
    beside: Beside,
) -> EdgeCall | PostNormCall:
    """The engine of one run, as the model's norms ask for it; ``lead`` is the number of examples and of positions.

    Edges of whole attention layers are run as those of their heads.
    """
    mask, graph = spread(mask, graph, of_heads(graph)), of_heads(graph)
    if graph.architecture.post_norm:
        return PostNormCall(backend, graph, lead, mask, replaced, beside=beside)
    return EdgeCall(backend, graph, lead, mask, replaced, pool=pool, beside=beside)


def check_mask(mask: Tensor, graph: Graph, tokens: Tokens) -> None:
    """Raise a ValueError unless these are masks of the edges, for all prompts, for each, or at each position."""
    lead, (batch, pos) = tuple(mask.shape[:-1]), tokens.ids.shape
    allowed = [(), (1,), (batch,), (1, pos), (batch, pos), (1, 1), (batch, 1)]
    if mask.shape[-1] != graph.n_edges or lead not in allowed:
        raise ValueError(
            f"A mask needs shape ({graph.n_edges},), ({batch}, {graph.n_edges}) or (1 or {batch}, {pos}, "
            f"{graph.n_edges}) for {batch} prompts of {pos} tokens but has {tuple(mask.shape)}. Give one number per "
            "edge, with an example axis, or an example and a position axis, in front."
        )


class EdgeCall:
    """One run: what has been written so far and what each reader is to see (a ``Steering``)."""

    def __init__(
        self,
        backend: Backend,
        graph: Graph,
        lead: Sequence[int],
        mask: Tensor,
        replaced: Activations,
        *,
        pool: Pool,
        beside: Beside,
    ) -> None:
        self.beside = beside
        self.backend, self.graph, self.mask, self.replaced = backend, graph, mask, replaced
        self.shape = (*lead, backend.d_model)
        self.play = self._in_play()
        self.cast = autocast_dtype(backend.device)
        buffers = beside.buffers or self.cast or backend.dtype
        self.workspace = Workspace(pool, (self.play.count, *self.shape), buffers, backend.device)
        learned = mask.requires_grad or any(tensor.requires_grad for tensor in replaced.tensors)
        self.trained = torch.is_grad_enabled() and learned
        self.token = torch.zeros((), device=backend.device, requires_grad=self.trained)
        self.recomputing = Recomputing(backend, math.prod(lead), edits=beside.edits, mlps=beside.mlps)
        self.skipped = {own.layer for own in graph.readers if own.kind == "mlp" and self._can_skip(own)}
        self.reads, self.writes = 0, 0

    def _in_play(self) -> Everything:
        """All, if somebody else has a say in this run or looks at it."""
        beside = self.beside
        alone = not (beside.edits or beside.scales) and beside.outputs is None and beside.seen is None
        decided = beside.flat_ends or not self.mask.requires_grad
        if not alone or not decided or self.backend.is_hooked():
            return Everything(self.graph)
        return in_play(self.graph, self.mask, size=math.prod(self.shape), coupled=self.backend.coupled)

    def _can_skip(self, mlp: Readers) -> bool:
        """Whether nobody hears an MLP, or hooks on it."""
        return not self.play.matter(mlp) and is_bare(self.backend.mlp_modules(mlp.layer))

    # ---- writers

    def embedding(self, index: int, value: Tensor) -> None:
        separate = self.graph.convention.embeddings == "separate"
        replaced = self.replaced.embeddings[index] if separate else self.replaced.streams[0]
        self._write_stream(self.play.embedding(index), value, replaced)

    def heads(self, layer: int, z: Tensor) -> None:
        check_gradients(self.trained)
        weight, replaced = self._as_cast(self.backend.output_weight(layer)), self.replaced.outgoing[layer]
        other = None if self.beside.outputs is None else self._as_cast(self.beside.outputs[layer])
        places = self.play.places(layer)
        self.token = WriteHeads.apply(self.token, z, weight, replaced, self.workspace, places, other)
        self.writes += len(weight)

    def mlp(self, layer: int, output: Tensor) -> None:
        place = self.play.places(layer).mlp
        self._write_stream(place, self.recomputing.writes(layer, output), self.replaced.mlps[layer])

    def _write_stream(self, place: int | None, value: Tensor, replaced: Tensor) -> None:
        check_gradients(self.trained)
        self.writes += 1
        if place is not None:
            self.token = WriteStream.apply(self.token, value, replaced, self.workspace, place)

    def _as_cast(self, weight: Tensor) -> Tensor:
        """A weight in the type that automatic casts ask for."""
        return weight if self.cast is None else weight.to(self.cast)

    # ---- readers

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        projection = self.projection(layer)
        readers, base = self._next("attention", layer)
        if not self.play.matter(readers):
            return self._silent(projection)
        gated = self._scale_free(readers, base) and projection.norm != "none"
        mask, rows = self.play.block(readers, self.mask), self.play.rows(readers)
        mask = mask if rows is None else mask.index_select(-2, rows.chosen.to(mask.device))
        parts = ReadProjected.apply(
            self.token, _hard(mask) if gated else mask, base, self.workspace, projection, rows, *projection.tensors
        )
        q, k, v = (part.unflatten(1, self.shape[:2]).permute(1, 2, 0, 3) for part in parts)
        return self._gated((q, k, v), readers, projection) if gated else (q, k, v)

    def _silent(self, projection: Projection) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of heads that nobody hears."""
        q, k, v = (weight.new_zeros(*self.shape[:2], *weight.shape[::2]) for weight in projection.weights)
        return q, k, v

    def projection(self, layer: int) -> Projection:
        """From readers' inputs to q, k and v of a block in this run."""
        projection = self.backend.projection(layer, self.graph.convention)
        if self.cast is not None:
            weights, biases = (tuple(map(self._as_cast, part)) for part in (projection.weights, projection.biases))
            projection = replace(projection, weights=weights, biases=biases)
        if layer in self.beside.scales:
            projection = replace(projection, scale=self.beside.scales[layer].flatten(0, 1))
        return projection

    def _gated(
        self, parts: tuple[Tensor, ...], readers: Readers, projection: Projection
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Interpolate between what readers project from nothing and what they project from their only writer."""
        gate = readers.block(self.mask)[..., 0]
        if self.graph.convention.qkv == "joined":
            gate = torch.cat([gate] * 3, -1)
        nothing = projection(gate.new_zeros(gate.shape[-1], 1, self.backend.d_model))
        gates = _over_examples(gate).split(projection.splits, dim=2)
        empty = [part.permute(1, 0, 2)[None] for part in nothing]
        q, k, v = (low + g.to(low.dtype) * (part - low) for low, g, part in zip(empty, gates, parts, strict=True))
        return q, k, v

    def mlp_input(self, layer: int) -> Tensor:
        readers, base = self._next("mlp", layer)
        if layer in self.skipped:
            return base.new_zeros(1, 1, self.backend.d_model, dtype=self.backend.dtype)
        mask = self.play.block(readers, self.mask)
        stream = self._read_stream(_hard(mask) if self._scale_free(readers, base) else mask, base)
        return self.recomputing.reads(layer, stream)

    def final(self) -> Tensor:
        readers, base = self._next("logits", self.graph.architecture.n_layers)
        return self._read_stream(self.play.block(readers, self.mask), base)

    def _read_stream(self, mask: Tensor, base: Tensor) -> Tensor:
        return ReadStream.apply(self.token, mask, base, self.workspace, self.backend.dtype)

    def _next(self, kind: str, layer: int) -> tuple[Readers, Tensor]:
        check_gradients(self.trained)
        readers = self.graph.readers[self.reads]
        if (readers.kind, readers.layer) != (kind, layer):
            raise RuntimeError(f"The model asked for {kind} of layer {layer} where {readers.names[0]} was due.")
        base = self.replaced.streams[self.reads].to(self.workspace.exact_dtype).expand(self.shape)
        self.reads += 1
        if self.beside.seen is not None:
            streams = mix(self.play.block(readers, self.mask), base, self.workspace).detach().to(self.backend.dtype)
            self.beside.seen.update(zip(readers.names, streams, strict=True))
        return readers, base

    def _scale_free(self, readers: Readers, base: Tensor) -> bool:
        """Whether a reader sees nothing but one gated writer, whose scale a norm would undo."""
        alone = readers.width == 1 and not self.play.always and not self.beside.scales
        return alone and not bool(base.any())

    def check_complete(self) -> None:
        """Raise unless every writer wrote and every reader read exactly once."""
        writers = len(self.graph.writers) + self.play.always
        if self.reads != len(self.graph.readers) or self.writes != writers:
            raise RuntimeError(
                f"{self.reads} of {len(self.graph.readers)} sets of readers and {self.writes} of {writers} "
                f"writers were met during the run, so a hook did not fire. "
                "Is part of the model skipped or replaced?"
            )


def _hard(mask: Tensor) -> Tensor:
    return (mask > 0).to(mask.dtype)


def _over_examples(gate: Float[Tensor, "*lead reader"]) -> Tensor:
    """Line a gate up with ``(example, pos, reader, d_head)``."""
    shape = {1: (1, 1), 2: (len(gate), 1), 3: tuple(gate.shape[:2])}[gate.dim()]
    return gate.reshape(*shape, gate.shape[-1], 1)
