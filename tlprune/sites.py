"""Sites: the places in a model that a mask has a value for, as plain data in groups of one kind.

A group knows how many sites it has and what they are called. :class:`~tlprune.graph.Graph` is the group of edges; the
others are here; what repeats them for each span of a prompt is in :mod:`tlprune.spans`. :class:`Sites` puts groups side
by side: a mask over it is one flat vector, group after group.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from tlprune.between_spans import AttentionEdges
from tlprune.flow import Flow
from tlprune.graph import Graph
from tlprune.site_data import check_sites
from tlprune.spans import Group, Spanned, every_span

NODE_KINDS = ("nodes", "heads", "mlps", "layers")
BY_SPAN = (Spanned, AttentionEdges)


@dataclass(frozen=True)
class Nodes:
    """Whole heads, MLPs, attention layers, or writers of the residual stream.

    Attributes:
        kind: ``"heads"`` (``a0.h3``), ``"mlps"`` (``m0``), ``"layers"`` (``a0``: all heads of a layer; ``m0``) or
            ``"nodes"``: every writer, embeddings included.
        names: their names, in the order of the model.
    """

    kind: Literal["nodes", "heads", "mlps", "layers"]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def index(self, name: str) -> int:
        if name not in self._index:
            near = difflib.get_close_matches(name, self.names, 3) or self.names[:3]
            raise ValueError(f"{name!r} is not one of these {len(self)} {self.kind}. Nearest names: {', '.join(near)}.")
        return self._index[name]

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "names": list(self.names)}


@dataclass(frozen=True)
class Neurons:
    """Neurons of MLPs: the numbers behind the activation function (and the gate, where there is one).

    Attributes:
        layers: layers whose neurons are meant.
        width: neurons per layer.
    """

    layers: tuple[int, ...]
    width: int

    @property
    def kind(self) -> str:
        return "neurons"

    def __len__(self) -> int:
        return len(self.layers) * self.width

    def name(self, index: int) -> str:
        place, neuron = divmod(index, self.width)
        return f"m{self.layers[place]}.n{neuron}"

    def index(self, name: str) -> int:
        found = re.fullmatch(r"m(\d+)\.n(\d+)", name)
        if not found or int(found[1]) not in self.layers or int(found[2]) >= self.width:
            raise ValueError(
                f"{name!r} is not a neuron of these sites: they are {self.width} neurons in each of layers "
                f"{', '.join(map(str, self.layers))}, written like {self.name(0)!r}. Use one of these."
            )
        return self.layers.index(int(found[1])) * self.width + int(found[2])

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "layers": list(self.layers), "width": self.width}


@dataclass(frozen=True)
class Matrix:
    """One weight tensor, seen as a matrix from inputs to outputs.

    Attributes:
        name: as TransformerLens has it, such as ``"blocks.3.attn.W_Q"``.
        shape: of the tensor.
        inputs: which of its axes count inputs; the others count outputs.
    """

    name: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...]

    def mask_shape(self, unit: str) -> tuple[int, ...]:
        """Shape of its mask, with size 1 where a unit ties weights together."""
        kept = {"weight": range(len(self.shape)), "row": self.inputs, "column": self.outputs}[unit]
        return tuple(size if axis in kept else 1 for axis, size in enumerate(self.shape))

    @property
    def outputs(self) -> tuple[int, ...]:
        """Which of its axes count outputs."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.inputs)


@dataclass(frozen=True)
class Weights:
    """Single weights of chosen matrices, or whole rows (all weights of one input) or columns (of one output).

    Attributes:
        matrices: the tensors, in the order of the model.
        unit: ``"weight"``, ``"row"`` or ``"column"``.
    """

    matrices: tuple[Matrix, ...]
    unit: Literal["weight", "row", "column"] = "weight"

    @property
    def kind(self) -> str:
        return "weights"

    def __len__(self) -> int:
        return sum(self.sizes)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Sites of each matrix."""
        return tuple(math.prod(matrix.mask_shape(self.unit)) for matrix in self.matrices)

    def split(self, values: Shaped[Tensor, "site"]) -> dict[str, Shaped[Tensor, "..."]]:
        """A flat mask as one tensor per matrix, shaped to multiply its weights."""
        parts = zip(self.matrices, values.split(self.sizes), strict=True)
        return {matrix.name: part.view(matrix.mask_shape(self.unit)) for matrix, part in parts}

    def name(self, index: int) -> str:
        """``blocks.3.attn.W_Q[2,17,5]``, with ``:`` for an axis that is tied."""
        for matrix, size in zip(self.matrices, self.sizes, strict=True):
            if index < size:
                shape = matrix.mask_shape(self.unit)
                place = torch.unravel_index(torch.tensor(index), shape)
                axes = zip(place, shape, matrix.shape, strict=True)
                return f"{matrix.name}[{','.join(str(int(i)) if n == full else ':' for i, n, full in axes)}]"
            index -= size
        raise ValueError(f"A weight's number must be below {len(self):,}. Use one of these sites.")

    def index(self, name: str) -> int:
        base, _, place = name.removesuffix("]").partition("[")
        start = 0
        for matrix, size in zip(self.matrices, self.sizes, strict=True):
            if matrix.name == base:
                return start + self._within(matrix, name, place.split(","))
            start += size
        known = ", ".join(matrix.name for matrix in self.matrices[:3])
        raise ValueError(
            f"{name!r} is not a weight of these sites. They are of {len(self.matrices)} matrices: {known}..."
        )

    def _within(self, matrix: Matrix, name: str, place: list[str]) -> int:
        shape, index = matrix.mask_shape(self.unit), 0
        for axis, size in enumerate(shape):
            free = size == matrix.shape[axis]
            value = place[axis] if len(place) == len(shape) else ""
            if not (value.isdigit() and int(value) < size if free else value == ":"):
                raise ValueError(f"{name!r} is not a {self.unit} of {matrix.name}: write it like {self.name(0)!r}.")
            index = index * size + (int(value) if free else 0)
        return index

    def as_dict(self) -> dict[str, Any]:
        matrices = [{**asdict(matrix), "shape": list(matrix.shape)} for matrix in self.matrices]
        return {"kind": self.kind, "unit": self.unit, "matrices": matrices}


@dataclass(frozen=True)
class Sites:
    """Groups of sites side by side; ``+`` puts more beside them.

    Attributes:
        groups: at most one of each kind, no site twice.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> sites = Sites((Graph(Architecture(2, 2, 2)),)) + Sites((Neurons((0, 1), 3),))
        >>> len(sites), sites.part("neurons"), sites.name(47), sites.index("m0.n1")
        (52, slice(46, 52, None), 'm0.n1', 47)
    """

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        kinds = [group.kind for group in self.groups]
        seen: set[str] = set()
        for group in self.groups:
            inner = _unspanned(group)
            own = set(inner.names) if isinstance(inner, Nodes) else set()
            if kinds.count(group.kind) > 1 or seen & own:
                raise ValueError(
                    f"Sites need each place once but {' + '.join(kinds)} name some twice. Select different places "
                    "with a pattern, such as tp.layers(model, 'a*') beside tp.mlps(model)."
                )
            seen |= own
        spans = {group.spans for group in self.groups if isinstance(group, BY_SPAN)}
        if len(spans) > 1:
            raise ValueError(f"Sites that differ by span need the same spans but have {sorted(spans)}. Name all alike.")

    def __add__(self, other: Sites) -> Sites:
        return Sites(self.groups + other.groups)

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def __repr__(self) -> str:
        return f"Sites({' + '.join(f'{len(group):,} {group.kind}' for group in self.groups)})"

    def __str__(self) -> str:
        convention = f" ({self.graph.convention})" if "edges" in self.kinds else ""
        return " + ".join(f"{len(group):,} {group.kind}" for group in self.groups) + convention

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(group.kind for group in self.groups)

    @cached_property
    def parts(self) -> dict[str, slice]:
        """Where each group lies in a flat vector over all sites."""
        ends = [0]
        for group in self.groups:
            ends.append(ends[-1] + len(group))
        return {kind: slice(a, b) for kind, a, b in zip(self.kinds, ends, ends[1:], strict=False)}

    def part(self, kind: str) -> slice:
        """Where the sites of one kind lie in a flat vector over all sites."""
        if kind not in self.parts:
            raise ValueError(f"These sites are {', '.join(self.kinds)} but {kind!r} was asked for. Use one of these.")
        return self.parts[kind]

    def group(self, kind: str) -> Group:
        """The sites of one kind; a ValueError if there are none."""
        self.part(kind)
        return self.groups[self.kinds.index(kind)]

    def bare(self, kind: str) -> Group:
        """The sites of one kind without their spans."""
        return _unspanned(self.group(kind))

    @property
    def graph(self) -> Graph:
        """The graph of the edges among these sites.

        Raises:
            ValueError: there are none.
        """
        if "edges" not in self.kinds:
            raise ValueError(
                f"This needs edges but the sites are {', '.join(self.kinds)}. Mask edges: tp.edges(model)."
            )
        graph = self.bare("edges")
        assert isinstance(graph, Graph)
        return graph

    @property
    def spans(self) -> tuple[str, ...]:
        """Names of the spans that some group tells apart."""
        return next((group.spans for group in self.groups if isinstance(group, BY_SPAN)), ())

    @property
    def flow(self) -> Flow | None:
        """How information moves between their spans, as far as is known; ``None`` where nothing differs by span."""
        known = (group.flow for group in self.groups if isinstance(group, Spanned) and group.flow is not None)
        return next(known, Flow.everywhere(every_span(self.spans))) if self.spans else None

    def flowing(self, flow: Flow | None) -> Sites:
        """The same sites with what some prompts say of their spans; those without spans stay as they are."""
        return Sites(tuple(group.flowing(flow) if isinstance(group, Spanned) else group for group in self.groups))

    def without_spans(self) -> Sites:
        """The same places, each once for the whole prompt."""
        return Sites(tuple(_unspanned(group) for group in self.groups))

    def with_spans(self, spans: Iterable[str], *, flow: Flow | None = None) -> Sites:
        """The same places at each span.

        Args:
            spans: names of a task's spans.
            flow: how these follow each other, such as ``tp.edges(model, spans=task).flow``.

        Raises:
            ValueError: the sites have spans, or are weights, which all positions share.
        """
        if self.spans or "weights" in self.kinds:
            what = f"differ by {', '.join(self.spans)}" if self.spans else "are weights, which all positions share"
            raise ValueError(
                f"Spans are put on places that have none, and that act at positions, but these {what}. Take "
                "without_spans() first, or nodes and edges."
            )
        return Sites(tuple(Spanned(group, tuple(spans), flow) for group in self.groups))

    @property
    def edges(self) -> Graph | Spanned:
        """Its edges as paths go through them: at each span, where any of these sites differ by span."""
        return Spanned(self.graph, self.spans, self.flow) if self.spans else self.graph

    def name(self, index: int) -> str:
        for kind, part in self.parts.items():
            if index < part.stop:
                return self.group(kind).name(index - part.start)
        raise ValueError(f"A site's number must be below {len(self):,} but is {index:,}. Use one of these.")

    def index(self, name: str) -> int:
        """Position of a named site among all."""
        failures = []
        for group in self.groups:
            try:
                return self.parts[group.kind].start + group.index(name)
            except ValueError as failure:
                failures.append(str(failure))
        raise ValueError(" ".join(failures) or f"There are no sites, so {name!r} is none.")

    def as_dict(self) -> list[dict[str, Any]]:
        """Plain data; ``from_dict`` is the way back."""
        return [group.as_dict() for group in self.groups]

    @staticmethod
    def from_dict(data: Sequence[Mapping[str, Any]]) -> Sites:
        """The sites that :meth:`as_dict` described.

        Raises:
            ValueError: the data can be no sites, or promise more than there can be.
        """
        check_sites(data)
        return Sites(tuple(group_from_dict(group) for group in data))


def _unspanned(group: Group) -> Group:
    return group.group if isinstance(group, Spanned) else group


def group_from_dict(data: Mapping[str, Any]) -> Group:
    """The group that ``as_dict`` described."""
    if data["kind"] == "attention_edges":
        pairs = tuple((source, query) for source, query in data["pairs"])
        return AttentionEdges(tuple(data["readers"]), tuple(data["spans"]), pairs)
    if "spans" in data:
        group = Spanned(group_from_dict(data["group"]), tuple(data["spans"]))
        return group.flowing(Flow.from_dict(data["flow"], group.all_spans)) if "flow" in data else group
    if data["kind"] == "edges":
        return Graph.from_dict(data)
    if data["kind"] == "neurons":
        return Neurons(tuple(data["layers"]), data["width"])
    if data["kind"] == "weights":
        matrices = (Matrix(m["name"], tuple(m["shape"]), tuple(m["inputs"])) for m in data["matrices"])
        return Weights(tuple(matrices), data["unit"])
    if data["kind"] in NODE_KINDS:
        return Nodes(data["kind"], tuple(data["names"]))
    raise ValueError(f"unknown kind of sites {data['kind']!r}")
