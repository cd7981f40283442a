"""Budgets: what makes training remove sites.

They add: ``Lagrangian(0.95, on="edges") + Lagrangian(0.7, on="heads")``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.schedules import Schedule

Measure = Literal["expected", "sampled"]
Gap = Literal["sparsity", "log_density"]
# How much denser than its target a mask may be that counts as having reached it: a Lagrangian hovers around it.
SLACK = 1.05


@runtime_checkable
class Budget(Protocol):
    """A pressure towards fewer kept sites.

    Attributes:
        on: the group of sites that it counts, such as ``"edges"``; ``None`` for all.
        measure: whether their sparsity is the gates' closed form or that of the step's sample.
    """

    @property
    def on(self) -> str | None: ...

    @property
    def measure(self) -> Measure: ...

    def of(self, total: int) -> Budget:
        """This budget for a group of ``total`` sites; a ValueError if it asks for what they cannot give."""
        ...

    def start(self) -> torch.nn.Parameter:
        """Multipliers before the first step; the optimiser raises what :meth:`term` gives with respect to them."""
        ...

    def term(
        self, multipliers: Float[Tensor, "multiplier"], sparsity: Float[Tensor, ""], step: int
    ) -> Float[Tensor, ""]:
        """What is added to the objective in a step, counted from 0."""
        ...

    def reached(self, sparsity: float, *, step: int, steps: int) -> bool:
        """Whether the mask is as sparse as this budget will ask for; early stopping waits for it."""
        ...

    def record(self, step: int) -> dict[str, float]:
        """What training records of it: ``target`` or ``weight``."""
        ...


class Addable:
    """What can be added to :class:`Budgets`."""

    def __add__(self, other: Budget | Budgets) -> Budgets:
        if not isinstance(other, (Budget, Budgets)):
            return NotImplemented
        return Budgets(every(self) + every(other))


@dataclass(frozen=True)
class Budgets(Addable):
    """Several budgets, each of its own sites.

    Attributes:
        parts: the budgets.

    Example:
        >>> [budget.on for budget in (Lagrangian(0.9, on="edges") + Lagrangian(0.5, on="heads") + Penalty(1.0)).parts]
        ['edges', 'heads', None]
    """

    parts: tuple[Any, ...]

    def __post_init__(self) -> None:
        targets = [budget.on for budget in self.parts if isinstance(budget, Lagrangian)]
        if len(set(targets)) < len(targets):
            raise ValueError(
                f"Each group of sites can have one target but those of these are for {targets}. Give one Lagrangian "
                "for each group."
            )


def every(budget: Any) -> tuple[Any, ...]:
    """The budgets of a sum; one by itself is a sum of one."""
    return budget.parts if isinstance(budget, Budgets) else (budget,)


@dataclass(frozen=True)
class Lagrangian(Addable):
    """A sparsity target enforced by two multipliers that *ascend* while the masks descend.

    The term is ``l1 g + l2 g^2`` with the gap ``g = t - s`` between target and sparsity; ``l1`` and ``l2`` start at 0.
    With ``gap="log_density"`` it is ``g = log(1 - s) - log(1 - t)`` instead: keeping twice too many sites is then as
    wrong at 99% sparsity as at 50%, so that a few hundred steps reach sparse targets too. It goes with a logarithmic
    schedule and a multiplier rate of 0.1.

    A target far away overshoots. AdamW divides gradients by their size, so while ``s < t`` both multipliers rise by
    about their rate per step however little is missing, and ``l2`` never falls, as its gradient is a square. Where the
    objective resists little, the masks then go on to ``s - t = l1 / (2 l2)``, up to one half, until ``l1`` has come
    down again, and a decaying rate or gates that are closed for good may stop it on the way. So approach the target by
    a schedule, as the default budget and Edge Pruning do, or lower ``Optimiser.multiplier_rate``, and have
    ``masks.circuit(edges=...)`` decide the exact size.

    Attributes:
        sparsity: fraction of the sites to remove, or a schedule of it. Targets above 1 are deliberate pressure.
        measure: ``"expected"``: ``s`` is the closed-form expected L0; ``"sampled"``: one less the mean of the
            sampled mask, as Edge Pruning's code has it.
        kept: how many sites to keep, or a schedule of it; instead of ``sparsity``.
        on: the group of sites, such as ``"edges"``; all of them by default.
        gap: how the distance to the target is measured; ``"log_density"`` needs expected L0 and targets below 1.

    Raises:
        ValueError: both or neither of ``sparsity`` and ``kept`` are given.

    Source: Wang, Wohlwend, Lei 2020; Edge Pruning, section 3.

    Example:
        >>> Lagrangian(kept=170).of(1700).target(0)
        0.9
    """

    sparsity: float | Schedule | None = None
    measure: Measure = "expected"
    kept: int | Schedule | None = field(default=None, kw_only=True)
    on: str | None = field(default=None, kw_only=True)
    gap: Gap = field(default="sparsity", kw_only=True)

    def __post_init__(self) -> None:
        if self.gap not in ("sparsity", "log_density") or (self.gap == "log_density" and self.measure == "sampled"):
            raise ValueError(
                f"gap must be 'sparsity', or 'log_density' with expected L0, but is {self.gap!r} with {self.measure} "
                "sparsity, which may leave nothing. Choose one of these."
            )
        if self.measure not in ("expected", "sampled"):
            raise ValueError(f"measure must be 'expected' or 'sampled' but is {self.measure!r}. Choose one of these.")
        if (self.sparsity is None) == (self.kept is None):
            raise ValueError(
                f"A Lagrangian needs one target but got sparsity {self.sparsity} and kept {self.kept}. Give one."
            )

    def of(self, total: int) -> Lagrangian:
        """This budget with its target as a fraction of ``total`` sites."""
        kept = self.kept
        if kept is None:
            return self
        if callable(kept):
            return replace(self, sparsity=lambda step: 1 - kept(step) / total, kept=None)
        if not 0 <= kept <= total:
            raise ValueError(
                f"A Lagrangian on {self.on or 'all sites'} can keep 0 to {total:,} but was asked for {kept:,}. "
                "Choose a number within these sites."
            )
        return replace(self, sparsity=1 - kept / total, kept=None)

    def target(self, step: int) -> float:
        """The sparsity aimed at in this step.

        Raises:
            ValueError: the target is a number of sites, of which :meth:`of` makes a fraction.
        """
        if self.sparsity is None:
            raise ValueError("A Lagrangian over a number of sites needs to know of how many. Use budget.of(total).")
        return self.sparsity(step) if callable(self.sparsity) else self.sparsity

    def start(self) -> torch.nn.Parameter:
        """The multipliers before the first step."""
        return torch.nn.Parameter(torch.zeros(2))

    def term(
        self, multipliers: Float[Tensor, "multiplier"], sparsity: Float[Tensor, ""], step: int
    ) -> Float[Tensor, ""]:
        """What is added to the objective; the multipliers' gradient is to be followed upwards."""
        gap = self.target(step) - sparsity
        if self.gap == "log_density":
            if self.target(step) >= 1:
                raise ValueError(f"A log density needs targets below 1 but step {step} has {self.target(step)}.")
            gap = torch.log(1 - sparsity) - math.log(1 - self.target(step))
        return multipliers[0] * gap + multipliers[1] * gap.square()

    def reached(self, sparsity: float, *, step: int, steps: int) -> bool:
        """Whether no more than 5% too many sites are kept for the last step's target."""
        return 1 - sparsity <= SLACK * (1 - self.target(steps - 1))

    def record(self, step: int) -> dict[str, float]:
        return {"target": self.target(step)}


@dataclass(frozen=True)
class Penalty(Addable):
    """A price on every site: ``weight`` times the mean of the gates' expected values of being kept, in closed form.

    Attributes:
        weight: the price of keeping all sites instead of none, in the objective's units; or a schedule of it.
        on: the group of sites, such as ``"weights"``; all of them by default.

    Source: Louizos, Welling, Kingma 2018, eq. 3; the schedule of Bayazit et al. 2024 is
    ``join(constant(2), linear(2, 3, steps=n), at=n)`` over ``2 n`` steps.

    Example:
        >>> penalty = Penalty(2.0)
        >>> float(penalty.term(penalty.start(), torch.tensor(0.75), 0))
        0.5
    """

    weight: float | Schedule
    on: str | None = field(default=None, kw_only=True)

    @property
    def measure(self) -> Measure:
        """Expected sparsity, in closed form."""
        return "expected"

    def of(self, total: int) -> Penalty:
        """Itself: it asks for no number."""
        return self

    def price(self, step: int) -> float:
        """The weight of this step."""
        return self.weight(step) if callable(self.weight) else self.weight

    def start(self) -> torch.nn.Parameter:
        """No multipliers."""
        return torch.nn.Parameter(torch.zeros(0))

    def term(
        self, multipliers: Float[Tensor, "multiplier"], sparsity: Float[Tensor, ""], step: int
    ) -> Float[Tensor, ""]:
        """What is added to the objective."""
        return self.price(step) * (1 - sparsity)

    def reached(self, sparsity: float, *, step: int, steps: int) -> bool:
        """Whether the price is the last step's."""
        return self.price(step) == self.price(steps - 1)

    def record(self, step: int) -> dict[str, float]:
        return {"weight": self.price(step)}
