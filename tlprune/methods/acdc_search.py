"""The search of ACDC for one or several thresholds, with many removals tried in one run.

Every candidate of a run is the circuit that would be there if all guesses about earlier edges of the run were right,
less one edge. So verdicts hold up to the first wrong guess, and that one holds too; the search goes on behind it, and
what the rest of the run showed are the guesses of the next. No guess can change a decision.

Thresholds go together as long as they decide alike. Where an edge's rise lies between two of them they part: some go
on, the others wait at this point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from tlprune.learning.trials import Trials
from tlprune.masking.reach import Reach


@dataclass(frozen=True)
class Point:
    """Where a search stands.

    Attributes:
        thresholds: those that decided alike so far, ascending.
        kept: the current circuit.
        undecided: edges below this number are still to be tried.
        metric: of the current circuit.
    """

    thresholds: tuple[float, ...]
    kept: Bool[Tensor, "edge"]
    undecided: int
    metric: float


@dataclass
class Counts:
    """What a search did.

    Attributes:
        evaluated: edges whose metric was measured and used.
        dead: edges removed without a run, because no path of kept edges led from their reader to the logits.
        runs: runs with candidates side by side.
        near_ties: edges that were decided by runs of single circuits, because rounding could have told their rise
            from the threshold either way.
    """

    evaluated: int = 0
    dead: int = 0
    runs: int = 0
    near_ties: int = 0


@dataclass
class Guesses:
    """Which edges will be removed: those whose rise was below the threshold when last seen; others as most before."""

    rises: dict[int, float] = field(default_factory=dict)
    verdicts: list[bool] = field(default_factory=list)

    def removed(self, edge: int, threshold: float) -> bool:
        if edge in self.rises:
            return self.rises[edge] < threshold
        return 2 * sum(self.verdicts) >= len(self.verdicts)


class Search:
    """Decides edge after edge, from the last of the graph to the first, as :func:`acdc_plain` would.

    Args:
        trials: the metric of many candidates.
        metric: that of one circuit, exactly as :func:`acdc_plain` is given it.
        reach: the edges, and how changes spread along them.
        rounding: how far the two may be apart, relative to the metric's size and to 1 at least.
        waiting: where to begin; the last first.
        done: circuits found so far, by threshold.
        counts: what was done so far.
    """

    def __init__(
        self,
        trials: Trials,
        metric: Callable[[Tensor], float],
        reach: Reach,
        *,
        rounding: float,
        waiting: list[Point],
        done: dict[float, Tensor] | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.trials, self.metric, self.rounding = trials, metric, rounding
        self.reach, self.graph = reach, reach.graph
        self.waiting, self.done, self.counts = waiting, done or {}, counts or Counts()
        self.width, self.guesses = trials.least, Guesses()
        self._alone: list[tuple[Tensor, float]] = []

    @staticmethod
    def of(
        trials: Trials,
        metric: Callable[[Tensor], float],
        reach: Reach,
        thresholds: Sequence[float],
        *,
        rounding: float,
    ) -> Search:
        """A search from the full circuit on."""
        everything = torch.ones(reach.graph.n_edges, dtype=torch.bool)
        start = Point(tuple(sorted(set(thresholds))), everything, reach.graph.n_edges, metric(everything))
        return Search(trials, metric, reach, rounding=rounding, waiting=[start])

    @property
    def total(self) -> int:
        """How many verdicts there will be."""
        return self.graph.n_edges * (len(self.done) + sum(len(point.thresholds) for point in self.waiting))

    @property
    def decided(self) -> int:
        """How many verdicts there are by now, of one edge for one threshold each."""
        waiting = sum((self.graph.n_edges - point.undecided) * len(point.thresholds) for point in self.waiting)
        return waiting + len(self.done) * self.graph.n_edges

    def __iter__(self) -> Iterator[None]:
        """Decide until all thresholds have their circuit, run by run."""
        while self.waiting:
            self.trials.start(self.waiting[-1].kept)
            self.guesses = Guesses()
            yield from self._to_the_end()

    def _to_the_end(self) -> Iterator[None]:
        while self.waiting[-1].undecided:
            edges = self._edges_ahead()
            if edges:
                self._try(edges)
            yield
        self._check_metric(self.waiting[-1])
        point = self.waiting.pop()
        self.done |= dict.fromkeys(point.thresholds, point.kept)

    def _edges_ahead(self) -> list[int]:
        """The next edges to try, all of readers that share their upstream; of dead readers all edges are removed."""
        point = self.waiting[-1]
        readers = next(one for one in reversed(self.graph.readers) if one.start < point.undecided)
        live = self.reach.live(readers, self.reach.needed(point.kept))
        kept = point.kept.clone()
        dead = ~live[:, None] & readers.block(kept)
        readers.block(kept)[dead] = False
        self.counts.dead += int(dead.sum())
        rows = torch.arange(readers.start, readers.start + readers.n_edges).view(-1, readers.width)[live]
        ahead = [edge for edge in rows.flatten().tolist() if edge < point.undecided][::-1]
        undecided = ahead[0] + 1 if ahead else readers.start
        self.waiting[-1] = replace(point, kept=kept, undecided=undecided)
        return ahead[: min(self.width, self.trials.most)]

    def _check_metric(self, point: Point) -> None:
        """Raise unless the circuit has by itself the metric that it had among candidates."""
        alone = self._by_itself(point.kept)
        if abs(alone - point.metric) > 100 * self.rounding * max(1.0, abs(alone)):
            raise RuntimeError(
                f"A circuit's metric must not depend on what is run beside it, but it is {point.metric} among other "
                f"candidates and {alone} alone. Remove hooks of yours that tell examples or positions apart."
            )

    # ---- one run

    def _try(self, edges: list[int]) -> None:
        point = self.waiting[-1]
        guesses = [self.guesses.removed(edge, point.thresholds[0]) for edge in edges]
        candidates = _candidates(point.kept, edges, guesses)
        values = self.trials.values(candidates)
        self.counts.runs += 1
        used = self._decide(edges, guesses, candidates, values)
        rises = _rises(point.metric, guesses, values)
        self.guesses.rises = dict(zip(edges[used:], rises[used:], strict=True))
        self._widen(used, len(edges))

    def _decide(self, edges: list[int], guesses: list[bool], candidates: Tensor, values: list[float]) -> int:
        """Decide edges until a guess was wrong; gives how many were decided."""
        accepted, used = None, 0
        for used, (edge, guess, without, value) in enumerate(zip(edges, guesses, candidates, values, strict=True), 1):
            removed = self._removed(edge, guess, without, value)
            self.guesses.verdicts = [*self.guesses.verdicts[-7:], removed]
            accepted = used - 1 if removed else accepted
            if removed != guess:
                break
        if accepted is not None:
            self.trials.accept(accepted)
        return used

    def _removed(self, edge: int, guess: bool, without: Tensor, value: float) -> bool:
        """Decide one edge; where thresholds part, the search goes on with those that decide as was guessed."""
        point = self.waiting[-1]
        rise = self._rise(point, without, value)
        kept = tuple(threshold for threshold in point.thresholds if not rise < threshold)
        removed = tuple(threshold for threshold in point.thresholds if rise < threshold)
        ways = {
            True: Point(removed, without, edge, value),
            False: Point(kept, point.kept, edge, point.metric),
        }
        taken = guess if ways[guess].thresholds else not guess
        self.waiting.pop()
        self.waiting += [way for way in (ways[not taken], ways[taken]) if way.thresholds]
        self.counts.evaluated += 1
        return taken

    def _rise(self, point: Point, without: Tensor, value: float) -> float:
        """How much the metric rises without one edge; measured alone where rounding could change the verdict."""
        rise = value - point.metric
        margin = self.rounding * max(1.0, abs(value))
        if all(abs(rise - threshold) > margin for threshold in point.thresholds):
            return rise
        self.counts.near_ties += 1
        before = self._by_itself(point.kept)
        return self._by_itself(without) - before

    def _by_itself(self, kept: Tensor) -> float:
        """The metric of one circuit; the last two are remembered, because one of them is in the next comparison."""
        found = next((value for circuit, value in self._alone if torch.equal(circuit, kept)), None)
        value = self.metric(kept) if found is None else found
        others = [one for one in self._alone if not torch.equal(one[0], kept)]
        self._alone = [*others[-1:], (kept, value)]
        return value

    def _widen(self, used: int, tried: int) -> None:
        if used == tried:
            self.width = min(2 * max(self.width, tried), self.trials.most)
        elif 2 * used < tried:
            self.width = max(self.width // 2, self.trials.least)


def _rises(metric: float, guesses: list[bool], values: list[float]) -> list[float]:
    """How much each edge's removal raises the metric, if all earlier ones went as guessed."""
    rises = []
    for guess, value in zip(guesses, values, strict=True):
        rises.append(value - metric)
        metric = value if guess else metric
    return rises


def _candidates(kept: Tensor, edges: list[int], guesses: list[bool]) -> Bool[Tensor, "candidate edge"]:
    """For each edge the circuit without it, if all earlier ones went as guessed."""
    rows, current = [], kept
    for edge, guess in zip(edges, guesses, strict=True):
        without = current.clone()
        without[edge] = False
        rows.append(without)
        current = without if guess else current
    return torch.stack(rows)
