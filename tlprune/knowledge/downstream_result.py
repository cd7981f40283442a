"""Accuracies of fine-tuned models on held-out questions, with and without a subnetwork."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.evaluation.table import aligned
from tlprune.knowledge.downstream_plan import VARIANTS, Variant
from tlprune.learning.bootstrap import Interval, interval
from tlprune.learning.significance import holm, sign_flip

PAIRS: tuple[tuple[Variant, Variant], ...] = (("without", "whole"), ("without", "random"), ("random", "whole"))
_SAID = {"whole": "the whole model", "without": "without the subnetwork", "random": "without a random one"}


@dataclass(frozen=True)
class Answers:
    """Which of the test questions one fine-tuned model answers rightly.

    Attributes:
        way: ``"likelihood"``, ``"head"``, ``"lora"`` or ``"full"``.
        variant: ``"whole"``, ``"without"`` or ``"random"``.
        seed: of the fine-tuning, and of the random removal.
        right: of each question, in the order of the test.
    """

    way: str
    variant: str
    seed: int
    right: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)


@dataclass(frozen=True)
class Downstream:
    """Accuracies on the same questions of models with and without a subnetwork.

    Intervals and tests are over questions: a question's figure is the share of seeds that answer it rightly, and what
    two variants do is compared question by question. Accuracies of single seeds are in ``answers``.

    Attributes:
        answers: of each way, seed and variant.
        removed: ``"held"`` or ``"free"``.
        sites: how many are removed.
        total: how many could be.
        guessing: accuracy of guesses.

    Example:
        >>> runs = [Answers("head", "whole", seed, (True, True, False, True)) for seed in (0, 1)]
        >>> runs += [Answers("head", "without", seed, (seed > 0, False, False, True)) for seed in (0, 1)]
        >>> runs += [Answers("head", "random", seed, (True, True, False, True)) for seed in (0, 1)]
        >>> found = Downstream(tuple(runs), "held", 5, 100, 0.25)
        >>> found.accuracy("head", "whole").value, found.difference("head", "without", "whole").value
        (0.75, -0.375)
    """

    answers: tuple[Answers, ...]
    removed: str
    sites: int
    total: int
    guessing: float

    @property
    def ways(self) -> tuple[str, ...]:
        """In the order of the runs."""
        return tuple(dict.fromkeys(one.way for one in self.answers))

    def shares(self, way: str, variant: str) -> Float[Tensor, "question"]:
        """Share of seeds that answer each question rightly.

        Raises:
            ValueError: there is no such run.
        """
        found = [one.right for one in self.answers if (one.way, one.variant) == (way, variant)]
        if not found:
            raise ValueError(
                f"Ways are {', '.join(self.ways)} and variants {', '.join(VARIANTS)}, but {way!r} and {variant!r} were "
                "asked for. Name some of these."
            )
        return torch.tensor(found, dtype=torch.float64).mean(0)

    def accuracy(self, way: str, variant: str) -> Interval:
        """Mean over seeds, with an interval over questions."""
        return interval(lambda mean: mean, self.shares(way, variant))

    def difference(self, way: str, variant: str, other: str) -> Interval:
        """Accuracy of a variant less that of another, paired by question."""
        return interval(lambda one, two: one - two, self.shares(way, variant), self.shares(way, other))

    def p_values(self) -> dict[tuple[str, Variant, Variant], float]:
        """Of all differences that the table shows, two-sided, by the sign-flip test and Holm's method among them."""
        keys = [(way, *pair) for way in self.ways for pair in PAIRS]
        columns = [self.shares(way, one) - self.shares(way, other) for way, one, other in keys]
        return dict(zip(keys, holm(sign_flip(torch.stack(columns, 1))).tolist(), strict=True))

    def seeds(self, way: str, variant: str) -> list[float]:
        """Accuracy under each seed."""
        return [one.accuracy for one in self.answers if (one.way, one.variant) == (way, variant)]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        accuracies = [
            {"way": way, "variant": one, **self.accuracy(way, one).as_dict(), "seeds": self.seeds(way, one)}
            for way in self.ways
            for one in VARIANTS
        ]
        compared = [
            {"way": way, "variant": one, "less": other, **self.difference(way, one, other).as_dict(), "p": p}
            for (way, one, other), p in self.p_values().items()
        ]
        plain = {"removed": self.removed, "sites": self.sites, "total": self.total, "guessing": self.guessing}
        return plain | {"questions": len(self.answers[0].right), "accuracy": accuracies, "differences": compared}

    def __str__(self) -> str:
        rows = [
            [f"{way}, {_SAID[one]}", _shown(self.accuracy(way, one)), _spread(self.seeds(way, one))]
            for way in self.ways
            for one in VARIANTS
        ]
        pairs = [
            [f"{way}, {_SAID[one]} less {_SAID[other]}", _shown(self.difference(way, one, other)), f"{p:.2g}"]
            for (way, one, other), p in self.p_values().items()
        ]
        head = f"{self.sites:,} of {self.total:,} sites removed and {self.removed}; guesses: {self.guessing:.3f}"
        first = aligned(["accuracy", "mean over seeds", "seeds"], rows)
        return "\n".join([head, "", *first, "", *aligned(["paired difference", "", "p"], pairs)])

    def plot(self) -> Any:
        """Bars of accuracies with their intervals; needs plotly."""
        from tlprune.drawing.charts import TEMPLATE, plotly

        bars = [self._bar(plotly(), one) for one in VARIANTS]
        figure = plotly().Figure(bars, {"template": TEMPLATE, "yaxis_title": "accuracy", "barmode": "group"})
        return figure.add_hline(self.guessing, line_dash="dot", annotation_text="guesses")

    def _bar(self, graphs: Any, variant: Variant) -> Any:
        found = [self.accuracy(way, variant) for way in self.ways]
        above, below = [one.high - one.value for one in found], [one.value - one.low for one in found]
        errors = {"array": above, "arrayminus": below, "symmetric": False}
        return graphs.Bar(name=_SAID[variant], x=self.ways, y=[one.value for one in found], error_y=errors)


def _shown(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _spread(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
