"""Figures of merit of hard circuits on examples that no method saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.backends.activations import Activations
from tlprune.learning.bootstrap import LEVEL, RESAMPLES, Interval, interval
from tlprune.learning.figures import figures, has_foils
from tlprune.masking.cache import RunCache
from tlprune.masking.masked import Masked
from tlprune.statistic import Measured, Statistic
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
    "squared_error": "squared_error",
    "target_error": "target_error",
}
LOWER_IS_BETTER = ("kl", "rank", "perplexity", "squared_error", "target_error", "word_cross_entropy")


@dataclass(frozen=True)
class Performance:
    """Behaviour of one circuit, per example (averaged over answer positions where nothing else is said).

    What the examples do not have is ``None`` and no figure: differences from foils without foils, squared errors of
    classes and tokens, and all but squared errors of a regression.

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
        squared_error: of a regression from the full model's output, ``(example,)``.
        target_error: squared error of a regression from the right number, ``(example,)``.
        extra: the task's own metrics by name, ``(example,)`` each.
        statistics: the task's own figures of all examples together, by name.
    """

    correct: PerExample | None = None
    agrees: PerExample | None = None
    exact: PerExample | None = None
    logit_difference: PerExample | None = None
    probability_difference: PerExample | None = None
    kl: PerExample | None = None
    rank: PerExample | None = None
    nats: PerExample | None = None
    tokens: PerExample | None = None
    squared_error: PerExample | None = None
    target_error: PerExample | None = None
    extra: Mapping[str, PerExample] = field(default_factory=dict)
    statistics: Mapping[str, Measured] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many examples there are."""
        return len(next(iter(self.per_example().values())))

    def per_example(self) -> dict[str, PerExample]:
        """The figures that are means over examples, by the name that :meth:`means` gives them."""
        known = {name: getattr(self, attribute) for name, attribute in FIGURES.items()}
        return {name: values for name, values in known.items() if values is not None} | dict(self.extra)

    def figure(self, name: str) -> PerExample:
        """One of :meth:`per_example`.

        Raises:
            ValueError: these examples do not have it.
        """
        found = self.per_example()
        if name not in found:
            raise ValueError(
                f"This needs a figure that is a mean over examples but got {name!r}. Choose one of {', '.join(found)}: "
                "differences need foils, a regression has errors alone."
            )
        return found[name]

    def means(self) -> dict[str, float]:
        """The mean of each figure over examples, and those of all together.

        The perplexity is ``exp(nats / tokens)`` over all tokens.
        """
        means = {name: float(values.mean()) for name, values in self.per_example().items()}
        return means | {name: measured.value for name, measured in self._together().items()}

    def _together(self) -> dict[str, Measured]:
        """The figures that are functions of several means."""
        if self.nats is None or self.tokens is None:
            return dict(self.statistics)
        return {"perplexity": Measured(torch.stack([self.nats, self.tokens], -1), _perplexity), **self.statistics}

    def intervals(self, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> dict[str, Interval]:
        """Each figure of :meth:`means` with its percentile bootstrap interval over examples."""
        options = {"resamples": resamples, "level": level, "seed": seed}
        found = {name: interval(_mean, values, **options) for name, values in self.per_example().items()}
        together = self._together().items()
        return found | {name: interval(one.of_means, *one.columns.unbind(-1), **options) for name, one in together}

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
        together, others = self._together(), other._together()
        shared = [name for name in together if name in others]
        return found | {name: _paired(together[name], others[name], options) for name in shared}


def _mean(mean: Tensor) -> Tensor:
    return mean


def _difference(first: Tensor, second: Tensor) -> Tensor:
    return first - second


def _perplexity(nats: Tensor, tokens: Tensor) -> Tensor:
    return (nats / tokens).exp()


def _paired(first: Measured, second: Measured, options: Mapping[str, Any]) -> Interval:
    """The difference of two statistics of the same examples."""
    count = first.columns.shape[-1]

    def difference(*means: Tensor) -> Tensor:
        return first.of_means(*means[:count]) - second.of_means(*means[count:])

    return interval(difference, *first.columns.unbind(-1), *second.columns.unbind(-1), **options)


def measure(
    masked: Masked,
    kept: Bool[Tensor, "edge"],
    batch: Batch,
    *,
    cache: RunCache | None = None,
    batch_size: int = 64,
    metrics: Mapping[str, Metric | Statistic] | None = None,
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
    metrics: Mapping[str, Metric | Statistic] | None = None,
) -> list[Performance]:
    """Run many hard circuits on the same examples, several in one forward pass.

    Arguments are those of :func:`measure`; ``batch_size`` counts pairs of circuit and example.

    Raises:
        ValueError: a metric has the name of one of the figures that every task has, or only some answers have a foil.
    """
    metrics = dict(metrics or {})
    _check_names(metrics)
    has_foils(batch)
    if not len(kept):
        return []
    cache = cache or masked.cache(batch)
    order = torch.argsort(batch.clean.lengths.cpu(), stable=True)  # so that little of a pass is padding
    parts = list(_parts(masked, kept, batch.rows(order), cache=cache, batch_size=batch_size, metrics=metrics))
    columns = {name: torch.cat([part[name] for part in parts], 1)[:, order.argsort()] for name in parts[0]}
    owned = [{name: values[index] for name, values in columns.items()} for index in range(len(kept))]
    return [_performance(own, metrics) for own in owned]


def _parts(
    masked: Masked,
    kept: Tensor,
    batch: Batch,
    *,
    cache: RunCache,
    batch_size: int,
    metrics: Mapping[str, Metric | Statistic],
) -> Iterator[dict[str, Tensor]]:
    """Figures of some examples under every circuit, ``(circuit, example)``, then of the next.

    What the circuits share, replacements and the full model's predictions, is there once for all of them.
    """
    for part in batch.to(masked.backend.device).split(batch_size):
        reference, replaced = cache.reference(part), cache.replaced(part)
        found: dict[str, list[Tensor]] = {}
        for own in kept.split(max(1, batch_size // len(part))):
            rows = torch.arange(len(own) * len(part), device=reference.device)
            many, known = part, reference
            if len(own) > 1:
                many, known = part.rows(rows % len(part)), reference[rows % len(part)]
            logits = masked(many, mask=_mask(own, rows // len(part)), replaced=_repeated(replaced, len(part), len(own)))
            measured = figures(logits, many, known)
            measured |= {name: _columns(metric)(logits, many, known) for name, metric in metrics.items()}
            for name, values in measured.items():
                found.setdefault(name, []).append(values.float().cpu().unflatten(0, (len(own), len(part))))
        yield {name: torch.cat(values) for name, values in found.items()}


def _mask(kept: Tensor, owners: Tensor) -> Tensor:
    """One mask for all rows where they belong to one circuit, which is quicker, else one for each."""
    own = kept.to(owners.device)
    return (own[0] if len(own) == 1 else own[owners]).float()


def _repeated(replaced: Activations, examples: int, times: int) -> Activations:
    """What each of these examples has sent in place of its activations, for several circuits one after the other."""
    if times == 1:
        return replaced
    return replaced.map(lambda one: one.repeat(times, *[1] * (one.dim() - 1)) if len(one) == examples else one)


def _columns(metric: Metric | Statistic) -> Callable[[Tensor, Batch, Tensor], Tensor]:
    return metric.columns if isinstance(metric, Statistic) else metric


def _performance(columns: dict[str, Tensor], metrics: Mapping[str, Metric | Statistic]) -> Performance:
    own = {name: values for name, values in columns.items() if name not in metrics}
    extra = {name: columns[name] for name, metric in metrics.items() if not isinstance(metric, Statistic)}
    statistics = {
        name: Measured(metric.prepared(columns[name]), metric.of_means)
        for name, metric in metrics.items()
        if isinstance(metric, Statistic)
    }
    return Performance(**own, extra=extra, statistics=statistics)


def _check_names(metrics: Mapping[str, Metric | Statistic]) -> None:
    taken = {*FIGURES, *FIGURES.values(), "nats", "tokens", "perplexity"} & {*metrics}
    if taken:
        raise ValueError(
            f"A task's own metrics need names of their own but {sorted(taken)} are figures that every task has. "
            "Choose others."
        )
