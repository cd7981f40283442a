"""How information moves between the spans of prompts: which hear of which through attention, and which are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True)
class Flow:
    """Which spans attend to which, and at which the logits are read.

    The residual stream stays where it is, and so does a query; what arrives as a key or value of a head may leave this
    head at every span that attends to its own.

    Attributes:
        spans: names of all spans, in the order of the sites.
        moves: pairs ``(from, to)``: some position of ``to`` attends to one of ``from``. Every span also moves into
            itself, which need not be said.
        read: spans with a position whose logits are read.

    Raises:
        ValueError: a name is none of the spans.

    Example:
        >>> flow = Flow(("name", "end", "rest"), (("name", "end"), ("rest", "name"), ("rest", "end")), ("end",))
        >>> flow.table.int().tolist(), flow.answers.tolist()
        ([[1, 1, 0], [0, 1, 0], [1, 1, 1]], [False, True, False])
    """

    spans: tuple[str, ...]
    moves: tuple[tuple[str, str], ...]
    read: tuple[str, ...]

    def __post_init__(self) -> None:
        strange = [name for name in (*(name for pair in self.moves for name in pair), *self.read)
                   if name not in self.spans]  # fmt: skip
        if strange:
            raise ValueError(
                f"A flow is between the spans {', '.join(self.spans)} but names {strange[0]!r}. Name one of these."
            )

    @staticmethod
    def everywhere(spans: tuple[str, ...]) -> Flow:
        """What is sure of any prompts: every span may attend to every other, and the logits may be read at all.

        Example:
            >>> Flow.everywhere(("s", "rest")).table.tolist()
            [[True, True], [True, True]]
        """
        return Flow(spans, tuple(product(spans, spans)), spans)

    @cached_property
    def table(self) -> Bool[Tensor, "source span"]:
        """Whether what arrives at one span may leave a head at another."""
        result = torch.eye(len(self.spans), dtype=torch.bool)
        for source, target in self.moves:
            result[self.spans.index(source), self.spans.index(target)] = True
        return result

    @cached_property
    def answers(self) -> Bool[Tensor, "span"]:
        """Whether the logits are read at each span."""
        return torch.tensor([name in self.read for name in self.spans])

    def as_dict(self) -> dict[str, Any]:
        return {"moves": [list(pair) for pair in self.moves], "read": list(self.read)}

    @staticmethod
    def from_dict(data: Mapping[str, Any], spans: tuple[str, ...]) -> Flow:
        return Flow(spans, tuple((a, b) for a, b in data["moves"]), tuple(data["read"]))
