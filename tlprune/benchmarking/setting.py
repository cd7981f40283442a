"""Where methods meet: a model, a task, an ablation, test examples, and the true circuit where one is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.evaluation.baselines import faithfulness
from tlprune.evaluation.bench import Bench, ablation_text
from tlprune.learning.bootstrap import Interval, finite
from tlprune.learning.metrics import Performance
from tlprune.masking.ablation import Ablation
from tlprune.masking.sites import edges
from tlprune.sites import Sites
from tlprune.task import Task

KEPT_PER_EXAMPLE = ("kl", "logit_difference", "accuracy")


@dataclass
class Setting:
    """One model on one task under one ablation.

    Attributes:
        model: the model.
        model_name: what tables call it.
        task: methods see its discovery part alone; circuits are measured on its test examples.
        ablation: what replaces ablated sites in every evaluation.
        discovery: what replaces them while methods search.
        truth: the true circuit, where one is known.
        batch_size: pairs of circuit and example per forward pass.
    """

    model: Any
    model_name: str
    task: Task
    ablation: Ablation
    discovery: Ablation
    truth: Circuit | None = None
    batch_size: int = 64
    _benches: dict[Sites, Bench] = field(default_factory=dict)
    _ends: dict[Sites, tuple[Performance, Performance]] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, Any]:
        """What tells rows of this setting from others."""
        return {
            "model": self.model_name,
            "task": self.task.name,
            "ablation": ablation_text(self.ablation.as_dict()),
            "discovery_ablation": ablation_text(self.discovery.as_dict()),
        }

    @property
    def sites(self) -> Sites:
        """All edges, merged embeddings: what sizes are parts of. Of a true circuit, its own."""
        return self.truth.sites if self.truth is not None else edges(self.model)

    @property
    def total(self) -> int:
        return len(self.sites)

    def cell(self, **what: Any) -> str:
        """The key of one search here: the same for the same model, prompts, ablations and settings, else another."""
        known = {"model": backend_of(self.model).fingerprint(), "task": self.task.fingerprint, **self.names}
        known |= {"truth": None if self.truth is None else len(self.truth), **what}
        return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def bench(self, sites: Sites) -> Bench:
        """Where circuits of these sites are measured; replacements and predictions are computed once for all."""
        if sites not in self._benches:
            nothing = Circuit(sites, torch.zeros(len(sites), dtype=torch.bool))
            self._benches[sites] = Bench.of(self.model, nothing, self.task, ablation=self.ablation)
        return self._benches[sites]

    def ends(self, sites: Sites) -> tuple[Performance, Performance]:
        """The full model and the empty circuit."""
        if sites not in self._ends:
            kept = torch.stack([torch.ones(len(sites), dtype=torch.bool), torch.zeros(len(sites), dtype=torch.bool)])
            full, empty = self.bench(sites).measure_each(kept, batch_size=self.batch_size)
            self._ends[sites] = full, empty
        return self._ends[sites]

    def measure(self, circuits: Sequence[Circuit]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """Figures of circuits of one set of sites, and their figures for every example, ``(circuit, example)``."""
        sites = circuits[0].sites
        full, empty = self.ends(sites)
        kept = torch.stack([circuit.kept for circuit in circuits])
        found = self.bench(sites).measure_each(torch.cat([kept, ~kept]), batch_size=self.batch_size)
        own, complements = found[: len(circuits)], found[len(circuits) :]
        rows = [
            {**_figures(one, full, empty), **_necessity(other, full, empty)}
            for one, other in zip(own, complements, strict=True)
        ]
        return rows, stacked(own)


def stacked(performances: Sequence[Performance]) -> dict[str, Tensor]:
    """The figures by which circuits are compared example by example."""
    known = performances[0].per_example()
    return {
        name: torch.stack([one.per_example()[name] for one in performances])
        for name in KEPT_PER_EXAMPLE
        if name in known
    }


def _figures(own: Performance, full: Performance, empty: Performance) -> dict[str, Any]:
    means, share = own.means(), faithfulness(own, full, empty)
    kl = own.intervals()["kl"]
    names = ("accuracy", "agreement", "logit_difference")
    return {
        **bounded("faithfulness", share),
        **bounded("kl", kl),
        **{name: finite(means[name]) for name in names if name in means},
    }


def _necessity(complement: Performance, full: Performance, empty: Performance) -> dict[str, Any]:
    share = faithfulness(complement, full, empty)
    known = {} if share is None else {"complement_faithfulness": finite(share.value)}
    return {"complement_kl": finite(complement.means()["kl"]), **known}


def bounded(name: str, interval: Interval | None) -> dict[str, float | None]:
    """A figure and both ends of its interval as plain data; nothing that is not a number."""
    if interval is None:
        return {}
    values: Mapping[str, float] = {
        name: interval.value,
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
    }
    return {key: finite(value) for key, value in values.items()}
