"""Masks on what attention moves from one named span of a prompt to another.

For the queries in span ``t`` a head's keys and values at a position of span ``s`` are ``m k + (1 - m) k~``, where ``m``
is the mask of ``s -> t``, ``k`` what the head has there in this run, and ``k~`` what it makes of the residual stream of
the replacing run. So attention is run once for each span that some query lies in, side by side along the axis of
examples, and each position's output is taken from the run of its own span. All else runs once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.backends.activations import Activations, Backend, Edits
from tlprune.between_spans import AttentionEdges
from tlprune.graph import Convention, Graph
from tlprune.masking.beside import Beside
from tlprune.masking.edges import EdgeCall, check_mask, edge_call, run_edges
from tlprune.masking.tap import project
from tlprune.masking.workspace import Pool
from tlprune.sites import Sites
from tlprune.spans import places
from tlprune.task import Tokens

# What a steered run edits of the model's own activations in front of and within attention, where it sees all copies.
COPIED = ("input", "embed", "pos_embed", "heads", "attention_post_norm")


@dataclass(frozen=True)
class Crossings:
    """The masks of attention edges in one run.

    Attributes:
        edges: which sites they are of.
        mask: their values, ``(site,)`` or ``(example, site)``.
        places: the number of each position's span in ``edges.all_spans``, ``(example, pos)``.
    """

    edges: AttentionEdges
    mask: Float[Tensor, "*lead site"]
    places: Int[Tensor, "example pos"]


def crossings_of(
    sites: Sites, values: Mapping[str, Tensor], tokens: Tokens, spans: Int[Tensor, "example pos"] | None
) -> Crossings | None:
    """The masks of attention edges among all masks; ``None`` without such sites.

    Without spans all positions are in none.
    """
    if "attention_edges" not in sites.kinds:
        return None
    own, mask = sites.group("attention_edges"), values["attention_edges"]
    assert isinstance(own, AttentionEdges)
    numbers = torch.full_like(tokens.ids, -1) if spans is None else spans
    return Crossings(own, mask, places(own.spans, numbers.to(mask.device)))


def graph_of(sites: Sites, backend: Backend) -> Graph:
    """The graph that a run is steered by; without masks of edges it has the attention edges' readers."""
    if "edges" in sites.kinds:
        return sites.graph
    own = sites.group("attention_edges")
    kv = "per_query_head" if isinstance(own, AttentionEdges) and own.ungrouped else "shared"
    return Graph(backend.architecture, Convention(kv=kv))


def run_crossed(
    backend: Backend,
    graph: Graph,
    tokens: Tokens,
    mask: Float[Tensor, "*lead edge"] | None,
    crossings: Crossings | None,
    replaced: Activations,
    *,
    positions: Int[Tensor, "example answer"] | None = None,
    pool: Pool | None = None,
    beside: Beside | None = None,
) -> Float[Tensor, "example answer vocab"]:
    """Logits of a model whose edges and attention edges are mixed with what replaces them.

    Args:
        backend: the model; with attention edges not one that normalises every sum.
        graph: decides which edges there are.
        tokens: clean prompts.
        mask: of the edges, as of :func:`~tlprune.masking.edges.run_edges`; by default all are kept.
        crossings: the masks of attention edges, if there are any.
        replaced: what an ablated writer sends, with the streams of that run.
        positions: where logits are wanted; everywhere when ``None``.
        pool: buffers to reuse.
        beside: what else is different in this run.
    """
    beside, pool = beside or Beside(), pool or Pool()
    if mask is None:
        dtype = torch.promote_types(backend.dtype, torch.float32)
        mask = torch.ones(len(graph), dtype=dtype, device=backend.device)
    if crossings is None:
        return run_edges(backend, graph, tokens, mask, replaced, positions=positions, pool=pool, beside=beside)
    check_mask(mask, graph, tokens)
    inner = edge_call(backend, graph, tokens.ids.shape, mask, replaced, pool=pool, beside=beside)
    assert isinstance(inner, EdgeCall), "its stream is no sum"
    call = CrossingCall(inner, crossings)
    edits, copies = call.copied_edits(beside.edits), tokens.repeated(len(call.queried))
    logits = backend.steer(copies, call, graph.convention, positions, edits)
    inner.check_complete()
    return logits


class CrossingCall:
    """A run in which attention has a copy for each span of queries (a ``Steering`` around another).

    The model is run on as many copies of the prompts, of which only attention makes use: readers of the residual stream
    are given by the inner call, which knows each prompt once.
    """

    def __init__(self, inner: EdgeCall, crossings: Crossings) -> None:
        self.inner, self.crossings = inner, crossings
        self.examples = len(crossings.places)
        pairs = zip(inner.graph.readers, inner.replaced.streams, strict=True)
        self.streams = {readers.layer: stream for readers, stream in pairs if readers.kind == "attention"}
        apart = crossings.edges.apart.to(crossings.places.device)[crossings.places]
        self.queried, self.owner = apart.unique(return_inverse=True)
        self.mlp_input, self.mlp, self.final = inner.mlp_input, inner.mlp, inner.final

    def embedding(self, index: int, value: Tensor) -> None:
        self.inner.embedding(index, value[: self.examples])

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.inner.attention(layer)
        _, other_k, other_v = self._replacing(layer)
        gates = self._gates(layer, k.shape[2])
        k, v = (
            torch.lerp(other.to(own.dtype), own, gate.to(own.dtype)[..., None]).flatten(0, 1)
            for own, other, gate in zip((k, v), (other_k, other_v), gates, strict=True)
        )
        return q.repeat(len(self.queried), 1, 1, 1), k, v

    def heads(self, layer: int, z: Tensor) -> None:
        copies = z.unflatten(0, (len(self.queried), self.examples))
        examples, positions = (torch.arange(size, device=z.device) for size in self.owner.shape)
        self.inner.heads(layer, copies[self.owner, examples[:, None], positions])

    def _replacing(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v that a block has from the stream of the replacing run, of which position or example may be 1."""
        stream = self.streams[layer]
        if layer in self.inner.beside.scales:  # of each position, which a stream that is the same at all lacks
            stream = stream.expand(self.inner.shape)
        exact = torch.promote_types(stream.dtype, torch.float32)
        return project(self.inner.projection(layer), stream.to(exact))

    def _gates(self, layer: int, n_readers: int) -> Float[Tensor, "2 query example pos head"]:
        """For the queries of each span, the masks of keys and of values at every position."""
        values = self.crossings.edges.of_layer(self.crossings.mask, layer, n_readers)[..., self.queried]
        # (example or 1, source, 2, query, head), so that a position picks what is of its own span as a source
        table = values.reshape(-1, *values.shape[-4:]).permute(0, 3, 1, 4, 2)
        rows = torch.arange(len(table), device=table.device)[:, None]
        return table[rows, self.crossings.places].permute(2, 3, 0, 1, 4)

    def copied_edits(self, edits: Edits) -> Edits:
        """Edits of prompts as edits of each copy of them, where copies are seen."""
        return {point: self._over_copies(edit) if point[0] in COPIED else edit for point, edit in edits.items()}

    def _over_copies(self, edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda value: torch.cat([edit(own) for own in value.split(self.examples)])
