"""Where the uncertainty of a figure comes from: seeds, templates, pairings of twins, examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.evaluation.baselines import differ
from tlprune.evaluation.bench import Bench, ablation_text
from tlprune.evaluation.table import aligned
from tlprune.learning.bootstrap import Interval, bounds, interval, resampled_means
from tlprune.masking.ablation import Ablation
from tlprune.task import Batch, Tokens

_TRIES = 20  # random pairings before a row keeps its own twin


@dataclass(frozen=True)
class Spread:
    """A mean figure with one interval per source of chance; printing it gives a table.

    Attributes:
        figure: ``"faithfulness"`` or ``"kl"``.
        value: over all circuits, templates, pairings and examples; ``None`` where faithfulness is undefined.
        intervals: by source, ``"seed"``, ``"template"``, ``"pairing"`` and ``"example"``: 95%, by the bootstrap over
            this source alone, with all of the others as they are; ``None`` where there is just one of it.
        levels: how many there are of each source.
        ablation: what replaced ablated sites, as plain data.
    """

    figure: str
    value: float | None
    intervals: Mapping[str, Interval | None]
    levels: Mapping[str, int]
    ablation: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        sources = {
            name: {"levels": self.levels[name], "interval": None if one is None else one.as_dict()}
            for name, one in self.intervals.items()
        }
        return {"figure": self.figure, "value": self.value, "ablation": dict(self.ablation), "sources": sources}

    def __str__(self) -> str:
        rows = [
            [name, f"{self.levels[name]:,}", "-" if one is None else f"[{one.low:.4g}, {one.high:.4g}]"]
            for name, one in self.intervals.items()
        ]
        value = "undefined" if self.value is None else f"{self.value:.4g}"
        lines = aligned(["source", "levels", "95%"], rows)
        return "\n".join([*lines, f"{self.figure} {value}; {ablation_text(self.ablation)} ablation"])


def spread(
    model: Any,
    circuits: Sequence[Circuit],
    batches: Mapping[str, Batch],
    *,
    figure: Literal["faithfulness", "kl"] = "faithfulness",
    pairings: int = 1,
    ablation: Ablation | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Spread:
    """One interval per source of chance, for the mean figure of one method's circuits.

    Every circuit is measured on every batch under every pairing of prompts with twins (the first is the batch's own,
    others are of :func:`repaired`). An interval of few seeds or templates is narrow for want of them: five levels are
    few, two say little. Examples are drawn within their template.

    Args:
        model: the model that the circuits are of.
        circuits: of one method, under several seeds.
        batches: examples that no method saw, by template or wording.
        figure: faithfulness, as a ratio of means over all, or KL in nats.
        pairings: how many pairings of prompts with twins.
        ablation: what replaces ablated sites; by default what did at discovery.
        seed: of the pairings and of the bootstrap.
        batch_size: pairs of circuit and example per forward pass.

    Raises:
        ValueError: there are no circuits, batches or pairings, or the circuits do not go together.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> found = spread(planted.model, [planted.circuit], {"only": planted.task.test}, pairings=3)
        >>> found.levels, found.intervals["seed"]
        ({'seed': 1, 'template': 1, 'pairing': 3, 'example': 64}, None)
    """
    if not circuits or not batches or pairings < 1:
        raise ValueError(
            f"A spread needs circuits, batches and pairings but got {len(circuits)}, {len(batches)} and {pairings}. "
            "Give at least one of each."
        )
    cells, own = [], {}
    for batch in batches.values():
        found = []
        for pairing in range(pairings):
            paired = repaired(batch, seed=seed + pairing) if pairing else batch
            bench = Bench.of_all(model, circuits, paired, ablation=ablation)
            found.append(_measured(bench, circuits, figure, batch_size))
            own = bench.ablation
        cells.append(torch.stack(found))
    return _spread(figure, cells, own, seed)


def _measured(
    bench: Bench, circuits: Sequence[Circuit], figure: str, batch_size: int
) -> Float[Tensor, "circuit example column"]:
    """Of each circuit the columns whose means make the figure: its own, the full model's, the empty circuit's."""
    one = circuits[0].kept
    ends = torch.stack([torch.ones_like(one), torch.zeros_like(one)])
    kept = torch.cat([torch.stack([circuit.kept for circuit in circuits]), ends])
    name = "logit_difference" if figure == "faithfulness" else figure
    values = torch.stack([own.figure(name).double() for own in bench.measure_each(kept, batch_size=batch_size)])
    return torch.stack([values[:-2], *(end.expand_as(values[:-2]) for end in values[-2:])], -1)


def _spread(figure: str, cells: list[Float[Tensor, "pairing circuit _ column"]], ablation: Any, seed: int) -> Spread:
    means = torch.stack([cell.mean(2) for cell in cells])  # (template, pairing, circuit, column)
    sources = {"seed": means.mean((0, 1)), "template": means.mean((1, 2)), "pairing": means.mean((0, 2))}
    statistic = _share if figure == "faithfulness" else _own
    levels = {name: len(columns) for name, columns in sources.items()} | {"example": sum(c.shape[2] for c in cells)}
    whole = means.mean((0, 1, 2))
    if figure == "faithfulness" and not differ(whole[1:2], whole[2:]):
        return Spread(figure, None, dict.fromkeys(levels), levels, ablation)
    found: dict[str, Interval | None] = {
        name: interval(statistic, *columns.unbind(-1), seed=seed) if len(columns) > 1 else None
        for name, columns in sources.items()
    }
    per_example = [cell.mean((0, 1)) for cell in cells]
    drawn = torch.stack([resampled_means(cell, seed=seed + place) for place, cell in enumerate(per_example)]).mean(0)
    low, high = bounds(statistic(*drawn.unbind(-1))[:, None])
    value = float(statistic(*whole))
    found["example"] = Interval(value, float(low), float(high)) if levels["example"] > len(cells) else None
    return Spread(figure, value, found, levels, ablation)


def _share(own: Tensor, full: Tensor, empty: Tensor) -> Tensor:
    return (own - empty) / (full - empty)


def _own(own: Tensor, full: Tensor, empty: Tensor) -> Tensor:
    return own


def repaired(batch: Batch, *, seed: int = 0) -> Batch:
    """The same prompts with other twins of the batch: each gets that of another prompt of its shape.

    Prompts of one shape have their padding, spans and token types at the same places, so that activations can still be
    exchanged position by position. Among these twins are dealt anew, so that no prompt keeps its own, and none gets
    a twin that is itself. A prompt for which no other twin is found in some tries keeps its own.

    Args:
        batch: prompts with twins.
        seed: of the choice.

    Example:
        >>> import tlprune as tp
        >>> batch = tp.planted("copy").task.test
        >>> other = repaired(batch)
        >>> sorted(other.corrupt.ids.tolist()) == sorted(batch.corrupt.ids.tolist()), other.clean == batch.clean
        (True, True)
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(len(batch))
    for group in _alike(batch):
        order[group] = _dealt(batch, group, generator)
    return dataclasses.replace(batch, corrupt=batch.corrupt.rows(order.to(batch.corrupt.ids.device)))


def _alike(batch: Batch) -> list[Tensor]:
    """Rows whose prompts and twins have the same shape."""
    known = [batch.spans, *_shape(batch.clean), *_shape(batch.corrupt)]
    table = torch.cat([torch.zeros(len(batch), 1), *(one.cpu().float() for one in known if one is not None)], 1)
    _, kinds = table.unique(dim=0, return_inverse=True)
    return [(kinds == kind).nonzero().flatten() for kind in range(int(kinds.max()) + 1)]


def _shape(tokens: Tokens) -> tuple[Tensor | None, Tensor | None]:
    return tokens.attention_mask, tokens.token_types


def _dealt(batch: Batch, group: Tensor, generator: torch.Generator) -> Tensor:
    """For each row of a group the row whose twin it gets."""
    clean, corrupt = batch.clean.ids.cpu(), batch.corrupt.ids.cpu()
    for _ in range(_TRIES if len(group) > 1 else 0):
        shuffled = group[torch.randperm(len(group), generator=generator)]
        given = torch.empty_like(group)
        given[torch.searchsorted(group, shuffled)] = shuffled.roll(1)
        if not bool((clean[group] == corrupt[given]).all(1).any()):
            return given
    return group
