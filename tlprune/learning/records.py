"""What training says about each of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Term:
    """One term of the objective in one step, in its own units (nats for KL) and without its weight.

    Attributes:
        name: of the objective, its stream and its run, such as ``"kl"`` or ``"uniform_target_complement"``.
        weight: its factor in the sum.
        sampled: its value under this step's mask samples.
        hard: its value of the hard circuit on validation examples, where it was measured.
    """

    name: str
    weight: float
    sampled: float
    hard: float | None = None


@dataclass(frozen=True)
class Pressure:
    """One budget in one step.

    Attributes:
        on: the group of sites that it counts; ``None`` for all.
        aim: ``target`` (sparsity aimed at) or ``weight`` (price of keeping), by name.
        multipliers: its multipliers after the step.
    """

    on: str | None
    aim: Mapping[str, float]
    multipliers: tuple[float, ...]

    def as_dict(self) -> dict[str, object]:
        prefix = f"{self.on}_" if self.on else ""
        known = {**self.aim, **({"multipliers": self.multipliers} if self.multipliers else {})}
        return {prefix + name: value for name, value in known.items()}


@dataclass(frozen=True)
class Step:
    """What one training step saw.

    Attributes:
        step: number of the step, from 1.
        terms: the terms of the objective.
        kept: sites that the gates expect to keep after the step, by kind.
        totals: sites in all, by kind.
        budgets: targets, prices and multipliers.
        seconds: wall time since the start, that of earlier processes of a resumed run included.

    Example:
        >>> step = Step(3, (Term("kl", 1.0, 0.25),), {"edges": 40.2}, {"edges": 46}, (), 1.5)
        >>> print(step)
        step 3 | kl_sampled 0.250 | kept 40 of 46 edges
    """

    step: int
    terms: tuple[Term, ...]
    kept: Mapping[str, float]
    totals: Mapping[str, int]
    budgets: tuple[Pressure, ...]
    seconds: float

    @property
    def sampled(self) -> float:
        """The whole objective under this step's mask samples."""
        return sum(term.weight * term.sampled for term in self.terms)

    @property
    def hard(self) -> float | None:
        """The whole objective of the hard circuit on validation examples, where it was measured."""
        values = [term.weight * term.hard for term in self.terms if term.hard is not None]
        return sum(values) if values else None

    @property
    def expected_kept(self) -> float:
        """Sites that the gates expect to keep after the step."""
        return sum(self.kept.values())

    @property
    def total(self) -> int:
        """Sites in all."""
        return sum(self.totals.values())

    def with_hard(self, values: Sequence[float]) -> Step:
        """The same step with what was measured of the hard circuit, a value per term."""
        return replace(self, terms=tuple(replace(t, hard=v) for t, v in zip(self.terms, values, strict=True)))

    def __str__(self) -> str:
        parts = [f"{term.name}_sampled {term.sampled:.3f}" for term in self.terms]
        parts += [f"{term.name}_hard {term.hard:.3f}" for term in self.terms if term.hard is not None]
        kept = ", ".join(f"{round(self.kept[kind]):,} of {total:,} {kind}" for kind, total in self.totals.items())
        return " | ".join([f"step {self.step}", *parts, f"kept {kept}"])

    def as_dict(self) -> dict[str, object]:
        """One flat line of numbers; of several terms or kinds of sites also their sums."""
        data: dict[str, object] = {"step": self.step}
        if len(self.terms) > 1:
            data |= {"objective_sampled": self.sampled, "objective_hard": self.hard}
        for term in self.terms:
            data |= {f"{term.name}_sampled": term.sampled, f"{term.name}_hard": term.hard}
        data |= {"expected_kept": self.expected_kept, "total": self.total}
        if len(self.totals) > 1:
            data |= {f"{kind}_expected_kept": kept for kind, kept in self.kept.items()}
        for budget in self.budgets:
            data |= budget.as_dict()
        return {**data, "seconds": self.seconds}
