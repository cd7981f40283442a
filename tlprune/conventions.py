"""From one counting convention to another: the same circuit or scores, on the edges that the other one counts."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Literal, get_args, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.graph import Convention, Graph, Readers
from tlprune.grouping import groups, of_heads
from tlprune.scores import Scores
from tlprune.sites import Sites
from tlprune.spans import Group, Spanned

Reduce = Literal["mean", "sum", "max", "min"]
ALWAYS = -1  # the place of an edge from an embedding that is always there and not counted


@overload
def convert(found: Circuit, convention: Convention, *, reduce: Reduce | None = None) -> Circuit: ...
@overload
def convert(found: Scores, convention: Convention, *, reduce: Reduce | None = None) -> Scores: ...
@overload
def convert(found: Circuit | Scores, convention: Convention, *, reduce: Reduce | None = None) -> Circuit | Scores: ...
def convert(found: Circuit | Scores, convention: Convention, *, reduce: Reduce | None = None) -> Circuit | Scores:
    """A circuit or scores under another convention, on the same model.

    Where the other convention tells more edges apart, each gets a copy of the value: an edge into a key/value head
    becomes one for each of its query heads, an edge into a joined head one for each of q, k and v, an edge from or into
    a whole attention layer one for each of its heads, an edge from ``input`` one from each embedding. A circuit means
    the same then. Where it tells fewer apart, the copies become
    one, and must be equal unless ``reduce`` says which value they get. Embeddings that are ``"kept"`` have no edges:
    they are all in the circuit, and a circuit without one of them has no form there.

    Args:
        found: of edges, or of edges beside others, which stay.
        convention: what counts as an edge in the result.
        reduce: how copies that may differ become one. Of a circuit ``"max"`` keeps an edge that any copy keeps,
            ``"min"`` one that all keep. Of scores also ``"mean"`` and ``"sum"``: under gradients the score of a shared
            k or v is the sum of those of its query heads, and that of a layer's edge the sum of those of its heads.

    Returns:
        What was given, on the other graph; ``provenance["converted"]`` tells from what to what.

    Raises:
        ValueError: there are no edges, copies differ and ``reduce`` does not say what to do, a circuit is to be
            averaged, or always-kept embeddings stand against a circuit without them, or against scores.

    Example:
        >>> from tlprune.graph import Architecture
        >>> grouped = Graph(Architecture(n_layers=1, n_heads=4, n_kv_heads=2))
        >>> shared = Circuit.from_edges(grouped, ["input->a0.kv1<v>", "a0.h3->logits"])
        >>> apart = convert(shared, Convention(kv="per_query_head"))
        >>> apart.edges
        ['input->a0.h2<v>', 'input->a0.h3<v>', 'a0.h3->logits']
        >>> convert(apart, Convention()) == shared
        True
    """
    _check_reduce(found, reduce)
    move = Move(found.graph, Graph(found.graph.architecture, convention), reduce)
    sites = _sites(found.sites, move.target)
    told = {"from": str(found.graph.convention), "to": str(convention), "reduce": reduce}
    provenance = {**found.provenance, "convention": asdict(convention), "converted": told}
    if isinstance(found, Circuit):
        move.check_circuit(found)
        return Circuit(sites, _moved(found.sites, found.kept.float(), move) > 0, provenance)
    move.check_scores()
    samples = None if found.samples is None else torch.stack([_moved(found.sites, one, move) for one in found.samples])
    return Scores(sites, _moved(found.sites, found.values, move), provenance, samples)


def _sites(sites: Sites, target: Graph) -> Sites:
    """The same sites with the edges of another graph."""
    edges: Group = Spanned(target, sites.spans) if isinstance(sites.group("edges"), Spanned) else target
    return Sites(tuple(edges if group.kind == "edges" else group for group in sites.groups))


def _moved(sites: Sites, values: Float[Tensor, "site"], move: Move) -> Float[Tensor, "other"]:
    part = sites.part("edges")
    rows = [move(row) for row in values[part].unflatten(0, (-1, len(move.graph)))]
    return torch.cat([values[: part.start], *rows, values[part.stop :]])


def _check_reduce(found: Circuit | Scores, reduce: str | None) -> None:
    allowed = ("max", "min") if isinstance(found, Circuit) else get_args(Reduce)
    if reduce is not None and reduce not in allowed:
        raise ValueError(
            f"Copies in {'a circuit' if isinstance(found, Circuit) else 'scores'} can be reduced by "
            f"{', '.join(allowed)} but {reduce!r} was asked for. Choose one of these."
        )


class Move:
    """Which edges of one graph become which of another of the same model.

    Attributes:
        graph: where values are.
        target: where they go.
        reduce: what several that become one give.
        source: numbers of edges in ``graph``, each with every edge that it becomes, once; -1 for one not counted there.
        place: these edges in ``target``; -1 where they are not counted.
    """

    def __init__(self, graph: Graph, target: Graph, reduce: Reduce | None) -> None:
        self.graph, self.target, self.reduce = graph, target, reduce
        finest = _finest(graph)
        pairs = torch.stack([places(finest, graph), places(finest, target)])
        self.source, self.place = pairs.unique(dim=1)

    def __call__(self, values: Float[Tensor, "edge"]) -> Float[Tensor, "other"]:
        """Values on the target; a ValueError where some that become one differ and nothing says what they become."""
        counted = self.place != ALWAYS
        moved, place = self._sent(values)[counted], self.place[counted]
        low, high = (self._reduced(moved, place, way) for way in ("amin", "amax"))
        if self.reduce is None and not torch.equal(low, high):
            index = int((low != high).nonzero()[0])
            raise ValueError(
                f"Under {self.target.convention} several edges become one and must agree, but those of "
                f"{self.target.name(index)!r} range from {float(low[index]):g} to {float(high[index]):g}. Give "
                "reduce='max', 'min' or, of scores, 'mean' or 'sum'."
            )
        ways = {None: "amax", "max": "amax", "min": "amin", "mean": "mean", "sum": "sum"}
        return self._reduced(moved, place, ways[self.reduce])

    def _sent(self, values: Tensor) -> Tensor:
        """The value of each pair; 1 for edges that are always there."""
        return torch.where(self.source == ALWAYS, 1.0, values[self.source.clamp(min=0)])

    def _reduced(self, values: Tensor, place: Tensor, way: str) -> Tensor:
        empty = torch.zeros(len(self.target), dtype=values.dtype)
        return empty.scatter_reduce(0, place, values, way, include_self=False)

    def check_scores(self) -> None:
        """Raise a ValueError if one graph counts edges from embeddings and the other does not."""
        if bool(((self.source == ALWAYS) != (self.place == ALWAYS)).any()):
            raise ValueError(
                "Scores need a number for every edge that is counted, but of the two conventions one counts edges from "
                "embeddings and the other does not (embeddings='kept'). Score under the convention that you need."
            )

    def check_circuit(self, circuit: Circuit) -> None:
        """Raise a ValueError if edges from embeddings will always be there but are not in the circuit."""
        always = self.place == ALWAYS
        rows = circuit.kept[circuit.sites.part("edges")].unflatten(0, (-1, len(self.graph)))
        if not all(bool((self._sent(row.float())[always] > 0).all()) for row in rows):
            raise ValueError(
                "Under embeddings='kept' every edge from an embedding is in the circuit, but this one lacks some. "
                "Convert to 'merged' or 'separate'."
            )


# ---- the edges that no convention tells further apart


def _finest(graph: Graph) -> Graph:
    embeddings = "merged" if graph.architecture.post_norm else "separate"
    return Graph(graph.architecture, Convention(embeddings, "per_query_head", "split"))


def places(finest: Graph, graph: Graph) -> Int[Tensor, "fine"]:
    """For each edge of the finest graph the number of the edge that stands for it, or -1 where it is not counted."""
    if graph.convention.heads == "joined":
        place = places(finest, of_heads(graph))
        return torch.where(place == ALWAYS, ALWAYS, groups(graph, of_heads(graph))[place.clamp(min=0)])
    pairs = zip(finest.readers, graph.readers, strict=True)
    return torch.cat([_places(finest, fine, graph, readers).flatten() for fine, readers in pairs])


def _places(finest: Graph, fine: Readers, graph: Graph, readers: Readers) -> Int[Tensor, "reader writer"]:
    rows = torch.tensor([_row(graph, readers, row) for row in range(len(fine.names))])
    columns = _columns(finest, fine.width, graph)
    return torch.where(columns == ALWAYS, ALWAYS, readers.start + rows[:, None] * readers.width + columns)


def _row(graph: Graph, readers: Readers, row: int) -> int:
    """Which of these readers stands for row ``row`` of all q, then all k, then all v."""
    if readers.kind != "attention":
        return row
    heads, kv = graph.architecture.n_heads, graph.n_kv_readers
    part, head = divmod(row, heads)
    if graph.convention.qkv == "joined":
        return head
    return head if part == 0 else heads + (part - 1) * kv + head // (heads // kv)


def _columns(finest: Graph, width: int, graph: Graph) -> Int[Tensor, "writer"]:
    fine, own = len(finest.embeddings), len(graph.embeddings)
    embeddings = [min(place, own - 1) if own else ALWAYS for place in range(fine)]
    return torch.tensor(embeddings + [own + place for place in range(width - fine)])


def conventional(graph: Graph) -> Convention:
    """The convention of EAP-IG, MIB, ACDC and auto-circuit: one ``input``, and k and v for each query head.

    Without grouped queries that is the default, so that what is read can be compared with what is found here.
    """
    grouped = graph.architecture.n_kv_heads < graph.architecture.n_heads
    return replace(Convention(), kv="per_query_head" if grouped else "shared")
