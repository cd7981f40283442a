"""Information flow routes: what the residual stream is made of, followed down from the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.activations import Activations, Backend
from tlprune.conventions import Move
from tlprune.graph import Graph, Readers
from tlprune.grouping import of_parts
from tlprune.masking.ablation import Ablation
from tlprune.masking.installing import refuse_installed
from tlprune.masking.patterns import attention_patterns, projected
from tlprune.methods.effects import bar, check_batch_size
from tlprune.methods.scoring import EdgeScoring
from tlprune.sites import Sites
from tlprune.task import Batch, Discovery, Tokens


@dataclass(frozen=True, kw_only=True)
class InformationFlowRoutes(EdgeScoring):
    """Score an edge by how much of what its reader sees its writer is, on routes that end in the answers.

    Where a reader sees ``y = sum_j x_j``, the importance of writer ``j`` at a position is

        ``max(0, |y| - |y - x_j|) / sum_i max(0, |y| - |y - x_i|)``

    with ``|.|`` the sum of sizes: how much nearer than nothing it comes to the sum. Nothing is replaced: twins, foils,
    the ablation and an objective have no part, so it finds what the model does on these prompts, whatever the task
    asks.

    ``flow="routes"``: from the logits at the answer positions down, an edge is on the route of a threshold if its
    importance is above it and so is that of every step between it and the answer. The score is the highest such
    threshold, over the positions of a prompt, 0 where no route leads; then the mean over training prompts. So
    thresholds of the scores of one prompt are the routes of the paper, for all thresholds at once.

    ``flow="positions"``: the mean of the importance over all positions and prompts, padding left out. All readers of
    one stream then have the same scores, as q, k and v of all heads of a layer; EAP-IG's package computes it so.

    **What is ours.** The paper's nodes are states of the residual stream, so its sums have a block's parts and the
    rest as one; here each reader's sum has every writer before it. A route enters a head at its query's position
    through q, and at a source through k and v as far as the source has a share in the head's output: the same
    importance, of ``a_ps v_s W_O`` in the sum over sources ``s``. Biases that no edge carries are in ``y`` and have no
    share. Embeddings that are always kept have one, and no score. Where an edge stands for several (q, k and v joined,
    whole layers), it is on a route if one of them is: its score on a prompt is the highest of theirs.

    Attributes:
        sparsity: fraction of the edges to remove, in (0, 1).
        edges: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        embeddings: ``"merged"``, ``"separate"`` or ``"kept"``, as of :class:`~tlprune.Convention`.
        kv: under grouped-query attention, k and v readers per key/value head or per query head.
        qkv: ``"split"``, or ``"joined"``: an edge into a head carries q, k and v together.
        heads: ``"split"``, or ``"joined"``: all heads of a layer are one node.
        flow: ``"routes"`` or ``"positions"``.
        batch_size: prompts per forward pass.

    Raises:
        ValueError: the model normalises every sum (BERT), so that no reader sees a sum of writers.

    Source: Ferrando and Voita, "Information Flow Routes" (2024, arXiv 2403.00824), section 2; importance by Ferrando,
    Gallego and Costa-jussa, "Measuring the Mixing of Contextual Information" (2022).

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> scores = InformationFlowRoutes().score(planted.model, planted.task)
        >>> bool((scores.values >= 0).all() and (scores.values <= 1).all())
        True
    """

    flow: Literal["routes", "positions"] = "routes"
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_batch_size(self.batch_size)
        if self.flow not in ("routes", "positions"):
            raise ValueError(f"flow must be 'routes' or 'positions' but is {self.flow!r}. Choose one of these.")

    @torch.no_grad()
    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        refuse_installed(model)
        backend, examples = backend_of(model), discovery.train()
        _check_sums(backend)
        total = torch.zeros(len(sites), dtype=torch.float64)
        graph = of_parts(sites.graph)
        highest = Move(graph, sites.graph, "max")
        for batch in bar(list(examples.split(self.batch_size)), progress):
            flow = _Flow.of(backend, graph, batch.to(backend.device))
            found = flow.over_positions() if self.flow == "positions" else flow.on_routes()
            total += torch.stack([highest(row) for row in found.double().cpu()]).sum(0)
        return (total / len(examples)).to(backend.dtype)


@dataclass(frozen=True)
class _Flow:
    """What some prompts' residual streams are made of.

    Attributes:
        backend: the model.
        graph: its edges.
        batch: the prompts.
        seen: what its writers wrote.
        importance: of each writer for each set of readers, ``(writer, example, pos)``; 0 for padding.
    """

    backend: Backend
    graph: Graph
    batch: Batch
    seen: Activations
    importance: Sequence[Tensor]

    @staticmethod
    def of(backend: Backend, graph: Graph, batch: Batch) -> _Flow:
        seen = backend.observe(batch.clean)
        parts, there = _writers(backend, graph, seen), _there(batch.clean)
        kept = [seen.streams[0]] * (graph.convention.embeddings == "kept")
        found = []
        for readers, stream in zip(graph.readers, seen.streams, strict=True):
            shares = _shares([*parts[: readers.width], *kept], stream)[: readers.width]
            found.append(torch.where(there, shares, 0))
        return _Flow(backend, graph, batch, seen, found)

    def over_positions(self) -> Float[Tensor, "example edge"]:
        """The mean over each prompt's positions."""
        there = _there(self.batch.clean)
        values = there.new_zeros(len(self.batch), len(self.graph), dtype=self.backend.dtype)
        for readers, importance in zip(self.graph.readers, self.importance, strict=True):
            readers.block(values)[:] = (importance.sum(-1) / there.sum(-1)).T[:, None]
        return values

    def on_routes(self) -> Float[Tensor, "example edge"]:
        """The highest threshold at which the edge is on a route to an answer, at any position."""
        sources = _sources(self.backend, self.graph, self.batch.clean, self.seen)
        reached = torch.zeros_like(self.importance[-1])
        values = reached.new_zeros(len(self.batch), len(self.graph))
        for readers, importance in zip(reversed(self.graph.readers), reversed(self.importance), strict=True):
            through = torch.minimum(importance, self._reached(readers, reached, sources)[:, None])
            readers.block(values)[:] = through.amax(-1).permute(2, 0, 1)
            reached[: readers.width] = torch.maximum(reached[: readers.width], through.amax(0))
        return values

    def _reached(
        self, readers: Readers, writers: Tensor, sources: Sequence[Tensor]
    ) -> Float[Tensor, "reader example pos"]:
        """How well each reader is reached at each position, from how well what it writes is."""
        if readers.kind == "logits":
            nowhere = torch.zeros_like(writers[:1])
            return nowhere.scatter(-1, self.batch.positions[None], 1.0)
        first, count = self.graph.attention_writers(readers.layer), self.graph.architecture.n_heads
        if readers.kind == "mlp":
            return writers[first + count, None]
        heads = writers[first : first + count]
        behind = torch.minimum(heads[..., None], sources[readers.layer]).amax(2)
        behind = behind.unflatten(0, (self.graph.n_kv_readers, -1)).amax(1)
        return torch.cat([heads, behind, behind])


def _writers(backend: Backend, graph: Graph, seen: Activations) -> list[Float[Tensor, "example pos d_model"]]:
    """What each writer sends into the residual stream."""
    merged = [seen.streams[0]] if graph.convention.embeddings == "merged" else []
    found = list(seen.embeddings) if graph.convention.embeddings == "separate" else merged
    for layer, z in enumerate(seen.outgoing):
        found += torch.einsum("bphe,hed->hbpd", z, backend.output_weight(layer)).unbind(0)
        found += seen.mlps[layer : layer + 1]
    return found


def _sources(
    backend: Backend, graph: Graph, tokens: Tokens, seen: Activations
) -> list[Float[Tensor, "head example pos source"]]:
    """The importance of each source position for what a head writes at a position, layer by layer."""
    there, found = _there(tokens), []
    patterns = attention_patterns(backend, graph, tokens, seen)
    pairs = zip(graph.readers, seen.streams, strict=True)
    streams = [stream for readers, stream in pairs if readers.kind == "attention"]
    for layer, (pattern, stream) in enumerate(zip(patterns, streams, strict=True)):
        _, _, values = projected(backend, graph, layer, stream)
        values = values.repeat_interleave(pattern.shape[2] // values.shape[2], 2)
        sent = torch.einsum("bshe,hed->bhsd", values, backend.output_weight(layer))
        rows = zip(pattern.transpose(1, 2), sent, there, strict=True)
        shares = [torch.where(real, _of_sources(weights, vectors), 0) for weights, vectors, real in rows]
        found.append(torch.stack(shares, 1))
    return found


def _of_sources(
    pattern: Float[Tensor, "head pos source"], sent: Float[Tensor, "head source d_model"]
) -> Float[Tensor, "head pos source"]:
    """Of one prompt, head by head, because every pair of positions has a vector."""
    found = []
    for weights, vectors in zip(pattern, sent, strict=True):
        parts = weights.T[..., None] * vectors[:, None]
        found.append(_shares(parts.unbind(0), parts.sum(0)).T)
    return torch.stack(found)


def _shares(
    parts: Sequence[Float[Tensor, "*rows d_model"]], whole: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "part *rows"]:
    """The importance of each part for the whole: how much nearer it comes than nothing, over the sum of that."""
    nearer = torch.stack([whole.abs().sum(-1) - (whole - part).abs().sum(-1) for part in parts]).clamp(min=0)
    return nearer / nearer.sum(0).clamp(min=torch.finfo(nearer.dtype).tiny)


def _there(tokens: Tokens) -> Tensor:
    """Which positions hold a token of the prompt, ``(example, pos)``."""
    mask = tokens.attention_mask
    return torch.ones_like(tokens.ids, dtype=torch.bool) if mask is None else mask.bool()


def _check_sums(backend: Backend) -> None:
    if backend.architecture.post_norm:
        raise ValueError(
            "Information flow routes need readers that see a sum of writers, but this encoder normalises every sum. "
            "Use tp.EdgePatching, or a model with norms before its blocks."
        )
