"""Completeness: without some of its sites a circuit should do what the full model does without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.evaluation.bench import Bench, ablations_dict, ablations_text
from tlprune.evaluation.table import aligned
from tlprune.learning.bootstrap import Interval, finite, interval
from tlprune.learning.metrics import Performance
from tlprune.masking.ablation import Ablation
from tlprune.task import Batch, Task


@dataclass(frozen=True)
class Completeness:
    """A circuit against the full model under the same knockouts; printing it gives a table.

    Attributes:
        metric: what was measured.
        knockouts: the sites that were removed, ``(knockout, site)``.
        circuit: the metric of the circuit without them, ``(knockout,)``.
        model: the metric of the full model without them, ``(knockout,)``.
        incompleteness: the mean over knockouts of ``|circuit - model|``, 0 for a complete circuit, with its 95%
            bootstrap interval over examples. Noise in the examples makes absolute differences larger, so neither the
            mean nor the interval reaches 0 unless all differences vanish.
        ablation: what replaced ablated sites, as plain data.
        discovery: what replaced them when the circuit was found, where that is known.
    """

    metric: str
    knockouts: Bool[Tensor, "knockout site"]
    circuit: Float[Tensor, "knockout"]
    model: Float[Tensor, "knockout"]
    incompleteness: Interval
    ablation: Mapping[str, Any]
    discovery: Mapping[str, Any] | None

    @property
    def differences(self) -> Float[Tensor, "knockout"]:
        """Circuit less full model."""
        return self.circuit - self.model

    def as_dict(self) -> dict[str, Any]:
        """Counts and figures of every knockout as plain data."""
        rows = [
            {"removed": removed, "circuit": finite(circuit), "model": finite(model)}
            for removed, circuit, model in self._rows()
        ]
        return {
            "metric": self.metric,
            "incompleteness": self.incompleteness.as_dict(),
            **ablations_dict(self.ablation, self.discovery),
            "knockouts": rows,
        }

    def __str__(self) -> str:
        rows = [
            [str(place), f"{removed:,}", f"{circuit:.4g}", f"{model:.4g}", f"{circuit - model:.4g}"]
            for place, (removed, circuit, model) in enumerate(self._rows(), start=1)
        ]
        lines = aligned(["knockout", "removed", "circuit", "full model", "difference"], rows)
        lines.append(
            f"mean absolute difference of {self.metric}: {self.incompleteness} (95%); "
            f"{ablations_text(self.ablation, self.discovery)}"
        )
        return "\n".join(lines)

    def _rows(self) -> list[tuple[int, float, float]]:
        counts = self.knockouts.sum(1).tolist()
        return list(zip(counts, self.circuit.tolist(), self.model.tolist(), strict=True))


def completeness(
    model: Any,
    circuit: Circuit,
    batch: Batch | Task,
    *,
    knockouts: int = 20,
    fraction: float = 0.5,
    metric: str = "logit_difference",
    ablation: Ablation | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Completeness:
    """Remove random parts ``K`` of a circuit ``C`` and compare ``C`` without ``K`` with the full model without ``K``.

    ``mean_K |m(C - K) - m(M - K)|`` for the mean ``m`` of a metric over examples. A circuit that leaves out a backup
    for some of its parts can be faithful and still fall behind the full model here.

    Source: Wang et al., "Interpretability in the Wild" (2022), section 4.2 (there over heads; here any sites).

    Args:
        model: the model that the circuit is of.
        circuit: the sites that are claimed to be all that matter.
        batch: examples that no method saw, or the task.
        knockouts: how many random parts; each takes two runs over the examples.
        fraction: chance of each of the circuit's sites to be removed, in (0, 1]; 1 compares the empty circuit with
            the complement.
        metric: any mean of a :class:`~tlprune.learning.metrics.Performance`, or one of the task's own.
        ablation: what replaces removed sites; by default what did at discovery.
        seed: of the knockouts.
        batch_size: pairs of circuit and example per forward pass.

    Raises:
        ValueError: the circuit belongs to another model, the metric is not known, or a number is out of range.

    Example:
        >>> import tlprune as tp
        >>> gate = tp.planted("and")
        >>> found = tp.completeness(gate.model, gate.circuit, gate.task, knockouts=5)
        >>> found.incompleteness.value < 1e-4
        True
    """
    _check(knockouts, fraction)
    bench = Bench.of(model, circuit, batch, ablation=ablation)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(knockouts, len(circuit.kept), generator=generator) < fraction
    removed = drawn & circuit.kept.cpu()
    own = _values(bench.measure_each(circuit.kept.cpu() & ~removed, batch_size=batch_size), metric)
    full = _values(bench.measure_each(~removed, batch_size=batch_size), metric)
    incompleteness = interval(_mean_absolute, *(own - full).unbind(0))
    return Completeness(
        metric,
        removed,
        own.mean(1),
        full.mean(1),
        incompleteness,
        bench.ablation,
        circuit.provenance.get("ablation"),
    )


def _mean_absolute(*differences: Tensor) -> Tensor:
    return torch.stack(differences).abs().mean(0)


def _values(performances: list[Performance], metric: str) -> Float[Tensor, "circuit example"]:
    return torch.stack([performance.figure(metric) for performance in performances])


def _check(knockouts: int, fraction: float) -> None:
    if knockouts < 1:
        raise ValueError(f"Completeness needs at least 1 knockout but got {knockouts}. Leave it out for 20.")
    if not 0 < fraction <= 1:
        raise ValueError(
            f"The fraction of the circuit to remove must lie above 0 and at most at 1 but is {fraction}. "
            "Leave it out for 0.5."
        )
