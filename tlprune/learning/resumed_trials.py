"""Candidates run from where they differ from the current circuit, whose activations are kept."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from tlprune.graph import Graph
from tlprune.grouping import of_parts, spread
from tlprune.learning.hard_metric import HardMetric, Part
from tlprune.learning.trials import Trials, WholeTrials, least_candidates
from tlprune.masking.reach import Reach, changes
from tlprune.masking.resumed import ResumedRun, Standing

MOST_BYTES = 1 << 30  # for what all writers send in the candidates of one run


class ResumedTrials:
    """Only what differs between the candidates and the current circuit is computed.

    Args:
        metric: of the circuits.
        reach: how changes spread along the edges that circuits are of.
        batch_size: most prompts in one run, the same one under several candidates counting as several.
    """

    def __init__(self, metric: HardMetric, reach: Reach, *, batch_size: int) -> None:
        self.metric, self.graph, self.reach = metric, reach.graph, reach
        self.current = torch.ones(self.graph.n_edges, dtype=torch.bool)
        self.standings = [Standing(metric.backend, self.graph, part.batch, part.replaced) for part in metric.parts]
        self.candidates, self.runs = self.current[None], []
        largest = max(standing.differences.nbytes for standing in self.standings)
        most = batch_size // max(len(part.batch) for part in metric.parts)
        self.most = max(1, min(most, MOST_BYTES // largest))
        self.least = least_candidates(metric)

    def start(self, kept: Bool[Tensor, "edge"]) -> None:
        if torch.equal(kept, self.current):
            return
        for standing in self.standings:
            standing.begin()
        self.current = torch.ones_like(kept)
        if not kept.all():
            self.values(kept[None])
            self.accept(0)

    def accept(self, index: int) -> None:
        for standing, run in zip(self.standings, self.runs, strict=True):
            standing.accept(run, index)
        self.current = self.candidates[index]

    @torch.no_grad()
    def values(self, candidates: Bool[Tensor, "candidate edge"]) -> list[float]:
        found = changes(self.reach, self.current, candidates)
        masks = candidates.to(self.metric.backend.device, self.metric.backend.dtype)
        self.candidates, self.runs = candidates, [ResumedRun(one, found, masks) for one in self.standings]
        pairs = zip(self.runs, self.metric.parts, strict=True)
        return [self.metric.mean(list(column)) for column in zip(*(self._of(*pair) for pair in pairs), strict=True)]

    def _of(self, run: ResumedRun, part: Part) -> list[float]:
        return [self.metric.of(logits, part) for logits in run.logits()]


class GroupedTrials:
    """Candidates of edges that stand for several, run as circuits of these.

    Args:
        trials: of the members.
        graph: the edges that stand for them.
        members: theirs.
    """

    def __init__(self, trials: Trials, graph: Graph, members: Graph) -> None:
        self.trials, self.graph, self.members = trials, graph, members
        self.least, self.most = trials.least, trials.most

    def start(self, kept: Bool[Tensor, "edge"]) -> None:
        self.trials.start(spread(kept, self.graph, self.members))

    def values(self, candidates: Bool[Tensor, "candidate edge"]) -> list[float]:
        return self.trials.values(spread(candidates, self.graph, self.members))

    def accept(self, index: int) -> None:
        self.trials.accept(index)


def reach_of(metric: HardMetric) -> Reach:
    """How changes spread in the metric's model."""
    return Reach(metric.graph, coupled=metric.backend.coupled)


def trials_of(metric: HardMetric, reach: Reach, *, batch_size: int) -> Trials:
    """Candidates of a model side by side, in the quickest way that it allows."""
    if metric.graph.architecture.post_norm:
        return WholeTrials(metric, batch_size=batch_size)
    members = replace(reach, graph=of_parts(reach.graph))
    trials = ResumedTrials(metric, members, batch_size=batch_size)
    return trials if members == reach else GroupedTrials(trials, reach.graph, members.graph)
