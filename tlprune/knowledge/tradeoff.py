"""Size against forgetting: subnetworks found under several prices, and what is forgotten and kept without each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tlprune.circuit import Circuit
from tlprune.evaluation.table import aligned
from tlprune.knowledge.cases import NAMES, Split
from tlprune.knowledge.figures import KnowledgeFigures, knowledge_figures
from tlprune.knowledge.finding import found_at
from tlprune.knowledge.plots import ratio_lines
from tlprune.learning.bootstrap import RESAMPLES
from tlprune.methods.knowledge import KnowledgeSubnetwork
from tlprune.task import Task


@dataclass(frozen=True)
class Tradeoff:
    """Subnetworks by price and their figures; printing it gives a table.

    Attributes:
        circuits: by price, the lowest first.
        figures: of all, without what each keeps.
    """

    circuits: Mapping[float, Circuit]
    figures: KnowledgeFigures

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"prices": {_name(price): price for price in self.circuits}, **self.figures.as_dict()}

    def __str__(self) -> str:
        found = self.figures
        rows = [
            [f"{price:g}", f"{len(one):,}", f"{100 * found.sparsity(_name(price)):.2f}%", *self._ratios(price)]
            for price, one in self.circuits.items()
        ]
        header = ["price", "sites", "sparsity", *(f"{word}, held out" for word in NAMES.values())]
        return "\n".join([*aligned(header, rows), "perplexity without it, over the full model's"])

    def _ratios(self, price: float) -> list[str]:
        return [f"{self.figures.at(stream, circuit=_name(price)).ratio.value:.3f}" for stream in NAMES]

    def plot(self) -> Any:
        """Lines of plotly: ratio of perplexities of target, control and text along the size; prices under the mouse.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        found = self.figures
        ratios = {
            word: {
                float(len(one)): found.at(stream, circuit=_name(price)).ratio for price, one in self.circuits.items()
            }
            for stream, word in NAMES.items()
        }
        texts = [_name(price) for price in self.circuits]
        return ratio_lines(ratios, title="Size against forgetting", along="sites removed", texts=texts)


def knowledge_tradeoff(
    model: Any,
    task: Task,
    method: KnowledgeSubnetwork,
    *,
    prices: Sequence[float],
    out: str | Path | None = None,
    held_out: Split = "test",
    resamples: int = RESAMPLES,
    tell: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Tradeoff:
    """Find a subnetwork under each of several prices and measure all of them.

    Args:
        model: the model; left as it was.
        task: as of :func:`tlprune.knowledge_figures`.
        method: all but its prices; the last price keeps its ratio to the first.
        prices: values of ``price`` of :class:`~tlprune.KnowledgeSubnetwork`, above 0.
        out: a folder for circuits and training records, in which a search that was stopped goes on.
        held_out: the split that is held out; ``"validation"`` to choose a price by.
        resamples: draws of the bootstrap.
        tell: is called with a line for each subnetwork.
        progress: whether to show a progress bar for each search.

    Raises:
        ValueError: there is no price or one is not above 0, the method's own price is 0, or the folder holds
            subnetworks of other settings.
    """
    if not prices or min(prices) <= 0 or not method.price:
        raise ValueError(
            f"A trade-off needs prices above 0 but got {list(prices)}, of a method whose own is {method.price:g}. Give "
            "some such as 2, 5 and 10."
        )
    circuits = {}
    for price in sorted(set(prices)):
        own = replace(method, price=price, last_price=price * method.last_price / method.price)
        path = None if out is None else Path(out) / f"price-{price!r}.safetensors"
        circuits[price] = found_at(path, model, task, own, progress=progress)
        if tell is not None:
            tell(f"price {price:g}: {circuits[price]}")
    named = {_name(price): one for price, one in circuits.items()}
    figures = knowledge_figures(model, named, task, kinds=["remaining"], held_out=held_out, resamples=resamples)
    return Tradeoff(circuits, figures)


def _name(price: float) -> str:
    return f"price {price:g}"
