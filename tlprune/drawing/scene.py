"""What a drawing shows: the nodes that a circuit uses, in rows from the embeddings up, and the links between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.graph import LOGITS, Graph
from tlprune.spans import Spanned

BUNDLED = 2000
"""Circuits of more edges than this show one curve per pair of nodes."""

SEVERAL = "several"
Kind = Literal["embedding", "keyvalue", "head", "mlp", "logits"]


@dataclass(frozen=True)
class Node:
    """A writer, a reader or both, as one box.

    Attributes:
        name: ``"a5.h3"``, ``"a5.kv1"``, ``"m7"``, ``"input"``, ``"logits"``; by span ``"a5.h3@s2"``.
        kind: decides its shape and its row.
        layer: block index; -1 for embeddings, ``n_layers`` for the logits.
        ports: the parts of a head that have a place of their own, of ``q``, ``k``, ``v``.
        serves: for a shared key/value node, the drawn query heads that use it.
        effective: whether an effective edge touches it.
    """

    name: str
    kind: Kind
    layer: int
    ports: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()
    effective: bool = False

    @property
    def label(self) -> str:
        """Its name without the span."""
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Link:
    """One curve: an edge, or all edges between two nodes when bundled.

    Attributes:
        writer: name of the node it leaves.
        reader: name of the node it enters.
        parts: the parts of the reader that it enters: of ``q``, ``k``, ``v``, or ``mlp`` or ``logits``.
        effective: whether it lies on a path from an embedding to the logits; so do all edges of a bundle, or none.
        weight: the edge's weight, or the sum of absolute weights over a bundle.
    """

    writer: str
    reader: str
    parts: tuple[str, ...]
    effective: bool
    weight: float | None = None

    @property
    def part(self) -> str:
        """The part that decides its colour and port."""
        return self.parts[0] if len(self.parts) == 1 else SEVERAL

    @property
    def name(self) -> str:
        """The edge's name; ``"a0.h1->a2.h0<q,v>"`` for a bundle."""
        suffix = "" if self.parts[0] in ("mlp", LOGITS) else f"<{','.join(self.parts)}>"
        reader, at, span = self.reader.partition("@")
        return f"{self.writer.partition('@')[0]}->{reader}{suffix}{at}{span}"


@dataclass(frozen=True)
class Scene:
    """Rows of nodes from the embeddings to the logits, and the links between them.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> graph = Graph(Architecture(n_layers=1, n_heads=2, n_kv_heads=2))
        >>> scene = Scene.of(Circuit.from_edges(graph, ["input->a0.h1<v>", "a0.h1->logits"]))
        >>> [node.name for row in scene.rows for node in row], [link.part for link in scene.links]
        (['input', 'a0.h1', 'logits'], ['v', 'logits'])
    """

    rows: tuple[tuple[Node, ...], ...]
    links: tuple[Link, ...]
    bundled: bool = False

    @staticmethod
    def of(circuit: Circuit, weights: Float[Tensor, "edge"] | None = None) -> Scene:
        """The scene of a circuit; ``weights`` go to the links."""
        bundled = len(circuit) > BUNDLED
        links = tuple(_links(circuit.graph, circuit.kept, circuit.effective.kept, weights, bundled))
        rows = tuple(tuple(row) for row in _rows(circuit.graph, links) if row)
        return Scene(rows, links, bundled)

    @staticmethod
    def by_span(circuit: Circuit, weights: Float[Tensor, "site"] | None = None) -> dict[str, Scene]:
        """A scene for each span with a kept edge, of the nodes that these join; names end in the span."""
        edges, bundled = circuit.sites.edges, len(circuit) > BUNDLED
        assert isinstance(edges, Spanned)
        tables = (edges.table(circuit.kept), edges.table(circuit.effective.kept))
        heavy = [None] * len(edges.all_spans) if weights is None else edges.table(weights)
        scenes = {}
        for span, kept, effective, own in zip(edges.all_spans, *tables, heavy, strict=True):
            links = tuple(_links(circuit.graph, kept, effective, own, bundled))
            used = {name for link in links for name in (link.writer, link.reader)}
            rows = ([node for node in row if node.name in used] for row in _rows(circuit.graph, links))
            placed = tuple(tuple(_at(node, span) for node in row) for row in rows if row)
            own_links = (replace(x, writer=f"{x.writer}@{span}", reader=f"{x.reader}@{span}") for x in links)
            scenes |= {span: Scene(placed, tuple(own_links), bundled)} if links else {}
        return scenes

    @property
    def nodes(self) -> Iterator[Node]:
        """All nodes, row by row."""
        return (node for row in self.rows for node in row)

    @property
    def levels(self) -> dict[str, int]:
        """The number of every node's row."""
        return {node.name: number for number, row in enumerate(self.rows) for node in row}


def _at(node: Node, span: str) -> Node:
    return replace(node, name=f"{node.name}@{span}", serves=tuple(f"{head}@{span}" for head in node.serves))


def _links(graph: Graph, kept: Tensor, effective: Tensor, weights: Tensor | None, bundled: bool) -> Iterator[Link]:
    groups: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for index in kept.nonzero().flatten().tolist():
        writer, _, reader = graph.name(index).partition("->")
        node, part = node_and_part(reader)
        groups.setdefault((writer, node) if bundled else (writer, node, part), []).append((part, index))
    for (writer, node, *_), edges in groups.items():
        parts, indices = zip(*edges, strict=True)
        yield Link(writer, node, parts, bool(effective[indices[0]]), _weight(weights, indices))


def _weight(weights: Tensor | None, indices: tuple[int, ...]) -> float | None:
    if weights is None:
        return None
    return float(weights[indices[0]] if len(indices) == 1 else weights[list(indices)].abs().sum())


def node_and_part(reader: str) -> tuple[str, str]:
    """The node that a reader belongs to, and which part of it the reader is.

    Example:
        >>> node_and_part("a5.kv1<k>"), node_and_part("m7"), node_and_part("logits")
        (('a5.kv1', 'k'), ('m7', 'mlp'), ('logits', 'logits'))
    """
    node, bracket, part = reader.partition("<")
    if bracket:
        return node, part.rstrip(">")
    return node, LOGITS if node == LOGITS else "mlp"


def _rows(graph: Graph, links: Iterable[Link]) -> Iterator[list[Node]]:
    shape = graph.architecture
    effective = {name for link in links if link.effective for name in (link.writer, link.reader)}
    used = {name for link in links for name in (link.writer, link.reader)}
    yield [Node(name, "embedding", -1, effective=name in effective) for name in graph.embeddings or ("embeddings",)]
    for layer in range(shape.n_layers):
        yield from _attention_rows(graph, layer, used, effective)
        yield [Node(name, "mlp", layer, effective=name in effective) for name in (f"m{layer}",) if name in used]
    yield [Node(LOGITS, "logits", shape.n_layers, effective=LOGITS in effective)]


def _attention_rows(graph: Graph, layer: int, used: set[str], effective: set[str]) -> Iterator[list[Node]]:
    if graph.convention.heads == "joined":
        ports = ("q", "k", "v") if graph.convention.qkv == "split" else ()
        yield [Node(name, "head", layer, ports, effective=name in effective) for name in (f"a{layer}",) if name in used]
        return
    shape, shared = graph.architecture, graph.n_kv_readers < graph.architecture.n_heads
    ports = ("q",) if shared else ("q", "k", "v")
    heads = [name for head in range(shape.n_heads) if (name := f"a{layer}.h{head}") in used]
    if shared:
        served = {f"a{layer}.kv{index}": _served(graph, layer, index) for index in range(graph.n_kv_readers)}
        yield [
            Node(name, "keyvalue", layer, ("k", "v"), tuple(h for h in heads if h in names), name in effective)
            for name, names in served.items()
            if name in used
        ]
    yield [Node(name, "head", layer, ports, effective=name in effective) for name in heads]


def _served(graph: Graph, layer: int, index: int) -> list[str]:
    group = graph.architecture.n_heads // graph.n_kv_readers
    return [f"a{layer}.h{head}" for head in range(index * group, (index + 1) * group)]
