"""How alike the masks of pruned models are, matrix by matrix, beside masks of the same sizes drawn by chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.evaluation.overlap import uniform_chance
from tlprune.evaluation.table import aligned, number
from tlprune.learning.bootstrap import finite
from tlprune.selection.within import weights_of


@dataclass(frozen=True)
class MatrixOverlap:
    """What two masks remove of one tensor.

    Attributes:
        name: of the tensor.
        both: sites that both remove.
        either: sites that at least one removes.
        removed: sites that the first removes, and the second.
        total: sites of the tensor.
    """

    name: str
    both: int
    either: int
    removed: tuple[int, int]
    total: int

    @property
    def iou(self) -> float:
        """``both / either``; not a number where neither removes any."""
        return self.both / self.either if self.either else float("nan")

    @property
    def chance(self) -> float:
        """Expected of two masks that remove as many of the tensor, drawn uniformly; not a number where none does."""
        return uniform_chance(*self.removed, self.total) if self.either else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        figures = {"iou": finite(self.iou), "chance": finite(self.chance)}
        return {**vars(self), "removed": list(self.removed), **figures}


@dataclass(frozen=True)
class PairOverlap:
    """Two masks, tensor by tensor. Tensors of which neither removes anything are in no mean.

    Attributes:
        first: name of one circuit.
        second: of the other.
        matrices: every tensor.
    """

    first: str
    second: str
    matrices: tuple[MatrixOverlap, ...]

    @property
    def ious(self) -> list[float]:
        """Of the tensors of which something is removed."""
        return [one.iou for one in self.matrices if one.either]

    @property
    def mean(self) -> float:
        """Mean over tensors, each alike."""
        return _mean(self.ious)

    @property
    def least(self) -> float:
        """Of the tensor in which the masks are least alike."""
        return min(self.ious, default=float("nan"))

    @property
    def most(self) -> float:
        """Of the tensor in which the masks are most alike."""
        return max(self.ious, default=float("nan"))

    @property
    def chance(self) -> float:
        """Mean over tensors of what is expected by chance."""
        return _mean([one.chance for one in self.matrices if one.either])

    @property
    def pooled(self) -> float:
        """Intersection over union of all sites in one, however they lie over tensors."""
        either = sum(one.either for one in self.matrices)
        return sum(one.both for one in self.matrices) / either if either else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        names = ("mean", "least", "most", "chance", "pooled")
        figures = {name: finite(getattr(self, name)) for name in names}
        tensors = [one.as_dict() for one in self.matrices]
        return {"first": self.first, "second": self.second, **figures, "matrices": tensors}


@dataclass(frozen=True)
class MaskOverlap:
    """How alike several masks are; printing it gives a table.

    Attributes:
        names: of the circuits.
        pairs: every two of them.
    """

    names: tuple[str, ...]
    pairs: tuple[PairOverlap, ...]

    def __getitem__(self, names: tuple[str, str]) -> PairOverlap:
        """Two circuits by name, in either order.

        Raises:
            ValueError: they are no pair of these.
        """
        for pair in self.pairs:
            if {pair.first, pair.second} == {*names}:
                return pair
        raise ValueError(f"Masks are of {', '.join(self.names)} but {names} was asked for. Name two of these.")

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"names": list(self.names), "pairs": [pair.as_dict() for pair in self.pairs]}

    def __str__(self) -> str:
        rows = [
            [f"{pair.first} / {pair.second}", *(number(value, 3) for value in _figures(pair))] for pair in self.pairs
        ]
        header = ["removed weights", "mean IoU", "min", "max", "by chance", "in one"]
        return "\n".join([*aligned(header, rows), "mean, min and max over tensors; in one: all their sites together"])

    def plot(self) -> Any:
        """Lines of plotly, tensors across: each pair's overlap, and dotted what chance would give.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        library = plotly()
        figure = library.Figure()
        for place, pair in enumerate(self.pairs):
            colour = _COLOURS[place % len(_COLOURS)]
            name, across = f"{pair.first} / {pair.second}", [one.name for one in pair.matrices]
            found, chance = ([finite(getattr(one, kind)) for one in pair.matrices] for kind in ("iou", "chance"))
            figure.add_scatter(x=across, y=found, name=name, mode="lines+markers", line={"color": colour})
            dotted = {"color": colour, "dash": "dot"}
            figure.add_scatter(x=across, y=chance, name=f"{name}, by chance", mode="lines", line=dotted)
        figure.update_yaxes(range=[0, 1], title="removed by both / by either")
        return figure.update_layout(template=TEMPLATE, title="Overlap of removed weights", height=500)

    def plot_pairs(self) -> Any:
        """A heat map of plotly of mean overlaps, circuits by circuits.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        names = list(self.names)
        cells = [[1.0 if one == other else finite(self[one, other].mean) for other in names] for one in names]
        chart = plotly().Heatmap(x=names, y=names, z=cells, zmin=0, zmax=1, colorscale="Blues", texttemplate="%{z:.3f}")
        figure = plotly().Figure(chart)
        figure.update_yaxes(autorange="reversed", type="category")
        figure.update_xaxes(type="category")
        return figure.update_layout(template=TEMPLATE, title="Mean overlap of removed weights")


_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


def mask_overlap(circuits: Mapping[str, Circuit]) -> MaskOverlap:
    """For each tensor and pair of circuits ``|removed by both| / |removed by either|``, beside that by chance.

    Masks that remove much are alike by chance: two that remove 90% of a tensor at random share 82% of what either
    removes. ``chance`` is the expectation in closed form for masks that remove as many sites of the tensor.

    Args:
        circuits: of the same weights, by name; two at least.

    Raises:
        ValueError: there are fewer than two, or they are of different sites or models, or not of weights.

    Example:
        >>> import torch
        >>> import tlprune as tp
        >>> sites = tp.weights(tp.planted("copy").model, "blocks.0.attn.W_[QK]")
        >>> first, second = (torch.arange(len(sites)) % 4 >= removed for removed in (1, 2))
        >>> found = mask_overlap({"light": tp.Circuit(sites, first), "heavy": tp.Circuit(sites, second)})
        >>> found["light", "heavy"].mean, found["light", "heavy"].chance < 0.25
        (0.5, True)
    """
    if len(circuits) < 2:
        raise ValueError(f"Overlap is of two circuits or more but got {len(circuits)}. Name several, such as of seeds.")
    first, *others = circuits.values()
    weights = weights_of(first.sites, "Overlap of masks")
    for other in others:
        first.iou(other)  # refuses other sites and models
    removed = {name: (~circuit.kept.cpu()).split(weights.sizes) for name, circuit in circuits.items()}
    tensors = [matrix.name for matrix in weights.matrices]
    pairs = [PairOverlap(a, b, tuple(_matrices(tensors, removed[a], removed[b]))) for a, b in combinations(removed, 2)]
    return MaskOverlap(tuple(circuits), tuple(pairs))


def _matrices(names: Sequence[str], first: Sequence[Tensor], second: Sequence[Tensor]) -> Iterator[MatrixOverlap]:
    for name, own, its in zip(names, first, second, strict=True):
        counts = int((own & its).sum()), int((own | its).sum())
        yield MatrixOverlap(name, *counts, (int(own.sum()), int(its.sum())), own.numel())


def _figures(pair: PairOverlap) -> tuple[float, ...]:
    return pair.mean, pair.least, pair.most, pair.chance, pair.pooled


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
