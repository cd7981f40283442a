"""Areas under faithfulness curves: MIB's CPR and CMD, in variants that say what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.evaluation.baselines import differ
from tlprune.evaluation.bench import Bench, ablations_dict, ablations_text
from tlprune.evaluation.table import aligned
from tlprune.learning.bootstrap import Interval, interval
from tlprune.masking.ablation import Ablation
from tlprune.scores import Scores
from tlprune.selection import Top
from tlprune.selection.ranked import By
from tlprune.task import Batch, Task

Name = Literal["CPR", "CMD"]
Axis = Literal["linear", "log"]
Edges = Literal["nominal", "effective"]
RULES: tuple[tuple[Name, By], ...] = (("CPR", "signed"), ("CMD", "absolute"))
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Area:
    """One area under one curve. Areas of different labels have nothing to do with each other.

    Attributes:
        name: ``"CPR"``: under ``f``, the higher the better; ``"CMD"``: under ``|1 - f|``, the lower the better.
        axis: ``"linear"``: over the share of edges; ``"log"``: over its natural logarithm.
        edges: whether edges are counted as they were kept, or those on paths.
        value: with its 95% bootstrap interval over examples; ``None`` where it is undefined: fewer than two circuits
            lie on the axis, or faithfulness is undefined.
        left_out: circuits without any edge, which have no logarithm.
    """

    name: Name
    axis: Axis
    edges: Edges
    value: Interval | None
    left_out: int

    @property
    def label(self) -> str:
        """What it must be called wherever it stands."""
        return f"{self.name} ({self.axis}, {self.edges} edges)"

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        value = None if self.value is None else self.value.as_dict()
        return {"label": self.label, "value": value, "left_out": self.left_out}


@dataclass(frozen=True)
class Areas:
    """All variants of CPR and CMD of one set of scores; printing it gives a table.

    Attributes:
        areas: four of each.
        sizes: the shares of all sites that were asked for.
        counts: nominal and effective sites of each circuit, for CPR (signed) and CMD (absolute).
        faithfulness: of each circuit, likewise; ``None`` where it is undefined.
        sites: how many sites there are of each kind, and what counts as an edge.
        ablation: what replaced ablated sites, as plain data.
        discovery: what replaced them when the scores were made, where that is known.
    """

    areas: tuple[Area, ...]
    sizes: tuple[float, ...]
    counts: Mapping[str, tuple[tuple[int, int], ...]]
    faithfulness: Mapping[str, tuple[float, ...] | None]
    sites: str
    ablation: Mapping[str, Any]
    discovery: Mapping[str, Any] | None

    def __getitem__(self, label: str) -> Area:
        return next(area for area in self.areas if area.label == label)

    def as_dict(self) -> dict[str, Any]:
        """Areas and curves as plain data."""
        curves = {
            name: {"counts": [list(pair) for pair in self.counts[name]], "faithfulness": self.faithfulness[name]}
            for name in self.counts
        }
        told = ablations_dict(self.ablation, self.discovery)
        return {"sites": self.sites, **told, "sizes": list(self.sizes), "curves": curves,
                "areas": [area.as_dict() for area in self.areas]}  # fmt: skip

    def __str__(self) -> str:
        rows = [
            [area.label, "undefined" if area.value is None else str(area.value), f"{area.left_out} circuits"]
            for area in self.areas
        ]
        lines = aligned(["", "area [95%]", "left out"], rows)
        return "\n".join([*lines, f"{self.sites} in all; {ablations_text(self.ablation, self.discovery)}"])


def faithfulness_areas(
    model: Any,
    scores: Scores,
    batch: Batch | Task,
    *,
    sizes: Sequence[float] = SIZES,
    ablation: Ablation | None = None,
    batch_size: int = 64,
) -> Areas:
    """The areas under ``f`` and ``|1 - f|`` of the circuits that scores give, ``f`` being faithfulness.

    ``CPR = sum_i (k_{i+1} - k_i) (f_i + f_{i+1}) / 2`` over circuits of the highest scores, and
    ``CMD = sum_i (k_{i+1} - k_i) (|1 - f_i| + |1 - f_{i+1}|) / 2`` over those of the largest. ``k`` is a share of all
    sites, nominal or effective, or its natural logarithm. On the linear axis four fifths of the area lie above a fifth
    of the edges, so that it says little of small circuits: see :func:`~tlprune.equal_sizes` first.

    Source: Mueller et al., "MIB: A Mechanistic Interpretability Benchmark" (2025), section 3, on the linear axis of
    nominal edges, with these sizes.

    Args:
        model: the model that the scores are of.
        scores: a number for every site; signed.
        batch: examples that no method saw, or the task.
        sizes: shares of all sites, rounded down to a number of them.
        ablation: what replaces ablated sites; by default what did at discovery.
        batch_size: pairs of circuit and example per forward pass.

    Raises:
        ValueError: the scores belong to another model, the examples have no foils, or there are fewer than two sizes.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> ranked = Scores(planted.circuit.sites, planted.circuit.kept.float())
        >>> found = faithfulness_areas(planted.model, ranked, planted.task, sizes=(0, 0.5, 1))
        >>> print(found["CPR (linear, nominal edges)"].value)
        0.75 [0.75, 0.75]
    """
    if len({*sizes}) < 2 or not all(0 <= size <= 1 for size in sizes):
        raise ValueError(
            f"An area needs at least two shares between 0 and 1 but got {sizes}. Leave them out for MIB's."
        )
    sizes = tuple(sorted({*sizes}))
    chosen = {name: [Top(by).select(scores, int(size * len(scores.sites))) for size in sizes] for name, by in RULES}
    circuits = [circuit for own in chosen.values() for circuit in own]
    bench = Bench.of(model, circuits[0], batch, ablation=ablation)
    ends = torch.stack([torch.ones_like(circuits[0].kept), torch.zeros_like(circuits[0].kept)])
    kept = torch.cat([ends, torch.stack([circuit.kept for circuit in circuits])])
    found = bench.measure_each(kept, batch_size=batch_size)
    full, empty, *others = (one.figure("logit_difference").double() for one in found)
    columns = {"CPR": others[: len(sizes)], "CMD": others[len(sizes) :]}
    known = differ(full, empty)
    return Areas(
        tuple(
            _area(name, axis, edges, chosen[name], sizes, [*columns[name], full, empty] if known else None)
            for name, _ in RULES for axis in ("linear", "log") for edges in ("nominal", "effective")
        ),
        sizes,
        {name: tuple((len(one), one.n_effective) for one in own) for name, own in chosen.items()},
        {name: _faithfulness(own, full, empty) if known else None for name, own in columns.items()},
        str(scores.sites),
        bench.ablation,
        scores.provenance.get("ablation"),
    )  # fmt: skip


def trapezoid(places: Float[Tensor, "point"], *heights: Tensor) -> Tensor:
    """``sum_i (x_{i+1} - x_i) (y_i + y_{i+1}) / 2``.

    Example:
        >>> float(trapezoid(torch.tensor([0.0, 1.0, 3.0]), *torch.tensor([1.0, 2.0, 4.0])))
        7.5
    """
    widths = places.diff()
    return sum(
        (width * (a + b) / 2 for width, a, b in zip(widths, heights, heights[1:], strict=False)), torch.zeros(())
    )


def _area(
    name: Name,
    axis: Axis,
    edges: Edges,
    circuits: Sequence[Circuit],
    sizes: Sequence[float],
    columns: Sequence[Float[Tensor, "example"]] | None,
) -> Area:
    total = len(circuits[0].sites)
    shares = [
        one.n_effective / total if edges == "effective" else size for one, size in zip(circuits, sizes, strict=True)
    ]
    there = [place for place, share in enumerate(shares) if share > 0 or axis == "linear"]
    left_out = len(shares) - len(there)
    if columns is None or len(there) < 2:
        return Area(name, axis, edges, None, left_out)
    places = torch.tensor([shares[place] for place in there], dtype=torch.float64)
    used = [*(columns[place] for place in there), *columns[-2:]]
    value = interval(_under(places.log() if axis == "log" else places, name), *used)
    return Area(name, axis, edges, value, left_out)


def _under(places: Float[Tensor, "point"], name: str) -> Callable[..., Tensor]:
    def area(*means: Tensor) -> Tensor:
        *own, full, empty = means
        shares = [(one - empty) / (full - empty) for one in own]
        return trapezoid(places, *((1 - share).abs() if name == "CMD" else share for share in shares))

    return area


def _faithfulness(own: Sequence[Tensor], full: Tensor, empty: Tensor) -> tuple[float, ...]:
    return tuple(float((one - empty).mean() / (full - empty).mean()) for one in own)
