"""What a file of MIB's circuit track holds, in its two formats; these are what EAP-IG's graphs are saved as."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from tlprune.files import write_whole
from tlprune.graph import LOGITS, Graph
from tlprune.interop.reading import load_json, load_tensors, reading

SHAPE = ("n_layers", "n_heads", "parallel_attn_mlp", "d_model")
KEYS = {
    ".json": ("cfg", "nodes", "edges"),
    ".pt": ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph"),
}
NEURONS = ("neurons", "neurons_scores", "neurons_in_graph")


@dataclass(frozen=True)
class Content:
    """The numbers of a file, in the order of a graph.

    Attributes:
        shape: ``n_layers``, ``n_heads``, ``parallel_attn_mlp`` and ``d_model`` of the model.
        edges_in: which edges are in the circuit.
        nodes_in: which writers are.
        edge_scores: a score for every edge, where the file has them.
        node_scores: a score for every writer, where the file has them.
    """

    shape: Mapping[str, Any]
    edges_in: Bool[Tensor, "edge"]
    nodes_in: Bool[Tensor, "writer"]
    edge_scores: Float[Tensor, "edge"] | None = None
    node_scores: Float[Tensor, "writer"] | None = None


def write(content: Content, graph: Graph, path: Path) -> None:
    """Write a file in the format of its ending."""
    _check_ending(path)
    write_whole(path, _as_json(content, graph) if path.suffix == ".json" else _as_pt(content, graph))


def read(path: Path) -> dict[str, Any]:
    """What the file says, as it says it; no code in it is run."""
    _check_ending(path)
    data = reading(path, "a file of MIB's circuit track", load_json if path.suffix == ".json" else load_tensors)
    missing = [key for key in KEYS[path.suffix] if not isinstance(data, dict) or key not in data]
    if missing or not isinstance(data["cfg"], dict) or not {*SHAPE} <= {*data["cfg"]}:
        wanted = ", ".join(KEYS[path.suffix])
        raise ValueError(f"{path} needs {wanted}, and in cfg {', '.join(SHAPE)}. Give a file of MIB's circuit track.")
    return data


def content_of(data: Mapping[str, Any], graph: Graph, path: Path) -> Content:
    """The numbers, in the order of the graph.

    Raises:
        ValueError: the file has single neurons, names what the graph does not have, or lacks some of its scores.
    """
    return _from_json(data, graph, path) if path.suffix == ".json" else _from_pt(data, graph, path)


def edge_names(graph: Graph) -> Iterator[str]:
    """Names of all edges in the order of the graph."""
    for readers in graph.readers:
        yield from (f"{writer}->{name}" for name in readers.names for writer in graph.writers[: readers.width])


def _check_ending(path: Path) -> None:
    if path.suffix not in KEYS:
        raise ValueError(f"Files of MIB's circuit track end in .json or .pt but this is {path.name!r}. Rename it.")


# ---- JSON: a value under each name


def _as_json(content: Content, graph: Graph) -> str:
    nodes = {name: {"in_graph": inside} for name, inside in zip(graph.writers, content.nodes_in.tolist(), strict=True)}
    if content.node_scores is not None:
        for name, score in zip(graph.writers, content.node_scores.tolist(), strict=True):
            nodes[name]["score"] = score
    scores = torch.zeros(len(graph)) if content.edge_scores is None else content.edge_scores
    values = zip(edge_names(graph), scores.tolist(), content.edges_in.tolist(), strict=True)
    edges = {name: {"score": score, "in_graph": inside} for name, score, inside in values}
    return json.dumps({"cfg": {**content.shape}, "nodes": {**nodes, LOGITS: {"in_graph": True}}, "edges": edges})


def _from_json(data: Mapping[str, Any], graph: Graph, path: Path) -> Content:
    nodes = {name: value for name, value in data["nodes"].items() if name != LOGITS}
    if any(key in value for value in nodes.values() for key in NEURONS):
        raise _of_neurons(path)
    edges, names = data["edges"], list(edge_names(graph))
    for kind, given, known in (("edges", edges, names), ("nodes", nodes, graph.writers)):
        unknown = [name for name in given if name not in {*known}] if not {*given} <= {*known} else []
        if unknown:
            raise ValueError(
                f"{path} has {len(unknown):,} {kind} that this model does not have, such as {unknown[0]!r}. Give the "
                "model that it was made for."
            )
    return Content(
        shape=data["cfg"],
        edges_in=torch.tensor([bool(edges.get(name, {}).get("in_graph", False)) for name in names]),
        nodes_in=torch.tensor([bool(nodes.get(name, {}).get("in_graph", False)) for name in graph.writers]),
        edge_scores=_scores(edges, names, path),
        node_scores=_scores(nodes, graph.writers, path),
    )


def _scores(values: Mapping[str, Mapping[str, Any]], names: Any, path: Path) -> Float[Tensor, "name"] | None:
    """The scores, if the file has any; it must then have all of them."""
    if not any("score" in value for value in values.values()):
        return None
    without = [name for name in names if "score" not in values.get(name, {})]
    if without:
        raise ValueError(
            f"{path} has scores, but none for {len(without):,} of {len(names):,}, such as {without[0]!r}. Give each "
            "a score."
        )
    return torch.tensor([float(values[name]["score"]) for name in names])


def _of_neurons(path: Path) -> ValueError:
    return ValueError(
        f"{path} tells single dimensions of a node's output apart, which are no sites here. Give a file of edges or "
        "nodes."
    )


# ---- tensors: a matrix from writers to readers


def _as_pt(content: Content, graph: Graph) -> bytes:
    scores = torch.zeros(len(graph)) if content.edge_scores is None else content.edge_scores
    data = {
        "cfg": {**content.shape},
        "src_nodes": list(graph.writers),
        "dst_nodes": _reader_names(graph),
        "edges_scores": _matrix(scores, graph),
        "edges_in_graph": _matrix(content.edges_in, graph),
        "nodes_in_graph": content.nodes_in,
    }
    if content.node_scores is not None:
        data["nodes_scores"] = content.node_scores
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


def _from_pt(data: Mapping[str, Any], graph: Graph, path: Path) -> Content:
    if any(data.get(key) is not None for key in NEURONS):
        raise _of_neurons(path)
    if list(data["src_nodes"]) != list(graph.writers) or list(data["dst_nodes"]) != _reader_names(graph):
        raise ValueError(
            f"{path} needs the {len(graph.writers)} writers and {len(_reader_names(graph))} readers of this model in "
            "their order but names others. Give the model that it was made for."
        )
    shape = (len(graph.writers), len(_reader_names(graph)))
    wrong = [key for key in ("edges_scores", "edges_in_graph") if tuple(data[key].shape) != shape]
    if wrong or tuple(data["nodes_in_graph"].shape) != shape[:1]:
        raise ValueError(f"{path} needs {shape[0]} x {shape[1]} edges and {shape[0]} nodes. Save it again, whole.")
    nodes = data.get("nodes_scores")
    return Content(
        shape=data["cfg"],
        edges_in=_flat(data["edges_in_graph"], graph).bool(),
        nodes_in=data["nodes_in_graph"].bool(),
        edge_scores=_flat(data["edges_scores"], graph).float(),
        node_scores=None if nodes is None else nodes.float(),
    )


def _reader_names(graph: Graph) -> list[str]:
    return [name for readers in graph.readers for name in readers.names]


def _matrix(values: Shaped[Tensor, "edge"], graph: Graph) -> Shaped[Tensor, "writer reader"]:
    """Zero where there is no edge."""
    blocks = [readers.block(values).T for readers in graph.readers]
    return torch.cat([torch.nn.functional.pad(b, (0, 0, 0, len(graph.writers) - len(b))) for b in blocks], dim=1)


def _flat(matrix: Shaped[Tensor, "writer reader"], graph: Graph) -> Shaped[Tensor, "edge"]:
    columns = matrix.split([len(readers.names) for readers in graph.readers], dim=1)
    pairs = zip(graph.readers, columns, strict=True)
    return torch.cat([block[: readers.width].T.flatten() for readers, block in pairs])
