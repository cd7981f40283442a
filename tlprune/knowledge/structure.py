"""Where the weights of a subnetwork lie: by layer, kind of matrix, head and neuron, beside a random one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.evaluation.table import aligned, number
from tlprune.knowledge.chance import Chance, Sample
from tlprune.knowledge.concentration import Concentration, Side, concentration, mean_over
from tlprune.learning.significance import SIGNIFICANT, holm
from tlprune.scores import Scores
from tlprune.sites import Matrix, Weights

OUTSIDE = "outside blocks"
_BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")
_SHOWN = 10


@dataclass(frozen=True)
class Part:
    """Some of the weights that could be in a subnetwork.

    Attributes:
        name: such as ``layer 3``, ``attn.W_Q``, ``blocks.3.attn.W_Q``, ``a3.h7`` or, of keys and values that several
            heads share, ``a3.kv1``.
        kept: its weights in the subnetwork.
        total: all its weights.
        expected: weights that a uniform random subnetwork with as many sites has here on average.
        low: lower end of the interval in which 95% of random ones lie, in weights.
        high: upper end.
        p: two-sided p-value of its number of weights under chance, by Holm's method among parts of its kind.
    """

    name: str
    kept: int
    total: int
    expected: float
    low: float
    high: float
    p: float

    @property
    def density(self) -> float:
        """Share of its weights that are in the subnetwork."""
        return self.kept / self.total

    @property
    def unlike_chance(self) -> int:
        """1 if denser than a random one, -1 if sparser, 0 if it may be either."""
        return 0 if self.p >= SIGNIFICANT else 1 if self.kept > self.expected else -1

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"density": self.density, "unlike_chance": self.unlike_chance}


@dataclass(frozen=True)
class Decided:
    """How far training has decided about each site: shares of the probabilities ``sigmoid(score)``.

    Attributes:
        out: at most 0.01.
        within: at least 0.99.
        open: from 0.45 to 0.55.
    """

    out: float
    within: float
    open: float


@dataclass(frozen=True)
class Structure:
    """Densities of a subnetwork of weights.

    Attributes:
        whole: all weights that could be in it.
        unit: ``"weight"``, ``"row"`` or ``"column"``.
        layers: by layer.
        kinds: by kind of matrix.
        matrices: by matrix.
        heads: by head; where heads share keys and values, these are parts of their own.
        neurons: how the weights of each matrix lie over its inputs and outputs; of single weights only, since rows and
            columns are neurons themselves.
        decided: shares of probabilities, where scores were given.
    """

    whole: Part
    unit: str
    layers: tuple[Part, ...]
    kinds: tuple[Part, ...]
    matrices: tuple[Part, ...]
    heads: tuple[Part, ...]
    neurons: tuple[Concentration, ...]
    decided: Decided | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        tables = {name: [part.as_dict() for part in getattr(self, name)] for name in _TABLES}
        decided = None if self.decided is None else asdict(self.decided)
        neurons = [one.as_dict() for one in self.neurons]
        return {"unit": self.unit, "whole": self.whole.as_dict(), **tables, "neurons": neurons, "decided": decided}

    def __str__(self) -> str:
        far = sorted(self.heads, key=lambda part: -abs(part.kept - part.expected) / part.total)[:_SHOWN]
        parts = [self.whole, *self.layers, *self.kinds, *far]
        lines = aligned(["part", "kept", "of", "density", "by chance", "p"], [_row(part) for part in parts])
        if len(far) < len(self.heads):
            lines.append(f"of {len(self.heads)} heads those that differ most from chance")
        blocks = ["\n".join(lines)]
        if self.neurons:
            blocks.append("\n".join(_neuron_lines(self.neurons)))
        if self.decided is not None:
            one = self.decided
            blocks.append(f"sigmoid(score): {one.out:.1%} <= 0.01, {one.within:.1%} >= 0.99, {one.open:.1%} 0.45-0.55")
        return "\n\n".join(blocks)

    def plot(self) -> Any:
        """A heat map of densities, layers down and kinds of matrices across; needs plotly."""
        from tlprune.knowledge.structure_plots import matrix_map

        return matrix_map(self.matrices)

    def plot_heads(self) -> Any:
        """Heat maps of densities, layers down and heads across, shared keys and values apart; needs plotly.

        Raises:
            ValueError: no attention matrix could be in the subnetwork.
        """
        from tlprune.knowledge.structure_plots import head_maps

        return head_maps(self.heads)


_TABLES = ("layers", "kinds", "matrices", "heads")


def structure(circuit: Circuit, model: Any = None, *, scores: Scores | None = None, draws: int = 200) -> Structure:
    """Where the weights of a subnetwork lie, and where a random one with as many sites would have them.

    Args:
        circuit: of weights, rows or columns; what it keeps is counted.
        model: the model that it is of. Only where the circuit has keys or values but no queries and outputs is it
            needed to tell whose they are; where given, the circuit's matrices must be its own.
        scores: of the same sites as training left them, to tell how many it has decided about.
        draws: random masks of a matrix that its neurons are held against.

    Raises:
        ValueError: the circuit is not of weights, the scores are of other sites, or the matrices are not the model's.

    Example:
        >>> import tlprune as tp
        >>> model = tp.planted("induction").model
        >>> sites = tp.weights(model, "blocks.0.attn.W_[QK]")
        >>> kept = torch.zeros(len(sites), dtype=torch.bool)
        >>> kept[: len(sites) // 2] = True
        >>> found = structure(Circuit(sites, kept), model)
        >>> [(part.name, part.density, part.unlike_chance) for part in found.kinds]
        [('attn.W_Q', 1.0, 1), ('attn.W_K', 0.0, -1)]
    """
    weights = _weights_of(circuit)
    heads = _heads_of(weights, model)
    masks = weights.split(circuit.kept)
    samples = {matrix: _sample(matrix, masks[matrix.name]) for matrix in weights.matrices}
    tables = (
        _table(samples, lambda matrix: f"layer {layer}" if (layer := _layer(matrix)) is not None else OUTSIDE),
        _table(samples, _kind),
        _table(samples, lambda matrix: matrix.name),
        _head_table(weights.matrices, masks, heads),
    )
    sizes = {"drawn": len(circuit), "total": len(weights)}
    layers, kinds, matrices, by_head = (_parts(table, **sizes) for table in tables)
    (whole,) = _parts({"all": [*samples.values()]}, **sizes)
    neurons = tuple(_neurons(weights, masks, draws)) if weights.unit == "weight" else ()
    decided = None if scores is None else _decided(circuit, scores)
    return Structure(whole, weights.unit, layers, kinds, matrices, by_head, neurons, decided)


def _weights_of(circuit: Circuit) -> Weights:
    group = circuit.sites.groups[0] if len(circuit.sites.groups) == 1 else None
    if not isinstance(group, Weights):
        raise ValueError(
            f"The structure of weights needs a circuit of weights alone but this one is of {circuit.sites}. Find one "
            "with tp.KnowledgeSubnetwork, or over tp.weights(model)."
        )
    return group


def _heads_of(weights: Weights, model: Any) -> int | None:
    """Number of query heads, as the model or the matrices tell it."""
    if model is None:
        return next((m.shape[0] for m in weights.matrices if _kind(m) in ("attn.W_Q", "attn.W_O")), None)
    backend = backend_of(model)
    own = {matrix.name: matrix for matrix in backend.matrices()}
    strange = [matrix.name for matrix in weights.matrices if own.get(matrix.name) != matrix]
    if strange:
        raise ValueError(
            f"The circuit must be of the model's own weights but {strange[0]} is none of them, or of another shape. "
            "Give the model that it was found on."
        )
    return backend.architecture.n_heads


def _layer(matrix: Matrix) -> int | None:
    found = _BLOCK.fullmatch(matrix.name)
    return int(found[1]) if found else None


def _kind(matrix: Matrix) -> str:
    """The name within a block, or of what lies outside all."""
    found = _BLOCK.fullmatch(matrix.name)
    return found[2] if found else matrix.name


def _sample(matrix: Matrix, mask: Bool[Tensor, "..."]) -> Sample:
    total = torch.Size(matrix.shape).numel()
    return Sample(mask.numel(), int(mask.sum()), total // mask.numel())


def _table(samples: Mapping[Matrix, Sample], name: Callable[[Matrix], str]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for matrix, sample in samples.items():
        found.setdefault(name(matrix), []).append(sample)
    return found


def _head_table(
    matrices: Iterable[Matrix], masks: Mapping[str, Bool[Tensor, "..."]], heads: int | None
) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for matrix in matrices:
        if _layer(matrix) is None or not re.fullmatch(r"attn\.W_[QKVO]", _kind(matrix)):
            continue
        own = "h" if matrix.shape[0] == heads else "kv"
        mask = masks[matrix.name]
        one = replace(matrix, shape=matrix.shape[1:])
        for head in range(matrix.shape[0]):
            # A row or column that goes through all heads is a site of each.
            part = _sample(one, mask[head if len(mask) > 1 else 0])
            found.setdefault(f"a{_layer(matrix)}.{own}{head}", []).append(part)
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def _place(name: str) -> tuple[int, str, int]:
    layer, kind, head = re.findall(r"a(\d+)\.(h|kv)(\d+)", name)[0]
    return int(layer), kind, int(head)


def _parts(table: Mapping[str, Sequence[Sample]], *, drawn: int, total: int) -> tuple[Part, ...]:
    chances = [Chance(tuple(samples), drawn, total) for samples in table.values()]
    values = holm(torch.tensor([chance.p_value for chance in chances], dtype=torch.float64)).tolist()
    return tuple(_part(name, chance, p) for name, chance, p in zip(table, chances, values, strict=True))


def _part(name: str, chance: Chance, p: float) -> Part:
    kept = sum(sample.kept * sample.each for sample in chance.samples)
    total = sum(sample.sites * sample.each for sample in chance.samples)
    return Part(name, kept, total, chance.mean, *chance.interval(), p)


def _neurons(weights: Weights, masks: Mapping[str, Shaped[Tensor, "..."]], draws: int) -> Iterable[Concentration]:
    sides: tuple[Side, Side] = ("inputs", "outputs")
    for seed, matrix in enumerate(weights.matrices):
        if len(matrix.shape) > 1:
            yield from (concentration(matrix, masks[matrix.name], side, draws=draws, seed=seed) for side in sides)


def _decided(circuit: Circuit, scores: Scores) -> Decided:
    if scores.sites != circuit.sites:
        raise ValueError(
            f"Scores must be of the circuit's sites, {circuit.sites}, but are of {scores.sites}. Give those of the "
            "same training."
        )
    chances = torch.sigmoid(scores.values.double())
    shares = (chances <= 0.01, chances >= 0.99, (chances >= 0.45) & (chances <= 0.55))
    return Decided(*(float(share.double().mean()) for share in shares))


def _row(part: Part) -> list[str]:
    chance = f"[{part.low / part.total:.3%}, {part.high / part.total:.3%}]"
    return [part.name, f"{part.kept:,}", f"{part.total:,}", f"{part.density:.3%}", chance, f"{part.p:.2g}"]


def _neuron_lines(rows: Sequence[Concentration]) -> list[str]:
    """Means over layers."""
    table: dict[tuple[str, str], list[Concentration]] = {}
    for row in rows:
        kind = found[2] if (found := _BLOCK.fullmatch(row.matrix)) else row.matrix
        table.setdefault((kind, row.side), []).append(row)
    header = ["neurons (means over layers)", "Gini", "by chance", "in the top 1%", "by chance"]
    cells = [
        [f"{side} of {kind}", *(number(value, 3) for value in mean_over(own))] for (kind, side), own in table.items()
    ]
    return aligned(header, cells)
