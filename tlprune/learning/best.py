"""The best masks so far by the hard figure on validation examples, and when to stop looking for better ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


@dataclass
class Best:
    """Follows the hard objective from when the budget was first reached.

    Attributes:
        patience: validations without a better figure after which training stops; ``None``: never, and nothing is kept.
        figure: the lowest so far.
        step: after how many steps it was measured.
        waited: validations since then.
        values: the trained tensors as they were then.

    Example:
        >>> best, mask = Best(patience=2), {"log_alpha": Parameter(torch.zeros(1))}
        >>> for figure in (3.0, 1.0, 2.0, 1.0):
        ...     best.see(figure, step=10, trained=mask)
        >>> best.figure, best.stops
        (1.0, True)
    """

    patience: int | None
    figure: float = math.inf
    step: int = 0
    waited: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)

    @property
    def stops(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.waited >= self.patience

    def see(self, figure: float, *, step: int, trained: Mapping[str, Parameter]) -> None:
        """Take in one validation at which the budget was reached."""
        if self.patience is None:
            return
        self.waited += 1
        if figure < self.figure:
            self.figure, self.step, self.waited = figure, step, 0
            self.values = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def put_back(self, trained: Mapping[str, Parameter]) -> None:
        """Give the parameters the best values, if any were seen."""
        for name, value in self.values.items():
            trained[name].copy_(value)

    def facts(self) -> dict[str, Any]:
        """What is known besides tensors."""
        return {"figure": None if math.isinf(self.figure) else self.figure, "step": self.step, "waited": self.waited}

    def restore(self, facts: Mapping[str, Any], values: dict[str, Tensor]) -> None:
        """Go on from :meth:`facts` and values."""
        self.figure = math.inf if facts["figure"] is None else facts["figure"]
        self.step, self.waited, self.values = facts["step"], facts["waited"], values
