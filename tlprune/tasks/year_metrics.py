"""Greater-than's own figures, over the two-digit years rather than one answer and one foil."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.learning.figures import kendall_tau
from tlprune.learning.objectives import Logits, exact
from tlprune.task import Batch, Metric

PerExample = Float[Tensor, "example"]
PerYear = Float[Tensor, "example year"]


@dataclass(frozen=True)
class YearsAbove:
    """Probability of the years above the first year less that of those below, over the whole vocabulary.

    ``sum_{s < y <= s + w} p(y) - sum_{s - w <= y < s} p(y)`` for first year ``s`` (the batch's label) and width ``w``.
    Between -1 and 1; the first year itself counts for neither side.

    Attributes:
        tokens: token id of each two-digit year that the tokenizer has.
        within: the width; 100 takes in every year.

    Source: Hanna et al. 2023, section 2 (there the first year counts as below); Bhaskar et al. 2024, section 4, with
    width 10 too (there probabilities are renormalised over the years).

    Example:
        >>> import tlprune as tp
        >>> from dataclasses import replace
        >>> batch = tp.planted("copy").task.test.rows(torch.tensor([0]))
        >>> logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()[None, None]
        >>> metric = YearsAbove({31: 0, 32: 1, 33: 2, 57: 3})
        >>> metric(logits, replace(batch, labels=torch.tensor([32])), logits).item()
        0.6000000238418579
    """

    tokens: Mapping[int, int]
    within: int = 100

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> PerExample:
        distance = _years(self.tokens, logits) - _starts(batch).to(logits.device)[:, None]
        side = torch.where(distance.abs() <= self.within, distance.sign(), 0)
        return (side * _at_years(exact(logits).softmax(-1), self.tokens)).sum(-1)


@dataclass(frozen=True)
class YearRanking:
    """Kendall's tau between the circuit's and the full model's ranking of the two-digit years.

    Attributes:
        tokens: token id of each two-digit year that the tokenizer has.

    Source: Bhaskar et al. 2024, section 4.
    """

    tokens: Mapping[int, int]

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> PerExample:
        return kendall_tau(_at_years(exact(logits), self.tokens), _at_years(reference, self.tokens))


def year_metrics(tokens: Mapping[int, int]) -> dict[str, Metric]:
    """The metrics of greater-than, given the token of each two-digit year."""
    return {
        "years_above": YearsAbove(tokens),
        "years_above_10": YearsAbove(tokens, within=10),
        "year_ranking": YearRanking(tokens),
    }


def _starts(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise ValueError(
            "Greater-than's own metrics need the first year of each prompt but this batch has no labels. Use a batch "
            "of tlprune.tasks.greater_than, or set labels to the last two digits of the years."
        )
    return batch.labels


def _years(tokens: Mapping[int, int], like: Tensor) -> Tensor:
    return torch.tensor([*tokens], device=like.device)


def _at_years(values: Logits, tokens: Mapping[int, int]) -> PerYear:
    """What the years have at the one answer position."""
    return values[:, 0, torch.tensor([*tokens.values()], device=values.device)]
