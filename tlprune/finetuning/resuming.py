"""What trainings of a model and of a prompt share: the best so far, moments of the optimiser in files, and resuming."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tlprune.files import read_tensors
from tlprune.learning.settings import differences

CHECKPOINT = "checkpoint.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Best:
    """The best figure on dev so far.

    Attributes:
        figure: the highest.
        step: after how many steps it was measured; 0: never.
        dev: all figures at that step.
    """

    figure: float = -math.inf
    step: int = 0
    dev: dict[str, float] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """As plain data; an infinite figure is ``None``."""
        return {**vars(self), "figure": self.figure if math.isfinite(self.figure) else None}

    @staticmethod
    def of(facts: Mapping[str, Any]) -> Best:
        """What :meth:`facts` told."""
        figure = -math.inf if facts["figure"] is None else facts["figure"]
        return Best(figure, facts["step"], facts["dev"])


def moments_of(optimiser: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimiser's state, by kind and name of the parameter."""
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        moments = optimiser.state.get(parameter, {})
        found |= {f"{kind}.{name}": torch.as_tensor(moments[kind]) for kind in MOMENTS if kind in moments}
    return found


def put_back_moments(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimiser what :func:`moments_of` found."""
    parts = {kind: part_of(tensors, kind) for kind in MOMENTS}
    for name, parameter in parameters.items():
        if name in parts["exp_avg"]:
            own = {kind: parts[kind][name] for kind in MOMENTS}
            optimiser.state[parameter] = {k: v.to(parameter.device) if v.dim() else v for k, v in own.items()}


def read_own_checkpoint(
    folder: Path, settings: Mapping[str, Any], *, what: str, otherwise: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a folder's checkpoint.

    Raises:
        ValueError: it is not whole, or of a run with other settings.
    """
    tensors, facts = read_tensors(folder / CHECKPOINT, f"checkpoint of a {what}")
    if found := differences(facts["settings"], settings):
        raise ValueError(
            f"A run can go on from its own checkpoint only, but that in {folder} was written with another "
            f"{'; '.join(found)}. Give the same settings, or {otherwise}."
        )
    return tensors, facts


def part_of(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors whose name begins with a kind, without it."""
    return {name.removeprefix(f"{kind}."): value for name, value in tensors.items() if name.startswith(f"{kind}.")}
