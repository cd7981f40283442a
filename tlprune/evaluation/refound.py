"""How alike the circuits are that a method finds again, under other seeds and on resampled examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tlprune.circuit import Circuit
from tlprune.drawing.charts import TEMPLATE, plotly, write_page
from tlprune.evaluation.overlap import STABILITY, Chance, Stability, stability
from tlprune.evaluation.table import aligned
from tlprune.masking.ablation import Ablation
from tlprune.task import Batch, Discovery, Task


@dataclass(frozen=True)
class StabilityReport:
    """Circuits that one method found again, and how alike they are; printing it gives a table.

    Attributes:
        circuits: by source of chance, ``"seeds"`` and ``"data"``, the first of each on the task as it is.
        nominal: of all kept sites, by source.
        effective: of the sites that can matter, by source; a circuit of them alone computes the same.
    """

    circuits: Mapping[str, tuple[Circuit, ...]]
    nominal: Mapping[str, Stability]
    effective: Mapping[str, Stability]

    def as_dict(self) -> dict[str, Any]:
        """Figures as plain data."""
        return {
            name: {source: one.as_dict() for source, one in found.items()}
            for name, found in (("nominal", self.nominal), ("effective", self.effective))
        }

    def __str__(self) -> str:
        rows = [
            [source, name, *found[source].row()]
            for source in self.circuits
            for name, found in (("nominal", self.nominal), ("effective", self.effective))
        ]
        return "\n".join(aligned(["over", "sites", *STABILITY], rows))

    def plot(self, path: str | Path) -> None:
        """Write a page with the intersection over union of each pair, by source, nominal and effective.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        library, figures = plotly(), []
        for name, found in (("nominal", self.nominal), ("effective", self.effective)):
            for source, one in found.items():
                chart = library.Heatmap(
                    z=one.matrix.tolist(), zmin=0, zmax=1, colorscale="Blues", texttemplate="%{z:.2f}"
                )
                title = f"{name} IoU over {source}: mean {one.iou:.3f}, by chance {one.chance:.3f}"
                figures.append(library.Figure(chart, {"title": title, "template": TEMPLATE}))
        write_page(Path(path), figures, title="Stability")


def refound(
    model: Any,
    task: Task | Discovery,
    method: Any,
    *,
    seeds: int = 5,
    resamples: int = 5,
    ablation: Ablation | None = None,
    chance: Chance = "connected",
) -> StabilityReport:
    """Find a circuit again under other seeds, and on training examples drawn again, and compare.

    Over seeds, the method's ``seed`` goes up from its own. Over data, its seed stays and the training examples are
    drawn with replacement, as many as there are (the bootstrap); validation examples stay. Test examples have no part.

    Args:
        model: a TransformerLens model; left as it was.
        task: prompt pairs.
        method: with a ``find``; for other seeds with a field ``seed``.
        seeds: how many circuits over seeds; fewer than two for none.
        resamples: how many over data; fewer than two for none.
        ablation: what replaces an ablated site, as for ``find``.
        chance: as of :func:`~tlprune.overlap`.

    Raises:
        ValueError: fewer than two of both are asked for, or a method without seed is to have several.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> found = refound(planted.model, planted.task, tp.Random(edges=20), seeds=3, resamples=2, chance="uniform")
        >>> found.nominal["data"].iou, len(found.circuits["seeds"]), found.nominal["seeds"].iou < 1
        (1.0, 3, True)
    """
    discovery = task.discovery if isinstance(task, Task) else task
    if max(seeds, resamples) < 2:
        raise ValueError(
            f"Stability compares circuits but {seeds} seeds and {resamples} resamples give none to compare. Ask for "
            "two or more of one."
        )
    if seeds > 1 and not hasattr(method, "seed"):
        raise ValueError(f"{type(method).__name__} has no seed, so none can be another. Give seeds=0 and resamples=.")
    circuits: dict[str, tuple[Circuit, ...]] = {}
    if seeds > 1:
        others = [dataclasses.replace(method, seed=method.seed + step) for step in range(seeds)]
        circuits["seeds"] = tuple(one.find(model, discovery, ablation=ablation) for one in others)
    if resamples > 1:
        drawn = [discovery, *(redrawn(discovery, seed=seed) for seed in range(resamples - 1))]
        circuits["data"] = tuple(method.find(model, one, ablation=ablation) for one in drawn)
    nominal = {source: stability(found, chance=chance) for source, found in circuits.items()}
    live = {source: [one.effective for one in found] for source, found in circuits.items()}
    effective = {source: stability(found, chance=chance) for source, found in live.items()}
    return StabilityReport(circuits, nominal, effective)


def redrawn(discovery: Discovery, *, seed: int = 0) -> Discovery:
    """The same task with training examples drawn with replacement, as many of each stream.

    Example:
        >>> import tlprune as tp
        >>> discovery = tp.planted("copy").task.discovery
        >>> len(redrawn(discovery).train()) == len(discovery.train())
        True
    """
    generator = torch.Generator().manual_seed(seed)
    streams = {name: (_drawn(train, generator), other) for name, (train, other) in discovery.streams.items()}
    provenance = {**discovery.provenance, "redrawn": seed}
    return dataclasses.replace(discovery, streams=streams, provenance=provenance)


def _drawn(batch: Batch, generator: torch.Generator) -> Batch:
    """Rows drawn with replacement, numbered anew, because caches go by the number."""
    found = batch.rows(torch.randint(len(batch), (len(batch),), generator=generator).to(batch.answers.device))
    return dataclasses.replace(found, index=torch.arange(len(batch), device=batch.index.device))
