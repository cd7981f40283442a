"""A circuit: the edges that a method kept, with everything needed to read, check and reuse it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.graph import Graph

FORMAT = "tlprune-circuit"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of edges of one graph.

    Attributes:
        graph: the graph that the edges belong to.
        kept: which of its edges are in the circuit, ``(edge,)``.
        provenance: method and its fields, task and model fingerprints, ablation, seed, versions; plain data.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(n_layers=1, n_heads=2, n_kv_heads=2))
        >>> circuit = Circuit.from_edges(graph, ["input->a0.h1<v>", "a0.h1->logits", "input->m0"])
        >>> len(circuit), circuit.n_effective, "a0.h1->logits" in circuit
        (3, 2, True)
    """

    graph: Graph
    kept: Bool[Tensor, "edge"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kept.shape != (self.graph.n_edges,):
            raise ValueError(
                f"A circuit of this graph needs a mask of {self.graph.n_edges:,} edges but got shape "
                f"{tuple(self.kept.shape)}. Build it from the same graph."
            )

    @staticmethod
    def from_edges(model: Any, edges: Iterable[str], *, provenance: Mapping[str, Any] | None = None) -> Circuit:
        """A circuit stated by hand.

        Args:
            model: a TransformerLens model, or a :class:`~tlprune.graph.Graph` for another convention.
            edges: edge names such as ``"a9.h9->logits"``.
            provenance: where the edges come from.

        Raises:
            ValueError: a name is malformed or not an edge of the graph.
        """
        graph = model if isinstance(model, Graph) else Graph.of(model)
        kept = torch.zeros(graph.n_edges, dtype=torch.bool)
        for edge in edges:
            kept[graph.index(edge)] = True
        return Circuit(graph, kept, provenance or {})

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __contains__(self, edge: str) -> bool:
        return bool(self.kept[self.graph.index(edge)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.graph == other.graph and torch.equal(self.kept, other.kept)

    def __hash__(self) -> int:
        return hash((self.graph, self.kept.numpy().tobytes()))

    def __repr__(self) -> str:
        return (
            f"Circuit({edges_text(len(self), self.graph.n_edges)}, {self.n_effective:,} effective; "
            f"{self.graph.convention})"
        )

    @cached_property
    def edges(self) -> list[str]:
        """Names of its edges in graph order."""
        return self.graph.edges(self.kept)

    @cached_property
    def effective(self) -> Circuit:
        """The edges on some path from an embedding to the logits."""
        return Circuit(self.graph, self.graph.effective(self.kept), self.provenance)

    @property
    def n_effective(self) -> int:
        return len(self.effective)

    @property
    def complement(self) -> Circuit:
        """The edges that are not in this circuit."""
        return Circuit(self.graph, ~self.kept)

    def iou(self, other: Circuit) -> float:
        """Intersection over union with another circuit of the same graph; 1 for two empty circuits.

        Raises:
            ValueError: the graphs differ in architecture or convention.
        """
        if self.graph != other.graph:
            raise ValueError(
                f"Circuits need one graph to be compared but have {self.graph} and {other.graph}. "
                "Find both with the same model and convention."
            )
        union = int((self.kept | other.kept).sum())
        return int((self.kept & other.kept).sum()) / union if union else 1.0

    def save(self, path: str | Path) -> None:
        """Write the circuit as JSON; an existing file is replaced only once the new one is whole."""
        data = {"format": FORMAT, "version": VERSION, **self.graph.as_dict()}
        data |= {"n_edges": len(self), "n_effective": self.n_effective, "total": self.graph.n_edges}
        data |= {"edges": self.edges, "provenance": dict(self.provenance)}
        write_whole(Path(path), json.dumps(data, indent=1) + "\n")

    @staticmethod
    def load(path: str | Path) -> Circuit:
        """Read a circuit that :meth:`save` wrote.

        Raises:
            ValueError: the file is missing, not a circuit, of another version, or its counts do not agree.
        """
        data = _read(Path(path))
        try:
            circuit = Circuit.from_edges(Graph.from_dict(data), data["edges"], provenance=data["provenance"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a whole circuit ({error}). Save it again with circuit.save().") from error
        if len(circuit) != data.get("n_edges") or circuit.graph.n_edges != data.get("total"):
            raise ValueError(
                f"{path} promises {data.get('n_edges')} of {data.get('total')} edges but holds {len(circuit)} of "
                f"{circuit.graph.n_edges}. The file was cut or edited: save it again."
            )
        return circuit


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(
            f"Cannot read the circuit {path}: {error.strerror}. Give the path of a circuit.json."
        ) from None
    except ValueError:
        raise ValueError(f"{path} is not a circuit: it is not JSON. Give a file that circuit.save() wrote.") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} is JSON but not a tlprune circuit. Give a file that circuit.save() wrote.")
    if data.get("version") != VERSION:
        raise ValueError(f"{path} has format version {data.get('version')} but this reads {VERSION}. Save it again.")
    return data


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@dataclass(frozen=True, eq=False)
class Scores:
    """A number for every edge of a graph; higher means the edge helps more.

    Attributes:
        graph: the graph that the edges belong to.
        values: one score per edge, ``(edge,)``.
        provenance: how the scores were made; plain data.
    """

    graph: Graph
    values: Float[Tensor, "edge"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def top(self, count: int) -> Circuit:
        """The ``count`` edges of the highest score; ties go to the edge that comes first in the graph."""
        check_edge_count(count, self.graph)
        order = torch.argsort(self.values.detach().cpu(), descending=True, stable=True)
        kept = torch.zeros(self.graph.n_edges, dtype=torch.bool)
        kept[order[:count]] = True
        return Circuit(self.graph, kept, self.provenance)


def edges_text(kept: int, total: int) -> str:
    """How counts are written everywhere: ``170 of 1,701 edges``."""
    return f"{kept:,} of {total:,} edges"


def check_edge_count(count: int, graph: Graph) -> None:
    """Raise a ValueError unless ``count`` edges can be kept of ``graph``."""
    if not 0 <= count <= graph.n_edges:
        raise ValueError(
            f"The number of edges must lie between 0 and {graph.n_edges:,} but is {count:,}. "
            "Choose a number within this graph."
        )
