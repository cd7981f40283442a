"""Many circuits at once: the metric of several candidates that differ little from a current circuit."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from tlprune.learning.hard_metric import HardMetric, Part
from tlprune.masking.edges import run_edges
from tlprune.task import Tokens


@runtime_checkable
class Trials(Protocol):
    """Runs of candidates beside each other. Their metrics equal those of single runs up to rounding.

    Attributes:
        least: as many candidates cost about what one costs.
        most: as many fit in one run.
    """

    least: int
    most: int

    def start(self, kept: Bool[Tensor, "edge"]) -> None:
        """Make a circuit the current one."""
        ...

    def values(self, candidates: Bool[Tensor, "candidate edge"]) -> list[float]:
        """The metric of each candidate."""
        ...

    def accept(self, index: int) -> None:
        """Make a candidate of the last :meth:`values` the current circuit."""
        ...


class WholeTrials:
    """Each run is one of the whole model: for models whose runs cannot begin in the middle, such as encoders.

    Args:
        metric: of the circuits.
        batch_size: most prompts in one run, the same one under several candidates counting as several.
    """

    def __init__(self, metric: HardMetric, *, batch_size: int) -> None:
        self.metric = metric
        self.most = max(1, batch_size // max(len(part.batch) for part in metric.parts))
        self.least = least_candidates(metric)

    def start(self, kept: Bool[Tensor, "edge"]) -> None:
        """Nothing is kept of the current circuit."""

    def accept(self, index: int) -> None:
        """Nothing is kept of the current circuit."""

    @torch.no_grad()
    def values(self, candidates: Bool[Tensor, "candidate edge"]) -> list[float]:
        columns = zip(*(self._part(part, candidates) for part in self.metric.parts), strict=True)
        return [self.metric.mean(list(column)) for column in columns]

    def _part(self, part: Part, candidates: Tensor) -> list[float]:
        backend, count, size = self.metric.backend, len(candidates), len(part.batch)
        masks = candidates.to(backend.device, torch.promote_types(backend.dtype, torch.float32))
        replaced = part.replaced.map(lambda value: repeated(value, count, size))
        logits = run_edges(
            backend, self.metric.graph, repeated_tokens(part.batch.clean, count), masks.repeat_interleave(size, 0),
            replaced, positions=part.batch.positions.repeat(count, 1),
        )  # fmt: skip
        return [self.metric.of(one, part) for one in logits.unflatten(0, (count, size))]


FREE, MOST_FREE = 1 << 24, 16


def least_candidates(metric: HardMetric) -> int:
    """How many candidates a run of small matrices has room for before its arithmetic outweighs what a run costs anyway.

    That cost is of calls and hooks, some milliseconds, and about ``FREE`` times what ``tokens * d_model ** 2`` of one
    candidate is. More than ``MOST_FREE`` are never free, because each one's metric is taken by itself.
    """
    tokens = max(part.batch.clean.ids.numel() for part in metric.parts)
    return min(MOST_FREE, max(1, FREE // (tokens * metric.backend.d_model**2)))


def repeated(value: Tensor, count: int, size: int) -> Tensor:
    """A tensor over ``size`` examples once for every candidate; of one that is the same for all examples, itself."""
    return value if len(value) != size or size == 1 == len(value) else value.repeat(count, *[1] * (value.dim() - 1))


def repeated_tokens(tokens: Tokens, count: int) -> Tokens:
    """Prompts once for every candidate."""
    examples = torch.arange(len(tokens.ids), device=tokens.ids.device)
    return tokens.rows(examples.repeat(count))
