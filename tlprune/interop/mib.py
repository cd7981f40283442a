"""Circuits and scores in the files of MIB's circuit track, which are those of the package EAP-IG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.conventions import convert
from tlprune.graph import Graph
from tlprune.inducing import induced
from tlprune.interop.mib_content import Content, content_of, read, write
from tlprune.interop.mib_models import Shape
from tlprune.interop.reading import record
from tlprune.scores import Scores
from tlprune.sites import Nodes, Sites


@dataclass(frozen=True)
class MibFile:
    """What a file of MIB's circuit track says.

    Attributes:
        circuit: the edges that are in.
        scores: a score for every edge; ``None`` where the file has none.
        nodes: the writers that are in.
        node_scores: a score for every writer, infinite where the file has NaN, which MIB always keeps; ``None`` where
            the file has none.
    """

    circuit: Circuit
    scores: Scores | None
    nodes: Circuit
    node_scores: Scores | None


def to_mib(found: Circuit | Scores, path: str | Path, *, model: Any) -> None:
    """Write a circuit or scores as MIB's circuit track and the package EAP-IG read them.

    MIB counts one embedding node, and k and v for each query head; other conventions are converted
    (:func:`~tlprune.convert`). Scores keep their sign: in both, positive means that the edge helps, because EAP-IG's
    scores are those of a loss, ``(x~_w - x_w) . dL/dx_r``.

    ``.json`` holds ``{"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"}, "nodes": {name: {"in_graph"}},
    "edges": {name: {"score", "in_graph"}}}``. ``.pt`` holds by ``torch.save`` the same ``cfg``, lists ``src_nodes`` and
    ``dst_nodes``, and tensors ``edges_scores`` and ``edges_in_graph``, ``(writer, reader)``, and ``nodes_in_graph``,
    ``(writer,)``. Node scores stand under ``"score"`` of a node, or ``nodes_scores``.

    Of scores nothing is in the graph. Of a circuit of edges, nodes with kept edges on both sides are in it; of a
    circuit of nodes, all edges between kept nodes. Edges of a circuit have the scores 1 and 0, because EAP-IG's reader
    asks for some.

    Args:
        found: a circuit or scores of edges, or of all nodes (``tp.nodes(model)``).
        path: a ``.json`` or ``.pt`` file.
        model: the model that it is of, whose shape the file states; or MIB's name of one: ``"gpt2"``, ``"qwen2.5"``,
            ``"gemma2"``, ``"llama3"``.

    Raises:
        ValueError: the sites are of other kinds, differ by span or are of another model, the model has no MLPs or is an
            encoder, edges that become one differ, or the file has another ending.

    Example:
        >>> import tempfile
        >>> import tlprune as tp
        >>> model = tp.planted("copy").model
        >>> circuit = tp.Circuit.from_edges(model, ["input->a0.h1<v>", "a0.h1->logits"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_mib(circuit, Path(folder, "copy.json"), model=model)
        ...     again = from_mib(Path(folder, "copy.json"), model)
        >>> again.circuit == circuit, again.nodes.names
        (True, ['input', 'a0.h1'])
    """
    shape = Shape.of(model)
    write(_content(found, shape), shape.graph, Path(path))


def from_mib(path: str | Path, model: Any) -> MibFile:
    """Read a circuit or scores of MIB's circuit track or of EAP-IG; the formats are those of :func:`to_mib`.

    Scores keep their sign: positive helps. EAP-IG itself takes circuits by absolute value unless told otherwise:
    ``from_mib(...).scores.absolute.top(n)``. No code in the file is run.

    Args:
        path: a ``.json`` or ``.pt`` file.
        model: the model that it is of, or MIB's name of it.

    Returns:
        Circuit and scores on MIB's graph, which has one embedding node, and k and v for each query head.

    Raises:
        ValueError: the file is missing, cut, of another format, of a model of another shape, or of single neurons.
    """
    path, shape = Path(path), Shape.of(model)
    data, graph = read(path), shape.graph
    differing = [key for key, value in shape.cfg.items() if data["cfg"][key] != value]
    if differing:
        lists = [", ".join(f"{key} {cfg[key]}" for key in differing) for cfg in (data["cfg"], shape.cfg)]
        raise ValueError(
            f"{path} is of a model with {lists[0]} but this one has {lists[1]}. Give the model that it is of."
        )
    try:
        content = content_of(data, graph, path)
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not laid out as MIB's files are ({error!r}). Save it again.") from error
    edges, nodes, told = Sites((graph,)), Sites((Nodes("nodes", graph.writers),)), record(path, "MIB")
    return MibFile(
        circuit=Circuit(edges, content.edges_in, told),
        scores=None if content.edge_scores is None else Scores(edges, content.edge_scores, told),
        nodes=Circuit(nodes, content.nodes_in, told),
        node_scores=None if content.node_scores is None else Scores(nodes, _always_kept(content.node_scores), told),
    )


def _always_kept(scores: Float[Tensor, "writer"]) -> Float[Tensor, "writer"]:
    return torch.where(scores.isnan(), torch.inf, scores)


# ---- what is written


def _content(found: Circuit | Scores, shape: Shape) -> Content:
    if found.sites.kinds not in (("edges",), ("nodes",)) or found.sites.spans:
        raise ValueError(
            f"A file of MIB holds edges, or nodes, at all positions alike, but these sites are {found.sites}"
            f"{' by span' * bool(found.sites.spans)}. Give a circuit or scores of one of these kinds."
        )
    graph = shape.graph
    if found.sites.kinds == ("edges",):
        return _of_edges(on_graph(found, graph), shape)
    if found.sites != Sites((Nodes("nodes", graph.writers),)):
        raise ValueError(
            f"A file of MIB holds all {len(graph.writers)} nodes of its model but these are {len(found.sites)} others. "
            "Use tp.nodes(model) of the model that is given."
        )
    return _of_nodes(found, shape)


@overload
def on_graph(found: Circuit, graph: Graph) -> Circuit: ...
@overload
def on_graph(found: Circuit | Scores, graph: Graph) -> Circuit | Scores: ...
def on_graph(found: Circuit | Scores, graph: Graph) -> Circuit | Scores:
    """The circuit or scores under the convention of a graph of the same model."""
    own = found.graph.architecture
    if own != graph.architecture:
        raise ValueError(f"The sites are of a model of {own} but the model given is {graph.architecture}. Give theirs.")
    return convert(found, graph.convention)


def _of_edges(found: Circuit | Scores, shape: Shape) -> Content:
    graph = found.graph
    if isinstance(found, Scores):
        nothing = torch.zeros(len(graph), dtype=torch.bool)
        return Content(shape.cfg, nothing, torch.zeros(len(graph.writers), dtype=torch.bool), found.values.float())
    return Content(shape.cfg, found.kept, _connected(graph, found.kept), found.kept.float())


def _of_nodes(found: Circuit | Scores, shape: Shape) -> Content:
    graph = shape.graph
    if isinstance(found, Scores):
        nothing = torch.zeros(len(graph), dtype=torch.bool)
        return Content(shape.cfg, nothing, torch.zeros_like(found.values, dtype=torch.bool), None, found.values.float())
    between = induced(found, graph).kept
    return Content(shape.cfg, between, found.kept, between.float())


def _connected(graph: Graph, kept: Bool[Tensor, "edge"]) -> Bool[Tensor, "writer"]:
    """Writers with a kept edge into them and one from them; the input needs none into it."""
    reads, writes = {*graph.embeddings}, torch.zeros(len(graph.writers), dtype=torch.bool)
    for readers in graph.readers:
        block = readers.block(kept)
        writes[: readers.width] |= block.any(0)
        reads |= {_node_of(name) for name, read in zip(readers.names, block.any(1).tolist(), strict=True) if read}
    return writes & torch.tensor([name in reads for name in graph.writers])


def _node_of(reader: str) -> str:
    """The node that a reader is of: ``a0.h1`` of ``a0.h1<q>``."""
    return reader.partition("<")[0]
