"""How much memory a run takes, by what it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

PARTS: tuple[str, ...] = ("weights", "masks", "buffers", "replacements", "activations", "caches", "temporaries")


@dataclass(frozen=True)
class Estimate:
    """Bytes of the model's device at the moment of a training step that takes the most.

    Attributes:
        weights: the model's parameters and buffers.
        masks: their scores, the scores' gradient, AdamW's moments, and the mask values that are drawn.
        buffers: the edge engine's differences and gradients of all writers.
        replacements: what ablated writers send in this batch, and the streams of the replacing run.
        activations: what is alive of the forward pass beside these: what autograd keeps of the plain model between
            readers and writers (queries, keys, values, attention scores, neurons, logits), and what a part of the pass
            needs for a moment, if that is where the most is needed.
        caches: replacements and reference predictions of all examples of the training split.
        temporaries: what the backward pass holds at this moment.
        batch: examples per step.
        length: tokens per prompt.
        dtype: of the weights.
    """

    weights: int
    masks: int
    buffers: int
    replacements: int
    activations: int
    caches: int
    temporaries: int
    batch: int
    length: int
    dtype: torch.dtype
    again: Callable[[int], Estimate] = field(repr=False, compare=False)

    @property
    def total(self) -> int:
        """The most bytes that are needed at one time."""
        return sum(getattr(self, part) for part in PARTS)

    @property
    def beside_weights(self) -> int:
        """What is needed where the model is already."""
        return self.total - self.weights

    @property
    def line(self) -> str:
        """What is needed, in one line."""
        largest = max((part for part in PARTS if part != "weights"), key=lambda part: getattr(self, part))
        return (
            f"A step of {self.batch:,} x {self.length:,} tokens takes {shown(self.beside_weights)} beside "
            f"{shown(self.weights)} of weights, most of it for {largest} ({shown(getattr(self, largest))})."
        )

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        lines = [f"{self.batch:,} x {self.length:,} tokens, {kind}"]
        lines += [f"{part:<14}{shown(getattr(self, part)):>12}" for part in PARTS]
        return "\n".join([*lines, f"{'total':<14}{shown(self.total):>12}"])

    def largest_batch(self, memory: float) -> int:
        """The most examples per step that fit into so many bytes; 0 where not even one does.

        Memory grows with the batch by straight pieces that get steeper. A line through two sizes says where to look
        next, so that few are tried.
        """
        low = self.again(1)
        if low.total > memory:
            return 0
        high = self if self.batch > 1 else self.again(2)
        while high.total <= memory:
            guess = min(_along(low, high, memory), 64 * high.batch)
            if guess <= high.batch or high.batch <= low.batch:  # the latter where a run has no more examples
                return high.batch
            low, high = high, self.again(guess)
        while high.batch - low.batch > 1:
            guess = min(max(_along(low, high, memory), low.batch + 1), high.batch - 1)
            found = self.again(guess)
            low, high = (found, high) if found.total <= memory else (low, found)
        return low.batch


def _along(low: Estimate, high: Estimate, memory: float) -> int:
    """Where a line through two sizes meets so many bytes."""
    slope = (high.total - low.total) / max(1, high.batch - low.batch)
    return low.batch + int((memory - low.total) / max(1.0, slope))


def shown(count: float) -> str:
    """Bytes for people.

    Example:
        >>> shown(1_400), shown(25 * 2**20), shown(141e9)
        ('1.4 KiB', '25.0 MiB', '131.3 GiB')
    """
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1024:.1f} KiB"
