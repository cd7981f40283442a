"""The graph of edges between the parts of a transformer that write to and read from its residual stream."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from tlprune.flow import Flow

LOGITS = "logits"


@dataclass(frozen=True)
class Architecture:
    """What of a model's configuration decides its graph.

    Attributes:
        n_layers: blocks.
        n_heads: query heads per block.
        n_kv_heads: key/value heads per block; fewer than ``n_heads`` under grouped-query attention.
        has_mlp: ``False`` for attention-only models.
        parallel: attention and MLP of a block read the same stream (GPT-J, GPT-NeoX).
        position_embedding: a learned position embedding is added to the token embedding, and nothing mixes the two.
        post_norm: each sum with an attention's or MLP's output is normalised (BERT), so that the residual stream is no
            plain sum of writers; the ``input`` is the normalised embedding.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    has_mlp: bool = True
    parallel: bool = False
    position_embedding: bool = False
    post_norm: bool = False

    @staticmethod
    def of(config: Any) -> Architecture:
        """Read the facts from a TransformerLens configuration; what is bidirectional and has norms is like BERT."""
        # TransformerLens 3 says of a BERT behind a bridge that it attends to what is before.
        behind_a_bridge = (getattr(config, "architecture", None) or "").startswith(("Bert", "Roberta"))
        bidirectional = getattr(config, "attention_dir", "causal") == "bidirectional"
        if behind_a_bridge or (bidirectional and getattr(config, "normalization_type", "LN") is not None):
            return Architecture(config.n_layers, config.n_heads, config.n_heads, post_norm=True)
        return Architecture(
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=getattr(config, "n_key_value_heads", None) or config.n_heads,
            has_mlp=not config.attn_only,
            parallel=bool(getattr(config, "parallel_attn_mlp", False)),
            position_embedding=config.positional_embedding_type == "standard",
        )


@dataclass(frozen=True)
class Convention:
    """What counts as an edge. Every published figure depends on it, so every graph carries it.

    Attributes:
        embeddings: ``"merged"``: one node ``input`` (ACDC, EAP, MIB); ``"separate"``: ``embed`` and
            ``pos_embed``; ``"kept"``: embeddings always reach every reader and are not counted
            (Edge Pruning without ``--with_embedding_nodes``).
        kv: under grouped-query attention, ``"shared"``: one k and one v reader per key/value head;
            ``"per_query_head"``: one per query head (EAP-IG, MIB).
        qkv: ``"split"``: a head reads three times, for q, k and v; ``"joined"``: once, and an edge carries all three
            (under grouped-query attention then per query head, whatever ``kv`` says).
        heads: ``"split"``: each head is a node; ``"joined"``: all heads of a layer are one node, ``a3``, which
            writes their sum and reads once for q, once for k and once for v, or once in all, whatever ``kv`` says.
    """

    embeddings: Literal["merged", "separate", "kept"] = "merged"
    kv: Literal["shared", "per_query_head"] = "shared"
    qkv: Literal["split", "joined"] = "split"
    heads: Literal["split", "joined"] = "split"

    def __post_init__(self) -> None:
        _check_choice("embeddings", self.embeddings, ("merged", "separate", "kept"))
        _check_choice("kv", self.kv, ("shared", "per_query_head"))
        _check_choice("qkv", self.qkv, ("split", "joined"))
        _check_choice("heads", self.heads, ("split", "joined"))

    def __str__(self) -> str:
        joined = ", qkv joined" if self.qkv == "joined" else ""
        heads = ", heads joined" if self.heads == "joined" else ""
        return f"embeddings {self.embeddings}, kv {self.kv}{joined}{heads}"

    @property
    def ungrouped(self) -> bool:
        """Whether every query head has k and v readers of its own."""
        return self.heads == "split" and (self.kv == "per_query_head" or self.qkv == "joined")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)} but is {value!r}. Choose one of these.")


@dataclass(frozen=True)
class Readers:
    """Readers that see the same upstream writers: one block's q, k and v, one MLP, or the logits.

    Attributes:
        kind: ``"attention"``, ``"mlp"`` or ``"logits"``.
        layer: block index; ``n_layers`` for the logits.
        names: reader names; for attention all q, then all k, then all v.
        width: number of writers before it; it reads writers ``0 .. width-1``.
        start: position of its first edge among all edges; its edges are a row-major
            ``(len(names), width)`` block.
    """

    kind: Literal["attention", "mlp", "logits"]
    layer: int
    names: tuple[str, ...]
    width: int
    start: int

    @property
    def n_edges(self) -> int:
        return len(self.names) * self.width

    def block(self, values: Tensor) -> Tensor:
        """The edges of these readers out of a tensor over all edges: ``(..., edge)`` to ``(..., reader, writer)``."""
        part = values[..., self.start : self.start + self.n_edges]
        return part.unflatten(-1, (len(self.names), self.width))


class Graph:
    """Writers, readers and the edges between them, in one fixed order.

    With ``e`` embedding nodes (1 merged, 2 separate, 0 kept), ``L`` layers of ``H`` heads and ``K`` key/value
    readers, the count is ``sum_l (H + 2K)(e + l(H+1)) + sum_l (e + l(H+1) + H) + e + L(H+1)``, with H in place of
    H + 2K where q, k and v are joined. Where whole attention layers are nodes, ``H = K = 1``. The edges from q, k and v
    into their own head are never counted.

    Args:
        architecture: the model's shape.
        convention: what counts as an edge.

    Raises:
        ValueError: separate embeddings in a model that normalises their sum.

    Example:
        >>> gpt2 = Architecture(12, 12, 12, position_embedding=True)
        >>> Graph(gpt2).n_edges, Graph(gpt2, Convention("separate")).n_edges
        (32491, 32936)
        >>> Graph(gpt2).name(0), Graph(gpt2).index("m11->logits")
        ('input->a0.h0<q>', 32490)
    """

    kind = "edges"

    def __init__(self, architecture: Architecture, convention: Convention | None = None) -> None:
        self.architecture = architecture
        self.convention = convention or Convention()
        if architecture.post_norm and self.convention.embeddings == "separate":
            raise ValueError(
                "Token and position embeddings can be told apart where readers see their sum, but this encoder "
                "normalises it, which mixes them. Use embeddings='merged' or 'kept'."
            )
        self.embeddings = self._embeddings()
        self.writers: tuple[str, ...] = tuple(self._writers())
        self.readers: tuple[Readers, ...] = tuple(self._readers())
        last = self.readers[-1]
        self.n_edges = last.start + last.n_edges

    @staticmethod
    def of(model: Any, convention: Convention | None = None) -> Graph:
        """The graph of a TransformerLens model.

        Raises:
            ValueError: it is not one.
        """
        if not hasattr(model, "cfg"):
            raise ValueError(
                f"A graph needs a TransformerLens model, whose cfg tells its shape, but got {type(model).__name__}. "
                "Load one with tp.load(...)."
            )
        return Graph(Architecture.of(model.cfg), convention)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((self.architecture, self.convention))

    def __repr__(self) -> str:
        return f"Graph({self.n_edges:,} edges; {self.convention})"

    def __len__(self) -> int:
        return self.n_edges

    def as_dict(self) -> dict[str, Any]:
        """Architecture and convention as plain data; ``from_dict`` is the way back."""
        return {
            "kind": self.kind,
            "architecture": asdict(self.architecture),
            "convention": asdict(self.convention),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Graph:
        return Graph(Architecture(**data["architecture"]), Convention(**data["convention"]))

    def _embeddings(self) -> tuple[str, ...]:
        if self.convention.embeddings == "kept":
            return ()
        if self.convention.embeddings == "separate" and self.architecture.position_embedding:
            return ("embed", "pos_embed")
        return ("embed",) if self.convention.embeddings == "separate" else ("input",)

    def _writers(self) -> Iterator[str]:
        yield from self.embeddings
        for layer in range(self.architecture.n_layers):
            yield from self._attention_nodes(layer)
            if self.architecture.has_mlp:
                yield f"m{layer}"

    def _readers(self) -> Iterator[Readers]:
        start, shape = 0, self.architecture
        for layer in range(shape.n_layers):
            attention = Readers("attention", layer, self._attention_names(layer), self.attention_writers(layer), start)
            yield attention
            start += attention.n_edges
            if shape.has_mlp:
                width = attention.width + (0 if shape.parallel else self.n_attention_nodes)
                mlp = Readers("mlp", layer, (f"m{layer}",), width, start)
                yield mlp
                start += mlp.n_edges
        yield Readers("logits", shape.n_layers, (LOGITS,), len(self.writers), start)

    def attention_writers(self, layer: int) -> int:
        """Number of writers before block ``layer``, which is also the position of its first head among them."""
        return len(self.embeddings) + layer * (self.n_attention_nodes + int(self.architecture.has_mlp))

    @property
    def n_attention_nodes(self) -> int:
        """Nodes of a layer's attention: its heads, or 1."""
        return 1 if self.convention.heads == "joined" else self.architecture.n_heads

    @property
    def n_kv_readers(self) -> int:
        shape = self.architecture
        if self.convention.heads == "joined":
            return 1
        return shape.n_heads if self.convention.ungrouped else shape.n_kv_heads

    def _attention_nodes(self, layer: int) -> tuple[str, ...]:
        if self.convention.heads == "joined":
            return (f"a{layer}",)
        return tuple(f"a{layer}.h{head}" for head in range(self.architecture.n_heads))

    def _attention_names(self, layer: int) -> tuple[str, ...]:
        nodes = self._attention_nodes(layer)
        if self.convention.qkv == "joined":
            return nodes
        if self.convention.heads == "joined":
            return tuple(f"a{layer}<{part}>" for part in "qkv")
        heads = self.architecture.n_heads
        kv = "kv" if self.n_kv_readers < heads else "h"
        names = [f"{node}<q>" for node in nodes]
        return (*names, *(f"a{layer}.{kv}{head}<{part}>" for part in "kv" for head in range(self.n_kv_readers)))

    @cached_property
    def _reader_of(self) -> dict[str, tuple[Readers, int]]:
        return {name: (readers, row) for readers in self.readers for row, name in enumerate(readers.names)}

    @cached_property
    def _writer_index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.writers)}

    def name(self, index: int) -> str:
        """Name of the edge at ``index``."""
        for readers in self.readers:
            if index < readers.start + readers.n_edges:
                row, writer = divmod(index - readers.start, readers.width)
                return f"{self.writers[writer]}->{readers.names[row]}"
        raise ValueError(f"An edge index must be below {self.n_edges:,} but is {index:,}. Use one of this graph.")

    def edges(self, kept: Bool[Tensor, "edge"] | None = None) -> list[str]:
        """Names of all edges, or of those that ``kept`` marks, in graph order."""
        if kept is None:
            return [self.name(index) for index in range(self.n_edges)]
        return [self.name(index) for index in kept.nonzero().flatten().tolist()]

    def index(self, name: str) -> int:
        """Position of a named edge.

        Raises:
            ValueError: the name is malformed, names no node of this graph, or runs backwards.
        """
        writer, arrow, reader = name.partition("->")
        if not arrow:
            raise ValueError(
                f"An edge is written 'writer->reader' but {name!r} has no '->'. Example: {self.name(0)!r}."
            )
        self._check_name("writer", writer, self._writer_index)
        self._check_name("reader", reader, self._reader_of)
        readers, row = self._reader_of[reader]
        if self._writer_index[writer] >= readers.width:
            raise ValueError(f"Edge {name!r} runs backwards: {reader} is computed before {writer}. Reverse or drop it.")
        return readers.start + row * readers.width + self._writer_index[writer]

    def _check_name(self, role: str, name: str, known: Mapping[str, Any]) -> None:
        if name not in known:
            names = list(known)
            near = difflib.get_close_matches(name, names, 3) or names[:3]
            raise ValueError(f"{name!r} is not a {role} of this graph ({self}). Nearest names: {', '.join(near)}.")

    def effective(self, kept: Bool[Tensor, "*span edge"], flow: Flow | None = None) -> Bool[Tensor, "*span edge"]:
        """Which of the kept edges lie on a path of kept edges from an embedding to the logits.

        A path may enter a head through q, k or v. Where embeddings are always kept, every reader is reached. By span, a
        path stays at its span but in attention: from k and v (or from all, where q, k and v are joined) it goes on at
        every span that attends to this one; and it ends where the logits are read.

        Args:
            kept: the edges, at each span if they differ by span.
            flow: how the spans follow each other; without it everything is one span.
        """
        flow = flow or Flow.everywhere(("everywhere",))
        table = kept.view(-1, self.n_edges)
        alive = self._alive(table, flow)
        needed, result = torch.zeros_like(alive), torch.zeros_like(table)
        for readers in reversed(self.readers):
            serving = self._readers_at(readers, needed, flow)
            on_path = serving[..., None] & readers.block(table) & alive[:, None, : readers.width]
            readers.block(result)[:] = on_path
            needed[:, : readers.width] |= on_path.any(1)
        return result.view_as(kept)

    def _alive(self, kept: Bool[Tensor, "span edge"], flow: Flow) -> Bool[Tensor, "span writer"]:
        """Writers that some embedding reaches through kept edges."""
        alive = torch.zeros(len(kept), len(self.writers), dtype=torch.bool)
        alive[:, : len(self.embeddings)] = True
        for readers in self.readers[:-1]:
            reached = (readers.block(kept) & alive[:, None, : readers.width]).any(2)
            if self.convention.embeddings == "kept":
                reached = torch.ones_like(reached)
            moved = _any_of(reached, flow.table)
            arrived = torch.where(self.moving(readers), moved, reached)
            alive[:, self.writers_of(readers)] = self.writers_reached(readers, arrived)
        return alive

    def _readers_at(
        self, readers: Readers, needed: Bool[Tensor, "span writer"], flow: Flow
    ) -> Bool[Tensor, "span reader"]:
        """Which of these readers, at which spans, feed one of some writers, or the logits where they are read."""
        if readers.kind == "logits":
            return flow.answers[:, None]
        own = self.readers_of(readers, needed)
        return torch.where(self.moving(readers), _any_of(own, flow.table.T), own)

    def moving(self, readers: Readers) -> Bool[Tensor, "reader"]:
        """Which of these readers attention carries to other positions: k and v, and all where q, k and v are joined."""
        count, queries = len(readers.names), 0 if self.convention.qkv == "joined" else self.n_attention_nodes
        return torch.arange(count) >= (queries if readers.kind == "attention" else count)

    def writers_of(self, readers: Readers) -> slice:
        """The writers that these readers feed: a block's heads, or its MLP."""
        first = self.attention_writers(readers.layer)
        heads = self.n_attention_nodes
        return slice(first, first + heads) if readers.kind == "attention" else slice(first + heads, first + heads + 1)

    def writers_reached(self, readers: Readers, reached: Bool[Tensor, "*span reader"]) -> Bool[Tensor, "*span writer"]:
        """Which of :meth:`writers_of` some of these readers feed."""
        if readers.kind == "mlp" or self.convention.qkv == "joined":
            return reached
        heads, kv = self.n_attention_nodes, self.n_kv_readers
        q, k, v = reached.split([heads, kv, kv], -1)
        return q | k.repeat_interleave(heads // kv, -1) | v.repeat_interleave(heads // kv, -1)

    def readers_of(self, readers: Readers, needed: Bool[Tensor, "*span writer"]) -> Bool[Tensor, "*span reader"]:
        """Which of these readers feed one of some writers; the logits always count."""
        if readers.kind == "logits":
            return torch.ones(*needed.shape[:-1], 1, dtype=torch.bool)
        nodes = needed[..., self.writers_of(readers)]
        if readers.kind == "mlp" or self.convention.qkv == "joined":
            return nodes
        kv = nodes.unflatten(-1, (self.n_kv_readers, -1)).any(-1)
        return torch.cat([nodes, kv, kv], -1)


def _any_of(values: Bool[Tensor, "source reader"], moves: Bool[Tensor, "source span"]) -> Bool[Tensor, "span reader"]:
    """For each span whether some span that moves into it has a value."""
    return (moves[..., None] & values[:, None]).any(0)
