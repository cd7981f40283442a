"""What a search costs in runs of the model, which no clock and no other work on the machine can change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tlprune.backends import backend_of


@dataclass
class Passes:
    """Prompts that went through the model, counted layer by layer: half of the layers are half a pass.

    Attributes:
        forward: prompts run forward.
        backward: prompts run backward, which with weights that collect no gradient costs what a forward run does.
    """

    forward: float = 0.0
    backward: float = 0.0

    @property
    def forward_equivalents(self) -> float:
        """Both together, in forward runs of one prompt."""
        return self.forward + self.backward


@contextmanager
def counted(model: Any) -> Iterator[Passes]:
    """Count the runs of a model until the block ends, whoever runs it: plain, masked, or with many circuits at once.

    A prompt under ten circuits is ten runs. Mixing edges, norms of encoders' edges and the optimiser are not counted;
    seconds tell of these.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> batch = planted.task.test
        >>> with counted(planted.model) as passes:
        ...     logits = tp.Masked(planted.model, planted.circuit)(batch)
        >>> passes.forward >= 2 * len(batch), passes.backward  # the clean run and the corrupted one
        (True, 0.0)
    """
    points = backend_of(model).head_points()
    passes = Passes()

    def back(gradient: Tensor) -> None:
        passes.backward += len(gradient) / len(points)

    def count(_: Any, inputs: tuple[Any, ...]) -> None:
        z = inputs[0]
        passes.forward += len(z) / len(points)
        if z.requires_grad:
            z.register_hook(back)

    handles = [point.register_forward_pre_hook(count) for point in points]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()
