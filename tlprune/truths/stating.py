"""From classes of nodes and the links between them to the edges of a graph, in its own convention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlprune.circuit import Circuit
from tlprune.graph import LOGITS, Architecture, Graph
from tlprune.grouping import whole_of

INPUT = "input"
Classes = Mapping[str, Sequence[str]]
# From the class of a writer and that of a reader to what is read: some of "qkv"; of MLPs and logits "".
Links = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Truth:
    """A set of edges that is taken as true, and where it comes from.

    Attributes:
        task: name of the task that it is of, as in ``tlprune.tasks.TASKS``.
        model: the model that it is of.
        source: who found it, and where it is described; or how it is known.
        convention: what counts as an edge there, and under which ablation it is stated.
        circuit: the edges, of a model or, for published ones, of a graph.
    """

    task: str
    model: str
    source: str
    convention: str
    circuit: Callable[[Any], Circuit]


@dataclass(frozen=True)
class Published:
    """The edges of a published circuit, for any graph of the shape that it is of.

    Attributes:
        name: of the truth.
        model: the model that it is of.
        architecture: its shape; a graph of another is refused.
        source: paper and section.
        convention: what counts as an edge there.
        classes: nodes by their role.
        links: which role sends to which, and through what. Every node is also a role of its own.
    """

    name: str
    model: str
    architecture: Architecture
    source: str
    convention: str
    classes: Classes
    links: Links

    @property
    def truth(self) -> Truth:
        """As an entry of ``tlprune.truths.TRUTHS``."""
        return Truth(self.name, self.model, self.source, self.convention, self.of)

    def of(self, model: Any) -> Circuit:
        """The edges in the graph of a model, or in a graph.

        Raises:
            ValueError: its shape is another.
        """
        graph = model if isinstance(model, Graph) else Graph.of(model)
        if graph.architecture != self.architecture:
            raise ValueError(
                f"The truth {self.name!r} is of {self.model}, {_shape(self.architecture)}, but this model has "
                f"{_shape(graph.architecture)}. Load that model, or find out what is true of yours."
            )
        stated = linked(Graph(self.architecture), self.classes, self.links)
        counts = {"edges": len(stated), "with_internal": len(stated) + len(_head_readers(stated))}
        told = {"source": self.source, "name": self.name, "of_model": self.model, "convention": self.convention}
        return Circuit.from_edges(graph, in_convention(stated, graph), provenance={**told, "counts": counts})


def linked(graph: Graph, classes: Classes, links: Links) -> list[str]:
    """The edges between nodes of linked classes, in graph order; classes link forwards only, as the graph does.

    Args:
        graph: with merged embeddings, and q, k and v apart.
        classes: nodes by class; a node may be in several.
        links: from a writer's and a reader's class to the parts of the reader: some of ``"qkv"``.

    Example:
        >>> graph = Graph(Architecture(2, 2, 2))
        >>> classes = {"first": ["a0.h0", "a0.h1"], "second": ["a1.h1"]}
        >>> linked(graph, classes, {("input", "first"): "v", ("first", "second"): "qk", ("second", "logits"): ""})
        ['input->a0.h0<v>', 'input->a0.h1<v>', 'a0.h0->a1.h1<q>', 'a0.h1->a1.h1<q>', 'a0.h0->a1.h1<k>',
         'a0.h1->a1.h1<k>', 'a1.h1->logits']
    """
    roles = {node: {node} for node in (*graph.writers, LOGITS)}
    for name, nodes in classes.items():
        for node in nodes:
            roles[node].add(name)
    return [edge for edge in graph.edges() if _is_linked(edge, roles, links)]


def _is_linked(edge: str, roles: Mapping[str, set[str]], links: Links) -> bool:
    writer, _, reader = edge.partition("->")
    node, _, part = reader.removesuffix(">").partition("<")
    return any(
        part in links[sender, receiver]
        for sender in roles[writer]
        for receiver in roles[node]
        if (sender, receiver) in links
    )


def in_convention(edges: Iterable[str], graph: Graph) -> list[str]:
    """Edges of merged embeddings with q, k and v apart, as the edges of another convention that carry the same.

    Example:
        >>> from tlprune.graph import Convention
        >>> graph = Graph(Architecture(1, 2, 2, position_embedding=True), Convention("separate", qkv="joined"))
        >>> in_convention(["input->a0.h1<q>", "input->a0.h1<v>", "a0.h1->logits"], graph)
        ['embed->a0.h1', 'pos_embed->a0.h1', 'a0.h1->logits']
    """
    joined = graph.convention.qkv == "joined"
    found = dict[str, None]()
    for edge in edges:
        writer, _, reader = (whole_of(graph, name) for name in edge.partition("->"))
        reader = reader.partition("<")[0] if joined else reader
        found |= dict.fromkeys(f"{name}->{reader}" for name in (graph.embeddings if writer == INPUT else (writer,)))
    return list(found)


def with_internal(circuit: Circuit) -> int:
    """How many edges it has where those from q, k and v into their own head count, as in ACDC's figures.

    Each q, k or v that a true edge leads to adds one.

    Example:
        >>> graph = Graph(Architecture(1, 2, 2))
        >>> with_internal(Circuit.from_edges(graph, ["input->a0.h1<k>", "input->a0.h1<v>", "a0.h1->logits"]))
        5
    """
    return len(circuit) + len(_head_readers(circuit.edges))


def _head_readers(edges: Iterable[str]) -> set[str]:
    return {reader for _, _, reader in (edge.partition("->") for edge in edges) if "<" in reader}


def _shape(architecture: Architecture) -> str:
    parts = f"{architecture.n_layers} layers of {architecture.n_heads} heads"
    if architecture.n_kv_heads != architecture.n_heads:
        parts += f" and {architecture.n_kv_heads} key/value heads"
    parts += " with MLPs" if architecture.has_mlp else " without MLPs"
    parts += " beside them" if architecture.parallel else ""
    parts += ", norms behind the sums" if architecture.post_norm else ""
    return parts + (", learned positions" if architecture.position_embedding else ", no position embedding in the sum")
