"""The heuristic core: which heads and MLPs all subnetworks keep, and how many would be shared by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tlprune.circuit import Circuit
from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.drawing.head_map import HEAD, MLP, head_map
from tlprune.evaluation.overlap import stability
from tlprune.evaluation.table import aligned, number
from tlprune.sites import Sites
from tlprune.studies.chance import Shared
from tlprune.studies.collection import Subnetworks

ALL = "all"


@dataclass(frozen=True)
class Level:
    """The subnetworks of one sparsity, or of all.

    Attributes:
        sparsity: fraction removed; ``None`` for all together.
        kinds: ``"heads"``, ``"mlps"`` and others that there are, then ``"all"``.
        iou: mean intersection over union of the pairs; ``None`` for a single subnetwork.
        chance: what it would be for random ones of the same sizes.
    """

    sparsity: float | None
    kinds: Mapping[str, Shared]
    iou: float | None
    chance: float | None

    @property
    def count(self) -> int:
        """How many subnetworks there are."""
        return len(self.kinds[ALL].sizes)

    @property
    def title(self) -> str:
        """What it is called in tables and figures."""
        return "all" if self.sparsity is None else f"{100 * self.sparsity:g}% removed"

    @property
    def excess(self) -> float | None:
        """Mean intersection over union less that of chance."""
        return None if self.iou is None or self.chance is None else self.iou - self.chance

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        kinds = {name: kept.as_dict() for name, kept in self.kinds.items()}
        alike = {"iou": self.iou, "chance": self.chance, "excess": self.excess}
        return {"sparsity": self.sparsity, "subnetworks": self.count, **alike, "kinds": kinds}


@dataclass(frozen=True)
class Core:
    """What subnetworks share, by sparsity and over all; printing it gives a table.

    Attributes:
        levels: one for each sparsity, lowest first; then, where there are several, one for all together.
    """

    levels: tuple[Level, ...]

    def __getitem__(self, sparsity: float | None) -> Level:
        """The level of one sparsity; ``None`` for all together.

        Raises:
            ValueError: there is none.
        """
        if sparsity is None:
            return self.levels[-1]
        for level in self.levels:
            if level.sparsity == sparsity:
                return level
        known = ", ".join(f"{level.sparsity:g}" for level in self.levels if level.sparsity is not None)
        raise ValueError(f"There are subnetworks of sparsity {known} but {sparsity:g} was asked for. Name one.")

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"levels": [level.as_dict() for level in self.levels]}

    def __str__(self) -> str:
        header = ["", "kind", "sites", "subnetworks", "in all", "by chance", "p", "mean IoU", "less chance"]
        rows = [
            _row(level, kind) for level in self.levels for kind in level.kinds if kind == ALL or len(level.kinds) > 2
        ]
        lines = aligned(header, rows)
        for level in self.levels:
            names = level.kinds[ALL].names
            lines.append(f"{level.title}: {len(names)} kept by all of {level.count}: {', '.join(names) or 'none'}")
        return "\n".join(lines)

    def plot(self) -> Any:
        """Heat maps of plotly, one beside the other for each level: how many subnetworks keep each head and MLP.

        Rows are layers, columns heads, the MLP apart on the right; what all keep is bold.

        Raises:
            ValueError: the sites are neither heads nor MLPs.
            ModuleNotFoundError: plotly is not installed.
        """
        plotly()
        from plotly.subplots import make_subplots

        titles = [f"{level.title}: kept by how many of {level.count}" for level in self.levels]
        figure = make_subplots(1, len(self.levels), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
        for column, level in enumerate(self.levels, start=1):
            figure.add_trace(_map(level), row=1, col=column)
        figure.update_xaxes(type="category", title="head")
        figure.update_yaxes(type="category", autorange="reversed")
        figure.update_yaxes(title="layer", col=1)
        return figure.update_layout(template=TEMPLATE, title="Heads and MLPs that subnetworks keep")


def core(subnetworks: Subnetworks) -> Core:
    """Which sites all subnetworks keep, for each sparsity and over all, beside chance.

    Chance draws each subnetwork anew: any sites of a kind alike, as many as it has. MLPs are often kept together, so
    heads and MLPs are held against chance apart as well as together. The bare circuit is
    :meth:`~tlprune.Subnetworks.core`.

    Args:
        subnetworks: of one model, found under several seeds and sparsities.

    Source: Bhaskar, Friedman, Chen, "The Heuristic Core" (ACL 2024), section 5.

    Example:
        >>> import tlprune as tp
        >>> from tlprune.studies.collection import Run
        >>> sites = tp.heads(tp.planted("induction").model)
        >>> kept = [["a0.h2", "a1.h1"], ["a0.h2", "a1.h3"]]
        >>> circuits = [tp.Circuit.from_names(sites, names) for names in kept]
        >>> found = core(tp.Subnetworks({Run(0.75, seed): one for seed, one in enumerate(circuits)}))
        >>> heads = found[0.75].kinds["heads"]
        >>> heads.names, heads.expected, round(heads.tail, 3)  # 1 - C(6, 2) / C(8, 2) is the probability
        (('a0.h2',), 0.5, 0.464)
    """
    several = len(subnetworks.sparsities) > 1
    return Core(tuple(_level(subnetworks, one) for one in (*subnetworks.sparsities, *([None] if several else []))))


def _level(subnetworks: Subnetworks, sparsity: float | None) -> Level:
    among = [*subnetworks.at(sparsity).values()]
    kinds = {kind: _kept(among, places) for kind, places in _kinds(subnetworks.sites).items()}
    alike = stability(among, chance="uniform") if len(among) > 1 else None
    iou, chance = (None, None) if alike is None else (alike.iou, alike.chance)
    return Level(sparsity, kinds, iou, chance)


def _kinds(sites: Sites) -> dict[str, list[int]]:
    """Where heads, MLPs and others lie among the sites, then all of them."""
    found: dict[str, list[int]] = {}
    for index in range(len(sites)):
        found.setdefault(_kind(sites.name(index)), []).append(index)
    return {**found, ALL: [*range(len(sites))]}


def _kind(name: str) -> str:
    if HEAD.fullmatch(name):
        return "heads"
    return "mlps" if MLP.fullmatch(name) else "others"


def _kept(circuits: Sequence[Circuit], places: Sequence[int]) -> Shared:
    kept = np.stack([circuit.kept.cpu().numpy()[[*places]] for circuit in circuits])
    names = [circuits[0].sites.name(index) for index in places]
    return Shared(dict(zip(names, kept.sum(0).tolist(), strict=True)), tuple(kept.sum(1).tolist()))


def _row(level: Level, kind: str) -> list[str]:
    kept, pair = level.kinds[kind], ["", ""]
    if kind == ALL and level.iou is not None and level.excess is not None:
        pair = [number(level.iou, 3), number(level.excess, 3)]
    chance = [number(kept.expected, 2), f"{kept.tail:.2g}"]
    return [level.title, kind, str(len(kept.counts)), str(level.count), str(len(kept.names)), *chance, *pair]


def _map(level: Level) -> Any:
    counts = level.kinds[ALL].counts
    texts = {name: f"<b>{count}</b>" if count == level.count else str(count) for name, count in counts.items()}
    hover = f"%{{customdata}}: kept by %{{z}} of {level.count}<extra></extra>"
    return head_map(counts, texts, hovertemplate=hover, zmin=0, zmax=level.count, colorscale="Blues", showscale=False)
