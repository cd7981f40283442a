"""What a drawing shows: the nodes that a circuit uses, in rows from the embeddings up, and the links between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tlprune.drawing.contents import OWNERS, Contents, Owner
from tlprune.graph import LOGITS, Graph

BUNDLED = 2000
"""Circuits of more edges than this show one curve per pair of nodes."""

SEVERAL, IDLE = "several", "idle"
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
        owner: of two circuits, which has it; ``None`` in a drawing of one.
    """

    writer: str
    reader: str
    parts: tuple[str, ...]
    effective: bool
    weight: float | None = None
    owner: Owner | None = None

    @property
    def part(self) -> str:
        """The part that decides its port, and its colour in a drawing of one circuit."""
        return self.parts[0] if len(self.parts) == 1 else SEVERAL

    @property
    def look(self) -> str:
        """What decides its colour: whose it is, or what it enters, or that it is not effective."""
        return self.owner or (self.part if self.effective else IDLE)

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
        >>> from tlprune.circuit import Circuit
        >>> circuit = Circuit.from_edges(graph, ["input->a0.h1<v>", "a0.h1->logits"])
        >>> scene = Scene.of(Contents.of(circuit))
        >>> [node.name for row in scene.rows for node in row], [link.part for link in scene.links]
        (['input', 'a0.h1', 'logits'], ['v', 'logits'])
    """

    rows: tuple[tuple[Node, ...], ...]
    links: tuple[Link, ...]
    bundled: bool = False

    @staticmethod
    def of(contents: Contents, *, bundled: bool | None = None) -> Scene:
        """The scene of edges that do not differ by span.

        Args:
            contents: what to show.
            bundled: whether one curve stands for all edges between two nodes; by default above 2,000 edges.
        """
        bundled = len(contents) > BUNDLED if bundled is None else bundled
        links = tuple(_links(contents, bundled))
        rows = tuple(tuple(row) for row in _rows(contents.graph, links) if row)
        return Scene(rows, links, bundled)

    @staticmethod
    def by_span(contents: Contents) -> dict[str, Scene]:
        """A scene for each span with a kept edge, of the nodes that these join; names end in the span."""
        scenes = {}
        for span, own in contents.by_span().items():
            whole = Scene.of(own, bundled=len(contents) > BUNDLED)
            if whole.links:
                scenes[span] = whole._at(span)
        return scenes

    def _at(self, span: str) -> Scene:
        used = {name for link in self.links for name in (link.writer, link.reader)}
        rows = ([node for node in row if node.name in used] for row in self.rows)
        placed = tuple(tuple(_at(node, span) for node in row) for row in rows if row)
        links = (replace(x, writer=f"{x.writer}@{span}", reader=f"{x.reader}@{span}") for x in self.links)
        return Scene(placed, tuple(links), self.bundled)

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


def _links(contents: Contents, bundled: bool) -> Iterator[Link]:
    groups: dict[tuple[str | None, ...], list[tuple[str, int]]] = {}
    for index in contents.kept.nonzero().flatten().tolist():
        writer, _, reader = contents.graph.name(index).partition("->")
        node, part = node_and_part(reader)
        key = (writer, node, _owner(contents, index), None if bundled else part)
        groups.setdefault(key, []).append((part, index))
    for (writer, node, *_), edges in groups.items():
        parts, indices = zip(*edges, strict=True)
        effective = bool(contents.effective[indices[0]])
        assert writer is not None and node is not None
        yield Link(writer, node, parts, effective, _weight(contents, indices), _owner(contents, indices[0]))


def _owner(contents: Contents, index: int) -> Owner | None:
    return None if contents.owners is None else OWNERS[int(contents.owners[index])]


def _weight(contents: Contents, indices: tuple[int, ...]) -> float | None:
    if (weights := contents.weights) is None:
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
