"""How the examples of a step are laid out: over processes, and in pieces that fit into memory.

An objective is a mean over answers, so the mean over a part is the sum of those of its pieces, each weighted by its
share of the answers; and so are gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from tlprune.processes import Processes
from tlprune.task import Batch


@dataclass(frozen=True)
class Piece:
    """Consecutive examples of a part, which are run at once.

    Attributes:
        process: which runs them.
        begin: the first.
        end: behind the last.
    """

    process: int
    begin: int
    end: int

    def of(self, part: Batch) -> Batch:
        """Its examples."""
        return part.rows(torch.arange(self.begin, self.end))


@dataclass(frozen=True)
class Layout:
    """Which examples of a step are run where and together. It changes results by rounding only.

    Attributes:
        processes: which share every step.
        micro_batch: examples that are run at once, at most; ``None`` for as many as share a mask sample.

    Raises:
        ValueError: ``micro_batch`` is below 1.

    Example:
        >>> two = Layout(Processes(0, 2), micro_batch=2)
        >>> [[(piece.process, piece.begin, piece.end) for piece in part] for part in two.pieces(7, 4)]
        [[(0, 0, 2), (0, 2, 3), (1, 3, 4)], [(1, 0, 2), (1, 2, 3)]]
    """

    processes: Processes = field(default_factory=Processes)
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(
                f"A micro-batch needs at least 1 example but is to have {self.micro_batch}. Ask for more, or leave "
                "micro_batch out."
            )

    def pieces(self, size: int, part: int) -> list[list[Piece]]:
        """The pieces of a batch of ``size`` examples in parts of ``part``; each process has consecutive ones."""
        return [list(self._pieces(size, begin, min(begin + part, size))) for begin in range(0, size, part)]

    def _pieces(self, size: int, begin: int, end: int) -> Iterator[Piece]:
        for process in range(self.processes.count):
            own_begin, own_end = self.processes.share(size, of=process)
            first, last = max(begin, own_begin), min(end, own_end)
            step = self.micro_batch or size
            for at in range(first, last, step):
                yield Piece(process, at - begin, min(at + step, last) - begin)

    def own(self, number: int) -> bool:
        """Whether this process does the ``number``-th of several things."""
        return number % self.processes.count == self.processes.rank


def answer_counts(batch: Batch) -> Int[Tensor, "example"]:
    """By how much each example weighs in a mean over answers."""
    return batch.answered.sum(1)
