"""The metric of hard circuits: an objective over fixed examples, each circuit run by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.backends.activations import Activations
from tlprune.circuit import Circuit
from tlprune.learning.objectives import Objective, Sum, weighted
from tlprune.masking.ablation import Ablation
from tlprune.masking.cache import reference_predictions
from tlprune.masking.masked import Masked
from tlprune.sites import Sites
from tlprune.task import Batch


@dataclass(frozen=True)
class Part:
    """Some of the examples, with what does not change from circuit to circuit.

    Attributes:
        batch: the examples.
        replaced: what ablated writers send in them.
        reference: what the full model predicts at their answer positions.
    """

    batch: Batch
    replaced: Activations
    reference: Float[Tensor, "example answer vocab"]


class HardMetric:
    """An objective of hard circuits, the mean over examples and answer positions; lower is better.

    Every circuit is a run of the whole model by itself, always in the same parts and the same order, so that equal
    circuits have equal numbers, to the last bit.

    Args:
        model: a TransformerLens model.
        sites: its edges.
        ablation: what replaces a removed edge.
        examples: the examples of the objective's stream.
        objective: one objective, or a sum of several on one stream.
        batch_size: most examples in one run.

    Raises:
        ValueError: the objective is of two streams, or of the complement.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> metric = HardMetric(planted.model, planted.circuit.sites, tp.Resample(), planted.task.test, tp.KL())
        >>> metric(planted.circuit.kept) < 1e-4, metric(~planted.circuit.kept) > 1
        (True, True)
    """

    def __init__(
        self,
        model: Any,
        sites: Sites,
        ablation: Ablation,
        examples: Batch,
        objective: Objective | Sum,
        *,
        batch_size: int = 512,
    ) -> None:
        stream_of(objective)
        everything = Circuit(sites, torch.ones(len(sites), dtype=torch.bool))
        self.masked, self.terms = Masked(model, everything, ablation), weighted(objective)
        self.backend, self.graph, self.examples = self.masked.backend, sites.graph, examples
        self.parts = [self._part(batch.to(self.backend.device)) for batch in examples.split(batch_size)]

    @torch.no_grad()
    def _part(self, batch: Batch) -> Part:
        replaced = self.masked.ablation.replaced(self.backend, batch.clean, batch.corrupt)
        return Part(batch, replaced, reference_predictions(self.backend, batch))

    @torch.no_grad()
    def __call__(self, kept: Bool[Tensor, "edge"]) -> float:
        """The metric of one circuit."""
        runs = (self.masked(part.batch, mask=kept.to(torch.float32), replaced=part.replaced) for part in self.parts)
        return self.mean([self.of(logits, part) for logits, part in zip(runs, self.parts, strict=True)])

    def of(self, logits: Float[Tensor, "example answer vocab"], part: Part) -> float:
        """The metric of one part of the examples, from the logits of a circuit."""
        return sum(weight * float(term(logits, part.batch, part.reference)) for weight, term in self.terms)

    def mean(self, values: list[float]) -> float:
        """The metric of all examples, from those of the parts.

        Raises:
            FloatingPointError: it is not a finite number.
        """
        shares = [len(part.batch) / len(self.examples) for part in self.parts]
        value = sum(share * value for share, value in zip(shares, values, strict=True))
        if not math.isfinite(value):
            raise FloatingPointError(
                f"A search that compares circuits needs finite numbers but a circuit's metric is {value}. Look for "
                "infinities in the model's logits under this ablation, or choose another objective."
            )
        return value


def stream_of(objective: Objective | Sum) -> str:
    """The stream whose examples an objective of hard circuits is of.

    Raises:
        ValueError: it is of two streams, or of the complement.
    """
    terms = [term for _, term in weighted(objective)]
    streams, runs = sorted({term.on for term in terms}), sorted({term.run for term in terms})
    if len(streams) != 1 or runs != ["kept"]:
        raise ValueError(
            f"A metric of circuits needs one stream of examples and the run of what is kept, but the objective is on "
            f"{', '.join(streams) or 'none'} and of {', '.join(runs) or 'none'}. Give terms with one on= and "
            "run='kept'."
        )
    return streams[0]
