"""What it does to subnetworks to force units into them or out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.evaluation.bench import Bench, ablations_dict, ablations_text
from tlprune.evaluation.table import aligned, number
from tlprune.learning.bootstrap import Interval, finite, interval
from tlprune.masking.ablation import Ablation
from tlprune.named import Names, forced
from tlprune.studies.collection import Run
from tlprune.studies.examples import Examples, by_name, measured
from tlprune.task import Task


@dataclass(frozen=True)
class Effect:
    """A figure before and after, of one subnetwork or the mean over those of a sparsity.

    Attributes:
        before: of the subnetwork as it was found.
        after: with units forced.
        change: after less before, and the 95% paired bootstrap interval over examples; of a mean it says nothing of
            other seeds.
    """

    before: float
    after: float
    change: Interval

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"before": finite(self.before), "after": finite(self.after), "change": self.change.as_dict()}


@dataclass(frozen=True)
class Forcing:
    """Figures of subnetworks before and after units were forced; printing it gives a table by sparsity and domain.

    Attributes:
        figure: which one.
        include: units that all were made to keep.
        exclude: units that all were made to go without.
        sizes: how many units each subnetwork kept before and keeps after.
        effects: by domain, then by subnetwork.
        means: by domain, then by sparsity: means over seeds.
        ablation: what replaced what is removed, as plain data.
        discovery: what replaced it when the subnetworks were found, where that is known.
    """

    figure: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    sizes: Mapping[Run, tuple[int, int]]
    effects: Mapping[str, Mapping[Run, Effect]]
    means: Mapping[str, Mapping[float, Effect]]
    ablation: Mapping[str, Any]
    discovery: Mapping[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "figure": self.figure,
            "include": [*self.include],
            "exclude": [*self.exclude],
            **ablations_dict(self.ablation, self.discovery),
            "domains": {name: [*self._records(name)] for name in self.effects},
        }

    def _records(self, domain: str) -> Iterator[dict[str, Any]]:
        for sparsity, mean in self.means[domain].items():
            own = {run: one for run, one in self.effects[domain].items() if run.sparsity == sparsity}
            runs = [
                {"seed": run.seed, "kept": [*self.sizes[run]], **one.as_dict()} for run, one in own.items()
            ]  # fmt: skip
            yield {"sparsity": sparsity, "mean": mean.as_dict(), "subnetworks": runs}

    def __str__(self) -> str:
        rows = [self._row(name, sparsity) for name, own in self.means.items() for sparsity in own]
        header = ["", "removed", "units", "before", "after", "change [95%]", "seeds from to"]
        words = [f"{verb} {', '.join(which)}" for verb, which in (("in", self.include), ("out", self.exclude)) if which]
        foot = f"{self.figure}, means over seeds; forced {'; '.join(words)}"
        intervals = f"intervals over examples; {ablations_text(self.ablation, self.discovery)}"
        return "\n".join([*aligned(header, rows), foot, intervals])

    def _row(self, domain: str, sparsity: float) -> list[str]:
        mean = self.means[domain][sparsity]
        changes = [one.change.value for run, one in self.effects[domain].items() if run.sparsity == sparsity]
        sizes = [size for run, size in self.sizes.items() if run.sparsity == sparsity]
        before, after = (sum(column) / len(sizes) for column in zip(*sizes, strict=True))
        return [
            domain,
            f"{100 * sparsity:g}%",
            f"{before:.3g} to {after:.3g}",
            number(mean.before, 4),
            number(mean.after, 4),
            f"{number(mean.change.value, 4)} [{number(mean.change.low, 4)}, {number(mean.change.high, 4)}]",
            f"{number(min(changes), 4)} to {number(max(changes), 4)}",
        ]

    def plot(self) -> Any:
        """Bars of the mean change by domain and sparsity with 95% intervals, a dot for each seed, by plotly.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        library, sparsities = plotly(), [*next(iter(self.means.values()))]
        bars = [self._bars(library, sparsity) for sparsity in sparsities]
        dots = [self._dots(library, sparsity) for sparsity in sparsities]
        layout = {"barmode": "group", "scattermode": "group", "template": TEMPLATE}
        words = f"Change in {self.figure} with units forced"
        return library.Figure([*bars, *dots], {**layout, "title": words, "yaxis": {"title": "after less before"}})

    def _bars(self, library: Any, sparsity: float) -> Any:
        changes = [own[sparsity].change for own in self.means.values()]
        ends = {"array": [one.high - one.value for one in changes]}
        ends |= {"arrayminus": [one.value - one.low for one in changes]}
        bars = {"type": "data", "symmetric": False, **ends}
        group = f"{100 * sparsity:g}% removed"
        x, y = [*self.means], [one.value for one in changes]
        return library.Bar(x=x, y=y, error_y=bars, name=group, offsetgroup=group, opacity=0.6)

    def _dots(self, library: Any, sparsity: float) -> Any:
        own = [
            (domain, one.change.value, str(run))
            for domain, effects in self.effects.items()
            for run, one in effects.items()
            if run.sparsity == sparsity
        ]
        x, y, text = map(list, zip(*own, strict=True))
        group = f"{100 * sparsity:g}% removed"
        marker = {"color": "black", "size": 5}
        return library.Scatter(
            x=x, y=y, text=text, mode="markers", marker=marker, name=f"{group}, each", offsetgroup=group
        )


def forcing(
    model: Any,
    subnetworks: Mapping[Run, Circuit],
    tasks: Examples | Sequence[Task] | Mapping[str, Examples],
    *,
    include: Names = (),
    exclude: Names = (),
    ablation: Ablation | None = None,
    figure: str = "accuracy",
    batch_size: int = 64,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Forcing:
    """Force units into subnetworks, or out of them, and measure what that changes.

    With the units that a subnetwork which generalises has and the others lack, this says whether these are why. Forced
    subnetworks differ in size from before, which the table tells; a unit that a subnetwork kept anyway changes nothing.

    Source: Bhaskar, Friedman, Chen, "The Heuristic Core" (ACL 2024), section 5 and released code (--force-include).

    Args:
        model: a TransformerLens model; left as it was.
        subnetworks: such as :func:`~tlprune.subnetworks` finds.
        tasks: a task, whose test examples are taken, or several; or by names of your own.
        include: names or patterns of units to keep in all subnetworks, such as ``"a3.*"`` or ``(good - bad).names``.
        exclude: of units to remove from all.
        ablation: what replaces what is removed; by default what did at discovery.
        figure: one that is a mean over examples.
        batch_size: examples per forward pass.
        seed: of the bootstrap.
        tell: is called with a line for each domain.

    Raises:
        ValueError: nothing is forced, a name matches no unit, or a unit is both; or as :func:`~tlprune.compare`.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> true = tp.Circuit.from_nodes(planted.model, planted.circuit.nodes)
        >>> (head,) = planted.circuit.heads
        >>> found = forcing(planted.model, {Run(0.9, 0): tp.forced(true, exclude=head)}, planted.task, include=head)
        >>> found.effects["planted-copy"][0.9, 0].after, found.sizes[0.9, 0]
        (1.0, (1, 2))
    """
    before = {Run(*run): circuit for run, circuit in subnetworks.items()}
    after = {run: forced(circuit, include=include, exclude=exclude) for run, circuit in before.items()}
    pairs = {run: (before[run], after[run]) for run in before}
    ablation, effects, means = measured(model, ablation), {}, {}
    for name, examples in by_name(tasks).items():
        bench = Bench.of_all(model, [*before.values()], examples, ablation=ablation)
        values = _values(bench, pairs, figure, batch_size)
        effects[name] = {run: _effect(both, seed) for run, both in values.items()}
        means[name] = _means(values, seed)
        if tell is not None:
            tell(f"{name}: {len(pairs)} subnetworks over {len(bench.examples):,} examples")
        told = bench.ablation
    first = next(iter(after.values())).provenance
    sizes = {run: (len(one), len(other)) for run, (one, other) in pairs.items()}
    words = (tuple(first["include"]), tuple(first["exclude"]))
    return Forcing(figure, *words, sizes, effects, means, told, first.get("ablation"))


def _values(
    bench: Bench, pairs: Mapping[Run, tuple[Circuit, Circuit]], figure: str, batch_size: int
) -> dict[Run, Float[Tensor, "2 example"]]:
    """The figure of each subnetwork before and after; circuits that are alike are run once."""
    unlike = [*dict.fromkeys(circuit for pair in pairs.values() for circuit in pair)]
    found = bench.measure_each(torch.stack([one.kept.cpu() for one in unlike]), batch_size=batch_size)
    values = {circuit: one.figure(figure).double() for circuit, one in zip(unlike, found, strict=True)}
    return {run: torch.stack([values[circuit] for circuit in pair]) for run, pair in pairs.items()}


def _means(values: Mapping[Run, Float[Tensor, "2 example"]], seed: int) -> dict[float, Effect]:
    """Means over the seeds of each sparsity."""
    sparsities = dict.fromkeys(run.sparsity for run in values)
    of = {sparsity: [own for run, own in values.items() if run.sparsity == sparsity] for sparsity in sparsities}
    return {sparsity: _effect(torch.stack(own).mean(0), seed) for sparsity, own in of.items()}


def _effect(values: Float[Tensor, "2 example"], seed: int) -> Effect:
    before, after = values
    change = interval(lambda one, other: one - other, after, before, seed=seed)
    return Effect(float(before.mean()), float(after.mean()), change)
