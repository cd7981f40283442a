"""Gates that the published code of Edge Pruning trained, and the circuits that it takes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.gates import HardConcrete
from tlprune.graph import Convention, Graph, Readers
from tlprune.interop.reading import architecture_of, load_tensors, reading, record
from tlprune.scores import Scores, first
from tlprune.selection.bisected import bisected
from tlprune.sites import Nodes, Sites

NAME = re.compile(
    r"(?:.*\.(?P<layer>\d+)\.(?:\w+\.)?)?(?:.*\.)?(?P<kind>(?:[qkv]|mlp|final)_read|(?:attn_|mlp_)?write|(?:token|pos)_write)"
    r"_log_alphas?"
)


@dataclass(frozen=True)
class EdgePruningGates:
    """What Edge Pruning's training of a model left behind.

    Attributes:
        scores: ``log_alpha`` of every edge, on the graph of the original: embeddings separate, or kept.
        nodes: ``log_alpha`` of every writer, whose gates multiply those of its edges.
        masks: the noise-free mask of every edge, in [0, 1].
        node_masks: that of every writer.
    """

    scores: Scores
    nodes: Scores
    masks: Float[Tensor, "edge"]
    node_masks: Float[Tensor, "writer"]

    @property
    def circuit(self) -> Circuit:
        """The circuit at the original's own thresholds, :meth:`at` without arguments."""
        return self.at()

    def at(
        self, *, edges: int | None = None, sparsity: float | None = None, node_sparsity: float | None = None
    ) -> Circuit:
        """The circuit that ``vis_fpt2.py`` and ``vis_fllama.py`` write, or another size of it.

        Masks above a threshold are kept, which is bisected so that ``sparsity`` of them are removed; so are writers,
        and edges from a removed writer are left out. What is kept counts as in the original: before that, and without
        the position embedding among writers.

        Args:
            edges: just so many edges, those of the highest ``log_alpha`` from kept writers; instead of ``sparsity``.
            sparsity: of edges; by default ``1 - mean(masks)``, as in the original.
            node_sparsity: of writers; by default likewise.

        Raises:
            ValueError: both ``edges`` and ``sparsity`` are given, or there are not so many edges from kept writers.
        """
        if edges is not None and sparsity is not None:
            raise ValueError(f"A circuit has one size but got {edges} edges and a sparsity of {sparsity}. Give one.")
        able, thresholds = self._kept_writers(node_sparsity)
        if edges is not None:
            return self._circuit(_best(self.scores, able, edges), thresholds)
        threshold = bisected(self.masks, sparsity)
        return self._circuit(able & (self.masks > threshold), {"edge": threshold, **thresholds})

    def _kept_writers(self, sparsity: float | None) -> tuple[Tensor, dict[str, float]]:
        """Which edges come from kept writers."""
        names = self.scores.graph.writers
        counted = self.node_masks[[name != "pos_embed" for name in names]]  # the original counts it by mistake
        threshold = bisected(counted, sparsity)
        kept = self.node_masks > threshold
        rows = [kept[: readers.width].repeat(len(readers.names)) for readers in self.scores.graph.readers]
        return torch.cat(rows), {"node": threshold}

    def _circuit(self, kept: Tensor, thresholds: Mapping[str, float]) -> Circuit:
        return Circuit(self.scores.sites, kept, {**self.scores.provenance, "thresholds": dict(thresholds)})


def from_edge_pruning_gates(source: str | Path | Mapping[str, Tensor], model: Any) -> EdgePruningGates:
    """Read the gates out of a model that Edge Pruning's code saved.

    They lie among the weights: in layer ``l`` ``h.l`` (GPT-2) or ``layers.l`` (Llama) ``q_read_log_alphas``,
    ``k_read_log_alphas`` and ``v_read_log_alphas``, ``(writer, head)``, ``mlp_read_log_alphas``, ``(writer,)``,
    ``attn_write_log_alphas`` and ``mlp_write_log_alphas``; ``final_read_log_alphas``; and with embedding nodes
    ``token_write_log_alpha`` and, beside position embeddings, ``pos_write_log_alpha``. Every tensor has rows for all
    writers, also for those behind its readers. These are no edges, but count where a tensor is hardened: its
    ``round(sum P(z = 0))`` smallest masks become 0. Masks are computed in float32.

    Args:
        source: the folder, one of its files (``.safetensors``, or ``.bin`` by ``torch.save``), or a state_dict.
        model: the model that was pruned, or its graph.

    Returns:
        Gates of edges and of writers; ``.circuit`` is the original's own, ``.at(edges=...)`` one of any size.

    Raises:
        ValueError: there is no such file, it has no gates, or they are of a model of another shape.

    Source: Bhaskar et al., NeurIPS 2024, princeton-nlp/Edge-Pruning.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(n_layers=1, n_heads=1, n_kv_heads=1), Convention("kept"))
        >>> gates = {f"h.0.{name}_read_log_alphas": torch.full((2, 1), 9.0) for name in "qkv"}
        >>> gates |= {f"h.0.{name}_log_alphas": torch.tensor([9.0]) for name in ("attn_write", "mlp_write")}
        >>> gates["h.0.mlp_read_log_alphas"] = torch.tensor([-9.0, 9.0])
        >>> gates["final_read_log_alphas"] = torch.tensor([9.0, 8.0])
        >>> found = from_edge_pruning_gates({f"transformer.{name}": value for name, value in gates.items()}, graph)
        >>> found.circuit.edges, found.at(edges=1).edges
        (['a0.h0->logits', 'm0->logits'], ['a0.h0->logits'])
    """
    gates, provenance = _gates(source)
    embeddings = "separate" if ("token_write", None) in gates else "kept"
    graph = Graph(architecture_of(model), Convention(embeddings))
    _check_shapes(graph, gates)
    edges, nodes = _in_order(graph, gates)
    masks = {place: HardConcrete().harden(values) for place, values in gates.items()}
    return EdgePruningGates(
        Scores(Sites((graph,)), edges, provenance),
        Scores(Sites((Nodes("nodes", graph.writers),)), nodes, provenance),
        *_in_order(graph, masks),
    )


Gates = dict[tuple[str, int | None], Tensor]  # by kind, such as "q_read", and layer


def _gates(source: str | Path | Mapping[str, Tensor]) -> tuple[Gates, dict[str, Any]]:
    """Gates by kind and layer, and which file they are of."""
    if isinstance(source, Mapping):
        tensors, provenance = source, {"file": {"format": "Edge Pruning gates"}}
    else:
        files, tensors = list(_files(Path(source))), dict[str, Tensor]()
        for file in files:
            tensors |= reading(file, "a model that Edge Pruning saved", _load)
        provenance = record(files[0], "Edge Pruning gates")
    known = [(NAME.fullmatch(name), values) for name, values in tensors.items() if "log_alpha" in name]
    found = {
        (_kind(match["kind"]), None if match["layer"] is None else int(match["layer"])): values.detach().cpu().float()
        for match, values in known
        if match is not None
    }
    if not found:
        raise ValueError(
            f"Gates of Edge Pruning are called ..._log_alphas but none of {len(tensors):,} tensors is. Give the folder "
            "that its training wrote, with the whole model."
        )
    return found, provenance


def _kind(name: str) -> str:
    return "attn_write" if name == "write" else name  # as in the original's model of Tracr


def _files(path: Path) -> Iterator[Path]:
    """The files of the weights, which may be several."""
    if not path.is_dir():
        yield path
        return
    found = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    if not found:
        raise ValueError(f"{path} needs a model's weights but has no .safetensors or .bin. Give the folder of one.")
    yield from found


def _load(path: Path) -> dict[str, Tensor]:
    """The gates of one file."""
    if path.suffix != ".safetensors":
        data = load_tensors(path)
        if not isinstance(data, Mapping):
            raise ValueError("it holds something else than tensors by name")
        return {name: value for name, value in data.items() if isinstance(value, Tensor)}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if "log_alpha" in name]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"it is no whole file of tensors ({error})") from None


def _check_shapes(graph: Graph, gates: Gates) -> None:
    expected = dict(_shapes(graph))
    for place, shape in expected.items():
        values = gates.get(place)
        if values is None or tuple(values.shape) not in (shape, shape[:-1] if shape[-1] == 1 else shape):
            name = place[0] if place[1] is None else f"{place[0]} of layer {place[1]}"
            has = "is missing" if values is None else f"has shape {tuple(values.shape)}"
            raise ValueError(
                f"Gates of this model ({graph}) need {name} of shape {shape} but it {has}. Give the model that was "
                "pruned, whose blocks have attention before MLP."
            )
    if unknown := set(gates) - set(expected):
        kind, layer = sorted(unknown, key=str)[0]
        raise ValueError(
            f"Gates of this model ({graph}) have {kind} of layer {layer} beside those that are needed, so they are of "
            "a larger model. Give the model that was pruned."
        )


def _shapes(graph: Graph) -> Iterator[tuple[tuple[str, int | None], tuple[int, ...]]]:
    shape, writers = graph.architecture, len(graph.writers)
    for layer in range(shape.n_layers):
        yield from ((("q_read", layer), (writers, shape.n_heads)), (("attn_write", layer), (shape.n_heads,)))
        yield from (((f"{letter}_read", layer), (writers, shape.n_kv_heads)) for letter in "kv")
        if shape.has_mlp:
            yield from ((("mlp_read", layer), (writers,)), (("mlp_write", layer), (1,)))
    yield ("final_read", None), (writers,)
    yield from (((f"{name}_write", None), (1,)) for name in ("token", "pos")[: len(graph.embeddings)])


def _in_order(graph: Graph, gates: Gates) -> tuple[Float[Tensor, "edge"], Float[Tensor, "writer"]]:
    """Values of edges and of writers in the order of the graph."""
    edges = torch.cat([_read(readers, gates).flatten() for readers in graph.readers])
    nodes = [gates[f"{name}_write", None] for name in ("token", "pos")[: len(graph.embeddings)]]
    for layer in range(graph.architecture.n_layers):
        nodes.append(gates["attn_write", layer])
        nodes += [gates["mlp_write", layer]] if graph.architecture.has_mlp else []
    return edges, torch.cat([value.flatten() for value in nodes])


def _read(readers: Readers, gates: Gates) -> Float[Tensor, "reader writer"]:
    if readers.kind == "attention":
        parts = [gates[f"{letter}_read", readers.layer][: readers.width].T for letter in "qkv"]
        return torch.cat(parts)
    place = ("mlp_read", readers.layer) if readers.kind == "mlp" else ("final_read", None)
    return gates[place][None, : readers.width]


def _best(scores: Scores, able: Tensor, count: int) -> Tensor:
    if not 0 <= count <= int(able.sum()):
        raise ValueError(
            f"The number of edges must lie between 0 and {int(able.sum()):,}, those of kept writers, but is {count:,}. "
            "Ask for fewer, or keep all writers: node_sparsity=0."
        )
    return first(scores.values.masked_fill(~able, -torch.inf), count)
