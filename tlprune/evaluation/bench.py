"""A model, test examples and an ablation, ready to run any circuit of one graph."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.learning.metrics import Performance, measure, measure_each
from tlprune.masking.ablation import Ablation
from tlprune.masking.cache import RunCache
from tlprune.masking.checks import check_model
from tlprune.masking.masked import Masked, masked_circuit
from tlprune.statistic import Statistic
from tlprune.task import Batch, Metric, Task


@dataclass(frozen=True)
class Bench:
    """Where circuits are measured; replacements and the full model's predictions are computed once.

    Attributes:
        masked: the model and the ablation.
        examples: numbered from 0.
        cache: of these examples.
        metrics: of the task.
    """

    masked: Masked
    examples: Batch
    cache: RunCache
    metrics: Mapping[str, Metric | Statistic]

    @staticmethod
    def of(model: Any, circuit: Circuit, examples: Batch | Task, *, ablation: Ablation | None) -> Bench:
        """A bench for circuits of this one's graph; of a task the test examples and its own metrics are taken.

        Raises:
            ValueError: the circuit belongs to another model, or was found under an ablation that needs its reference.
        """
        masked = masked_circuit(model, circuit, ablation)
        task = examples if isinstance(examples, Task) else None
        batch = in_order(examples.test if isinstance(examples, Task) else examples)
        cache = masked.cache(batch)
        return Bench(masked, batch, cache, task.metrics if task else {})

    @staticmethod
    def of_all(model: Any, circuits: Sequence[Circuit], examples: Batch | Task, *, ablation: Ablation | None) -> Bench:
        """A bench for all of these circuits.

        Raises:
            ValueError: as :meth:`of`; or the circuits have different sites, or were found under different ablations
                and none is given.
        """
        first, *others = circuits
        differing = [other for other in others if other.sites != first.sites]
        if differing:
            raise ValueError(
                f"Circuits need the same sites to be compared but have {first.sites} and {differing[0].sites}. "
                "Find all with the same model, sites and convention."
            )
        told = {json.dumps(one.provenance.get("ablation", {"name": "resample"}), sort_keys=True) for one in circuits}
        if ablation is None and len(told) > 1:
            raise ValueError(
                f"Circuits need one ablation to be compared but were found under {' and '.join(sorted(told))}. Say "
                "which: ablation=..."
            )
        bench = Bench.of(model, first, examples, ablation=ablation)
        for other in others:
            check_model(bench.masked.backend, other, bench.masked.ablation)
        return bench

    @property
    def ablation(self) -> dict[str, Any]:
        return self.masked.ablation.as_dict()

    def measure(self, circuit: Circuit) -> Performance:
        return measure(self.masked, circuit.kept, self.examples, cache=self.cache, metrics=self.metrics)

    def measure_each(self, kept: Bool[Tensor, "circuit edge"], *, batch_size: int) -> list[Performance]:
        return measure_each(
            self.masked, kept, self.examples, cache=self.cache, batch_size=batch_size, metrics=self.metrics
        )


def in_order(batch: Batch) -> Batch:
    """The examples numbered from 0, as a cache of just these needs them."""
    return dataclasses.replace(batch, index=torch.arange(len(batch)))


def ablation_text(ablation: Mapping[str, Any]) -> str:
    """An ablation as tables name it.

    Example:
        >>> ablation_text({"name": "resample"}), ablation_text({"name": "mean", "over": "positions", "prompts": 8})
        ('resample', 'mean (over positions, prompts 8)')
    """
    details = ", ".join(f"{name} {value}" for name, value in ablation.items() if name != "name")
    return f"{ablation['name']} ({details})" if details else str(ablation["name"])


def ablations_dict(own: Mapping[str, Any], discovery: Mapping[str, Any] | None) -> dict[str, Any]:
    """Both ablations of a measurement as plain data."""
    return {"ablation": dict(own), "discovery_ablation": discovery and dict(discovery)}


def ablations_text(own: Mapping[str, Any], discovery: Mapping[str, Any] | None) -> str:
    """The ablation of a measurement, and that of discovery where it is known to be another."""
    text = f"{ablation_text(own)} ablation"
    return text if discovery in (None, own) else f"{text} (found under {ablation_text(discovery or {})} ablation)"
