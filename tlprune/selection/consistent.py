"""Selection among the sites whose scores survive a resampling of what they were measured on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.scores import Scores, check_count, first
from tlprune.selection.ranked import Selection, Top, taken, told

_MOST_NUMBERS = 1 << 24  # of resampled scores held at once


@dataclass(frozen=True)
class Consistent:
    """What another selection takes of the sites that are consistent over bootstrap resamples.

    The samples of the scores (``scores.samples``: of single examples, parts of the data, or seeds) are drawn with
    replacement, as many as there are, and averaged. A site is consistent if in a share of at least ``share`` of the
    resamples

    - ``rule="sign"``: its score has the sign that it has over all samples (a score of 0 has none);
    - ``rule="top"``: it is among the ``count`` sites of the highest score.

    The other selection sees a score of 0 where a site is not consistent, and what it takes of these is left out. So
    the circuit has ``count`` sites, or as many as are consistent.

    Source: Nikankin et al., "BlackboxNLP-2025 MIB Shared Task: Improving Circuit Faithfulness via Better Edge
    Selection" (2025), for the sign.

    Attributes:
        inner: the other selection.
        rule: what must be the same in most resamples.
        share: of the resamples, in (0.5, 1].
        resamples: how many.
        seed: of the draws.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> from tlprune.sites import Sites
        >>> sites = Sites((Graph(Architecture(1, 1, 1)),))
        >>> one, other = torch.zeros(2, 8)
        >>> one[0], other[0], one[7], other[7] = 9, -5, 1, 1
        >>> scores = Scores.mean_of([Scores(sites, one), Scores(sites, other)])
        >>> Top().select(scores, 1).edges, Consistent().select(scores, 1).edges
        (['input->a0.h0<q>'], ['m0->logits'])
    """

    inner: Selection = field(default=Top())
    rule: Literal["sign", "top"] = "sign"
    share: float = 0.95
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in ("sign", "top"):
            raise ValueError(f"rule must be 'sign' or 'top' but is {self.rule!r}. Choose one of these.")
        if not 0.5 < self.share <= 1 or self.resamples < 1:
            raise ValueError(
                f"Consistency needs a share above 0.5 and at most 1 of at least 1 resample but got {self.share} of "
                f"{self.resamples}. Leave them out for 0.95 of 1,000."
            )

    def select(self, scores: Scores, count: int) -> Circuit:
        """The inner selection's circuit, without sites that are not consistent.

        Raises:
            ValueError: the scores come without samples.
        """
        check_count(count, scores.sites)
        stable = self.shares(scores, count) >= self.share
        known = Scores(scores.sites, scores.values.detach().cpu().where(stable, 0), scores.provenance)
        found = self.inner.select(known, count)
        inner = found.provenance.get("selection", told(self.inner))
        return taken(self, scores, found.kept & stable, inner=inner, count=count, consistent=int(stable.sum()))

    def shares(self, scores: Scores, count: int) -> Float[Tensor, "site"]:
        """In what share of the resamples each site is as the rule wants it."""
        whole, hits = scores.values.detach().cpu().sign(), torch.zeros(len(scores.sites))
        for means in self._resampled(scores):
            if self.rule == "sign":
                hits += ((means.sign() == whole) & (whole != 0)).sum(0)
            else:
                hits += torch.stack([first(mean, count) for mean in means]).sum(0)
        return hits / self.resamples

    def _resampled(self, scores: Scores) -> Iterator[Float[Tensor, "resample site"]]:
        samples = scores.samples
        if samples is None or len(samples) < 2:
            raise ValueError(
                f"Consistent needs scores of several samples but has {0 if samples is None else len(samples)}. Score "
                "parts of the data, or under several seeds, and join them: tp.Scores.mean_of([...])."
            )
        generator, table = torch.Generator().manual_seed(self.seed), samples.detach().cpu()
        size = max(1, _MOST_NUMBERS // table.shape[1])
        for start in range(0, self.resamples, size):
            rows = min(size, self.resamples - start)
            drawn = torch.randint(len(table), (rows, len(table)), generator=generator)
            weights = torch.zeros(rows, len(table)).scatter_add_(1, drawn, torch.ones(drawn.shape))
            yield (weights.to(table) @ table) / len(table)
