"""Units removed from a model or a subnetwork one at a time, and put back into a subnetwork one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.evaluation.bench import Bench, ablations_dict, ablations_text
from tlprune.evaluation.table import aligned, number
from tlprune.learning.bootstrap import Interval, bounds, finite, resampled_means
from tlprune.learning.significance import SIGNIFICANT, holm, sign_flip
from tlprune.masking.ablation import Ablation
from tlprune.masking.sites import nodes
from tlprune.named import Names, chosen
from tlprune.sites import Sites
from tlprune.studies.examples import Examples, by_name, measured
from tlprune.studies.heat_maps import heat_maps
from tlprune.task import Task

UNIT = re.compile(r"a\d+\.h\d+|m\d+")
ROUNDING = 1e-6  # a difference of figures from float32 logits that may as well be none
_SHOWN = 8  # units of each domain in the table


@dataclass(frozen=True)
class UnitChange:
    """What one unit alone changes.

    Attributes:
        unit: its name.
        kept: whether the subnetwork has it: then it was removed, else it was put back.
        change: of the figure, with it changed less without, and the 95% paired bootstrap interval over examples.
        p_value: of the paired test, ``sign_flip`` of ``tlprune.learning.significance``.
        adjusted: the same by Holm's method, for all units looked at in this domain.
    """

    unit: str
    kept: bool
    change: Interval
    p_value: float
    adjusted: float

    @property
    def significant(self) -> bool:
        """Whether it is more than noise, with as many units looked at."""
        return self.adjusted <= SIGNIFICANT

    @property
    def action(self) -> str:
        return "removed" if self.kept else "put back"

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "change": self.change.as_dict(), "significant": self.significant}


@dataclass(frozen=True)
class DomainChanges:
    """The units in one domain.

    Attributes:
        examples: how many there are.
        whole: the figure of the subnetwork, or model, as it is.
        changes: by unit, in the order of the model.
    """

    examples: int
    whole: float
    changes: Mapping[str, UnitChange]

    def __getitem__(self, unit: str) -> UnitChange:
        return self.changes[unit]

    @property
    def significant(self) -> list[str]:
        """Units whose change is more than noise, in the order of the model."""
        return [unit for unit, change in self.changes.items() if change.significant]

    def largest(self) -> list[UnitChange]:
        """All changes, the largest first, to either side."""
        return sorted(self.changes.values(), key=lambda one: -abs(one.change.value))

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        changes = [change.as_dict() for change in self.changes.values()]
        return {"examples": self.examples, "whole": finite(self.whole), "units": changes}


@dataclass(frozen=True)
class OneAtATime:
    """A figure's change by each unit alone, in each domain; printing it gives a table of the largest.

    Attributes:
        figure: which one.
        circuit: the subnetwork; all units of the full model.
        domains: by name.
        ablation: what replaced what is removed, as plain data.
    """

    figure: str
    circuit: Circuit
    domains: Mapping[str, DomainChanges]
    ablation: Mapping[str, Any]

    def __getitem__(self, domain: str) -> DomainChanges:
        return self.domains[domain]

    def as_dict(self) -> dict[str, Any]:
        """Every unit's figures as plain data."""
        return {
            "figure": self.figure,
            "kept": self.circuit.names,
            "total": len(self.circuit.sites),
            **ablations_dict(self.ablation, self.circuit.provenance.get("ablation")),
            "correction": "holm",
            "domains": {name: domain.as_dict() for name, domain in self.domains.items()},
        }

    def __str__(self) -> str:
        rows = [_row(name, one) for name, domain in self.domains.items() for one in domain.largest()[:_SHOWN]]
        header = ["", "unit", "", f"change in {self.figure} [95%]", "p (Holm)", ""]
        return "\n".join([*aligned(header, rows), *map(self._summary, self.domains), self._foot()])

    def _summary(self, name: str) -> str:
        domain = self.domains[name]
        return (
            f"{name}: {self.figure} {number(domain.whole, 4)} as it is, {domain.examples:,} examples; more than noise "
            f"are {len(domain.significant):,} of {len(domain.changes):,} changes"
        )

    def _foot(self) -> str:
        kept = f"{len(self.circuit):,} of {len(self.circuit.sites):,} units kept"
        discovery = self.circuit.provenance.get("ablation")
        return (
            f"{kept}; {ablations_text(self.ablation, discovery)}; *: p at most {SIGNIFICANT} by Holm's method within "
            "a domain, paired sign test"
        )

    def plot(self) -> Any:
        """A heat map of layers and heads for each domain, MLPs in the last column, as a figure of plotly.

        ``-`` stands in the cells of units that were removed, ``+`` in those that were put back, and ``*`` behind it
        where the change is more than noise.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        domains = {f"{name}: {number(one.whole, 3)} as it is": one.changes for name, one in self.domains.items()}
        values = {name: {unit: one.change.value for unit, one in own.items()} for name, own in domains.items()}
        words = {name: {unit: _mark(one) for unit, one in own.items()} for name, own in domains.items()}
        return heat_maps(values, words, title=f"Change in {self.figure} by each unit alone")


def one_at_a_time(
    model: Any,
    circuit: Circuit | None,
    tasks: Examples | Sequence[Task] | Mapping[str, Examples],
    *,
    ablation: Ablation | None = None,
    units: Names = "a*|m*",
    figure: str = "accuracy",
    batch_size: int = 64,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> OneAtATime:
    """Remove each unit of a model or a subnetwork alone, put each missing one back alone, and measure what changes.

    The change of unit ``u`` is ``f(C - {u}) - f(C)`` where the subnetwork ``C`` has it and ``f(C | {u}) - f(C)`` where
    it has not, with ``f`` the mean of a figure over test examples. Units that back each other up change nothing alone.

    With 156 units some changes look large by chance. So each has the p-value of a paired test over examples, corrected
    by Holm's method for all units of the domain: the chance that any of those at most 0.05 is noise is 5% at most.
    Domains are not corrected for each other.

    Source: Bhaskar, Friedman, Chen, "The Heuristic Core" (ACL 2024), section 5 and released code.

    Args:
        model: a TransformerLens model; left as it was.
        circuit: a subnetwork of heads and MLPs; ``None`` for the full model.
        tasks: a task, whose test examples are taken, or several; or by names of your own.
        ablation: what replaces what is removed; by default what did at discovery, and :class:`~tlprune.Resample` for
            the full model.
        units: names or patterns of the heads and MLPs to look at.
        figure: one that is a mean over examples.
        batch_size: examples per forward pass.
        seed: of the bootstrap.
        tell: is called with a line for each domain.

    Raises:
        ValueError: a unit is no head or MLP, nothing is called so, the circuit is of another model, or the examples
            have no such figure.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> found = one_at_a_time(planted.model, None, planted.task, units="a1.*")
        >>> found["planted-copy"].significant == [node for node in planted.circuit.nodes if node != "input"]
        True
    """
    circuit = _whole(model, units) if circuit is None else circuit
    ablation = measured(model, ablation)
    places = _places(circuit.sites, units)
    domains = {}
    for name, examples in by_name(tasks).items():
        bench = Bench.of(model, circuit, examples, ablation=ablation)
        values = _values(bench, circuit, places, figure, batch_size)
        domains[name] = _domain(circuit, places, values, seed)
        if tell is not None:
            tell(f"{name}: {len(places)} units over {len(bench.examples):,} examples")
        told = bench.ablation
    return OneAtATime(figure, circuit, domains, told)


def _whole(model: Any, units: Names) -> Circuit:
    sites = nodes(model, units if isinstance(units, str) else "|".join(units))
    return Circuit(sites, torch.ones(len(sites), dtype=torch.bool))


def _places(sites: Sites, units: Names) -> list[int]:
    """Where the units lie among the sites of a circuit."""
    places = chosen(sites, units).nonzero().flatten().tolist()
    strange = [name for name in map(sites.name, places) if not UNIT.fullmatch(name)]
    if strange:
        raise ValueError(
            f"One at a time go heads and MLPs, such as a0.h1 and m0, but {', '.join(strange[:3])} would be among them. "
            "Name others by units=, or take a circuit of heads and MLPs; tp.minimality takes edges."
        )
    return places


def _values(
    bench: Bench, circuit: Circuit, places: Sequence[int], figure: str, batch_size: int
) -> Float[Tensor, "circuit example"]:
    """The figure of the circuit as it is, then with each unit changed, all on the same passes' replacements."""
    kept = _changed(circuit.kept.cpu(), places)
    found = bench.measure_each(torch.cat([circuit.kept.cpu()[None], kept]), batch_size=batch_size)
    return torch.stack([one.figure(figure).double() for one in found])


def _changed(kept: Bool[Tensor, "site"], places: Sequence[int]) -> Bool[Tensor, "unit site"]:
    changed = kept.repeat(len(places), 1)
    changed[torch.arange(len(places)), torch.tensor(places)] ^= True
    return changed


def _domain(
    circuit: Circuit, places: Sequence[int], values: Float[Tensor, "circuit example"], seed: int
) -> DomainChanges:
    differences = (values[1:] - values[0]).T
    differences = torch.where(differences.abs() > ROUNDING, differences, 0)
    ends = bounds(resampled_means(differences, seed=seed))
    p_values = sign_flip(differences)
    columns = (differences.mean(0), *ends, p_values, holm(p_values))
    changes = {}
    for place, value, low, high, p_value, adjusted in zip(places, *(c.tolist() for c in columns), strict=True):
        unit, kept = circuit.sites.name(place), bool(circuit.kept[place])
        changes[unit] = UnitChange(unit, kept, Interval(value, low, high), p_value, adjusted)
    return DomainChanges(len(differences), float(values[0].mean()), changes)


def _row(domain: str, one: UnitChange) -> list[str]:
    change = f"{number(one.change.value, 4)} [{number(one.change.low, 4)}, {number(one.change.high, 4)}]"
    return [domain, one.unit, one.action, change, f"{one.adjusted:.2g}", "*" if one.significant else ""]


def _mark(one: UnitChange) -> str:
    return ("-" if one.kept else "+") + ("*" if one.significant else "")
