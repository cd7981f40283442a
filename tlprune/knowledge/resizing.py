"""How much of a subnetwork is needed: figures as it is shrunk, or grown by other weights, at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tlprune.circuit import Circuit
from tlprune.evaluation.table import aligned
from tlprune.knowledge.baselines import origin, weights_of
from tlprune.knowledge.cases import NAMES, Split
from tlprune.knowledge.figures import KnowledgeFigures, knowledge_figures
from tlprune.knowledge.plots import ratio_lines
from tlprune.learning.bootstrap import RESAMPLES
from tlprune.task import Task

SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)


def resized(circuit: Circuit, scale: float, *, seed: int = 0) -> Circuit:
    """A circuit of weights made smaller or larger at random, in each matrix by the same factor.

    A smaller one is part of it, a larger one has all of it and random others beside; of one seed each is part of every
    larger one. A matrix has no more sites than it has.

    Args:
        circuit: of weights, rows or columns.
        scale: how many times as many sites; rounded in each matrix.
        seed: of the draws.

    Raises:
        ValueError: the scale is negative or the circuit is not of weights.

    Example:
        >>> import tlprune as tp
        >>> sites = tp.weights(tp.planted("induction").model, "blocks.1.mlp.W_in")
        >>> found = tp.Circuit(sites, torch.arange(len(sites)) < 100)
        >>> half, double = resized(found, 0.5), resized(found, 2)
        >>> len(half), half.iou(found), len(double), double.iou(found)
        (50, 0.5, 200, 0.5)
    """
    if not 0 <= scale < float("inf"):
        raise ValueError(f"A subnetwork can be made 0 or more times as large but {scale} was asked for. Give 0.5 or 2.")
    group, generator = weights_of(circuit), torch.Generator().manual_seed(seed)
    kept = []
    for part in circuit.kept.split(group.sizes):
        place = torch.rand(len(part), generator=generator, dtype=torch.float64) + (~part).double()
        own = torch.zeros_like(part)
        own[place.argsort(stable=True)[: round(scale * int(part.sum()))]] = True
        kept.append(own)
    return circuit.like(torch.cat(kept), {**origin(circuit), "operation": "resized", "scale": scale, "seed": seed})


@dataclass(frozen=True)
class Sensitivity:
    """Figures of a subnetwork at other sizes; printing it gives a table.

    Attributes:
        figures: of all, without what each keeps.
        names: of the circuits in them, by scale.
    """

    figures: KnowledgeFigures
    names: Mapping[float, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"scales": {name: scale for scale, name in self.names.items()}, **self.figures.as_dict()}

    def __str__(self) -> str:
        found = self.figures
        rows = [
            [name, f"{found.sizes[name]:,}", f"{100 * found.sparsity(name):.2f}%", *self._ratios(name)]
            for name in self.names.values()
        ]
        header = ["size", "sites", "sparsity", *(f"{word}, held out" for word in NAMES.values())]
        return "\n".join([*aligned(header, rows), "perplexity without it, over the full model's"])

    def _ratios(self, name: str) -> list[str]:
        return [f"{self.figures.at(stream, circuit=name).ratio.value:.3f}" for stream in NAMES]

    def plot(self) -> Any:
        """Lines of plotly: ratio of perplexities of target, control and text along the size.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        found = self.figures
        ratios = {
            word: {float(found.sizes[name]): found.at(stream, circuit=name).ratio for name in self.names.values()}
            for stream, word in NAMES.items()
        }
        return ratio_lines(ratios, title="A subnetwork made smaller and larger at random", along="sites removed")


def knowledge_sensitivity(
    model: Any,
    circuit: Circuit,
    task: Task,
    *,
    scales: Sequence[float] = SCALES,
    held_out: Split = "test",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Sensitivity:
    """Measure a subnetwork shrunk and grown at random: whether all of it is needed, and what more would harm.

    Args:
        model: the model that it is of.
        circuit: what is removed.
        task: as of :func:`tlprune.knowledge_figures`.
        scales: sizes, as multiples of its own.
        held_out: the split that is held out.
        resamples: draws of the bootstrap.
        seed: of what is left out and put in; of one seed each is part of every larger one.

    Raises:
        ValueError: as ``resized`` and :func:`tlprune.knowledge_figures`.

    Source: Bayazit et al., "Discovering Knowledge-Critical Subnetworks in Pretrained Language Models" (EMNLP 2024),
    section 5.
    """
    names = {float(scale): f"x {scale:g}" for scale in sorted(scales)}
    circuits = {name: resized(circuit, scale, seed=seed) for scale, name in names.items()}
    found = knowledge_figures(
        model, circuits, task, kinds=["remaining"], held_out=held_out, resamples=resamples, seed=seed
    )
    return Sensitivity(found, names)
