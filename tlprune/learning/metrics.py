"""Figures of merit of hard circuits on examples that no method saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.learning.bootstrap import LEVEL, RESAMPLES, Interval, interval
from tlprune.learning.figures import figures
from tlprune.masking.cache import RunCache
from tlprune.masking.masked import Masked
from tlprune.task import Batch, Metric

PerExample = Float[Tensor, "example"]
# Means over examples: their name and the attribute that holds them.
FIGURES = {
    "accuracy": "correct",
    "agreement": "agrees",
    "exact_match": "exact",
    "logit_difference": "logit_difference",
    "probability_difference": "probability_difference",
    "kl": "kl",
    "rank": "rank",
}
LOWER_IS_BETTER = ("kl", "rank", "perplexity")


@dataclass(frozen=True)
class Performance:
    """Behaviour of one circuit, per example (averaged over answer positions where nothing else is said).

    Attributes:
        correct: the most likely token is the answer, ``(example,)``.
        agrees: the most likely token is the full model's, ``(example,)``.
        exact: 1 if the most likely token is the answer at every answer position, ``(example,)``.
        logit_difference: logit of the answer less that of the foil, ``(example,)``.
        probability_difference: probability of the answer less that of the foil, ``(example,)``.
        kl: divergence from the full model in nats, ``(example,)``.
        rank: of the answer among all tokens, 1 for the most likely, ``(example,)``.
        nats: cross entropy of the answers, summed over answer positions, ``(example,)``.
        tokens: number of answer positions, ``(example,)``.
        extra: the task's own metrics by name, ``(example,)`` each.
    """

    correct: PerExample
    agrees: PerExample
    exact: PerExample
    logit_difference: PerExample
    probability_difference: PerExample
    kl: PerExample
    rank: PerExample
    nats: PerExample
    tokens: PerExample
    extra: Mapping[str, PerExample] = field(default_factory=dict)

    def per_example(self) -> dict[str, PerExample]:
        """The figures that are means over examples, by the name that :meth:`means` gives them."""
        return {name: getattr(self, attribute) for name, attribute in FIGURES.items()} | dict(self.extra)

    def means(self) -> dict[str, float]:
        """The mean of each figure over examples, and the perplexity: ``exp(nats / tokens)`` over all tokens."""
        means = {name: float(values.mean()) for name, values in self.per_example().items()}
        return means | {"perplexity": float(_perplexity(self.nats.double().mean(), self.tokens.double().mean()))}

    def intervals(self, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> dict[str, Interval]:
        """Each figure of :meth:`means` with its percentile bootstrap interval over examples."""
        options = {"resamples": resamples, "level": level, "seed": seed}
        found = {name: interval(_mean, values, **options) for name, values in self.per_example().items()}
        return found | {"perplexity": interval(_perplexity, self.nats, self.tokens, **options)}

    def less(
        self, other: Performance, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
    ) -> dict[str, Interval]:
        """This circuit's figures less another's on the same examples, by the paired bootstrap.

        Figures that only one of the two has are left out. A figure is better only where its interval excludes zero:
        above it, or below for those in ``LOWER_IS_BETTER``.

        Raises:
            ValueError: the two have different numbers of examples.
        """
        options = {"resamples": resamples, "level": level, "seed": seed}
        first, second = self.per_example(), other.per_example()
        shared = [name for name in first if name in second]
        found = {name: interval(_difference, first[name], second[name], **options) for name in shared}
        columns = (self.nats, self.tokens, other.nats, other.tokens)
        return found | {"perplexity": interval(_perplexity_difference, *columns, **options)}


def _mean(mean: Tensor) -> Tensor:
    return mean


def _difference(first: Tensor, second: Tensor) -> Tensor:
    return first - second


def _perplexity(nats: Tensor, tokens: Tensor) -> Tensor:
    return (nats / tokens).exp()


def _perplexity_difference(nats: Tensor, tokens: Tensor, other_nats: Tensor, other_tokens: Tensor) -> Tensor:
    return _perplexity(nats, tokens) - _perplexity(other_nats, other_tokens)


def measure(
    masked: Masked,
    kept: Bool[Tensor, "edge"],
    batch: Batch,
    *,
    cache: RunCache | None = None,
    batch_size: int = 64,
    metrics: Mapping[str, Metric] | None = None,
) -> Performance:
    """Run a hard circuit on examples.

    Args:
        masked: the model; its own masks are not used.
        kept: the circuit, 1 for a kept edge.
        batch: the examples.
        cache: replacements and predictions of these examples, shared between circuits.
        batch_size: examples per forward pass.
        metrics: the task's own, by name.
    """
    (found,) = measure_each(masked, kept[None], batch, cache=cache, batch_size=batch_size, metrics=metrics)
    return found


@torch.no_grad()
def measure_each(
    masked: Masked,
    kept: Bool[Tensor, "circuit edge"],
    batch: Batch,
    *,
    cache: RunCache | None = None,
    batch_size: int = 64,
    metrics: Mapping[str, Metric] | None = None,
) -> list[Performance]:
    """Run many hard circuits on the same examples, several in one forward pass.

    Arguments are those of :func:`measure`; ``batch_size`` counts pairs of circuit and example.

    Raises:
        ValueError: a metric has the name of one of the figures that every task has.
    """
    metrics = dict(metrics or {})
    _check_names(metrics)
    if not len(kept):
        return []
    cache = cache or masked.cache(batch)
    parts = list(_parts(masked, kept, batch, cache=cache, batch_size=batch_size, metrics=metrics))
    columns = {name: torch.cat([part[name] for part in parts]).split(len(batch)) for name in parts[0]}
    return [_performance({name: values[index] for name, values in columns.items()}) for index in range(len(kept))]


def _parts(
    masked: Masked, kept: Tensor, batch: Batch, *, cache: RunCache, batch_size: int, metrics: Mapping[str, Metric]
) -> Iterator[dict[str, Tensor]]:
    """Figures of every example under the first circuit, then under the second, and so on."""
    for pairs in torch.arange(len(kept) * len(batch)).split(batch_size):
        part = batch.rows(pairs % len(batch)).to(masked.backend.device)
        reference = cache.reference(part)
        logits = masked(part, mask=_mask(kept, pairs // len(batch)), replaced=cache.replaced(part))
        found = figures(logits, part, reference)
        found |= {name: metric(logits, part, reference) for name, metric in metrics.items()}
        yield {name: values.float().cpu() for name, values in found.items()}


def _mask(kept: Tensor, owners: Tensor) -> Tensor:
    """One mask for all rows where they belong to one circuit, which is quicker, else one for each."""
    own = kept.to(owners.device)[owners] if owners[0] != owners[-1] else kept[owners[0]]
    return own.float()


def _performance(columns: dict[str, Tensor]) -> Performance:
    own = {f.name for f in fields(Performance)} - {"extra"}
    extra = {name: values for name, values in columns.items() if name not in own}
    return Performance(**{name: columns[name] for name in own}, extra=extra)


def _check_names(metrics: Mapping[str, Metric]) -> None:
    taken = {*FIGURES, *FIGURES.values(), "nats", "tokens", "perplexity"} & {*metrics}
    if taken:
        raise ValueError(
            f"A task's own metrics need names of their own but {sorted(taken)} are figures that every task has. "
            "Choose others."
        )
