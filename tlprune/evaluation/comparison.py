"""Two circuits on the same examples, and which of their differences are more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlprune.circuit import Circuit
from tlprune.evaluation.bench import Bench, ablation_text
from tlprune.evaluation.table import aligned
from tlprune.learning.bootstrap import Interval, finite
from tlprune.learning.metrics import LOWER_IS_BETTER, Performance
from tlprune.masking.ablation import Ablation
from tlprune.masking.checks import check_model
from tlprune.task import Batch, Task


@dataclass(frozen=True)
class Comparison:
    """Two circuits' figures and their paired differences; printing it gives a table.

    Attributes:
        first: the first circuit's figures per example.
        second: the second's.
        differences: first less second by figure, with 95% paired bootstrap intervals over examples.
        ablation: what replaced ablated sites, as plain data.
    """

    first: Performance
    second: Performance
    differences: Mapping[str, Interval]
    ablation: Mapping[str, Any]

    def better(self, figure: str) -> str | None:
        """``"first"`` or ``"second"``; ``None`` unless the interval of the difference excludes zero."""
        sign = self.differences[figure].sign * (-1 if figure in LOWER_IS_BETTER else 1)
        return {1: "first", -1: "second", 0: None}[sign]

    def as_dict(self) -> dict[str, Any]:
        """Each figure of both, their difference and the better one, as plain data."""
        first, second = self.first.means(), self.second.means()
        figures = {
            name: {
                "first": finite(first[name]),
                "second": finite(second[name]),
                "difference": difference.as_dict(),
                "better": self.better(name),
            }
            for name, difference in self.differences.items()
        }
        return {"ablation": dict(self.ablation), "examples": len(self.first.kl), "figures": figures}

    def __str__(self) -> str:
        first, second = self.first.means(), self.second.means()
        rows = [
            [name, f"{first[name]:.4g}", f"{second[name]:.4g}", str(difference), self.better(name) or "-"]
            for name, difference in self.differences.items()
        ]
        lines = aligned(["", "first", "second", "first less second [95%]", "better"], rows)
        return "\n".join([*lines, f"{len(self.first.kl)} examples, paired; {ablation_text(self.ablation)} ablation"])


def compare(
    model: Any, first: Circuit, second: Circuit, batch: Batch | Task, *, ablation: Ablation | None = None
) -> Comparison:
    """Measure two circuits on the same examples and say which is better in what.

    The intervals are of the choice of examples. They say nothing of how circuits would differ under other seeds of
    the methods that found them; for that, find several and compare their means.

    Args:
        model: the model that both are of.
        first: one circuit.
        second: another, of the same sites.
        batch: examples that no method saw, or the task.
        ablation: what replaces ablated sites; by default what did at discovery.

    Raises:
        ValueError: a circuit belongs to another model, or the two have different sites.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> chance = tp.connected_random(planted.circuit.graph, 2, seed=0)
        >>> found = tp.compare(planted.model, planted.circuit, chance, planted.task)
        >>> found.better("kl"), tp.compare(planted.model, chance, chance, planted.task).better("kl")
        ('first', None)
    """
    if first.sites != second.sites:
        raise ValueError(
            f"Circuits need the same sites to be compared but have {first.sites} and {second.sites}. "
            "Find both with the same model, selection and convention."
        )
    bench = Bench.of(model, first, batch, ablation=ablation)
    check_model(bench.masked.backend, second, bench.masked.ablation)
    one, other = bench.measure(first), bench.measure(second)
    return Comparison(one, other, one.less(other), bench.ablation)
