"""Accuracy by domain in words: a table of it, one of the spread over seeds, and what the two say."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from tlprune.evaluation.table import aligned, number

if TYPE_CHECKING:
    from tlprune.studies.domains import Domain, Domains
    from tlprune.studies.seed_spread import SeedSpread


def accuracy_table(found: Domains) -> str:
    """A row for each domain: the full model, and the mean over seeds, the worst and the best of each sparsity."""
    header = ["accuracy, %", "examples", "full model", *(f"{100 * one:g}% removed" for one in found.sparsities)]
    rows = [
        [name, f"{one.examples:,}", _points(one.full.value), *(_mean(one.spreads[size]) for size in found.sparsities)]
        for name, one in found.domains.items()
    ]
    return "\n".join([*aligned(header, rows), "mean over seeds [worst - best]"])


def spread_table(found: Domains) -> str:
    """A row for each domain but the sub-cases, of which there is the median."""
    header = ["best seed less worst, points", *(f"{100 * one:g}% removed" for one in found.sparsities)]
    rows = []
    for name in found.main:
        one = found.domains[name]
        rows.append([name, *(_range(one.spreads[size]) for size in found.sparsities)])
        kinds = found.subcases(one.task) if one.part is None else []
        if kinds:
            label = f"{one.task}: median of {len(kinds)} sub-cases"
            rows.append([label, *(_middle(kinds, size) for size in found.sparsities)])
    return "\n".join([*aligned(header, rows), "in brackets: what the choice of test examples alone gives on average"])


def spread_sentences(found: Domains) -> str:
    """For each sparsity the spread in domain, and the largest out of it."""
    return "\n".join(_sentence(found, sparsity) for sparsity in found.sparsities)


def _sentence(found: Domains, sparsity: float) -> str:
    own = found.domains[found.within].spreads[sparsity]
    start = f"{100 * sparsity:g}% removed: "
    if own.seeds == 1:
        return f"{start}one seed, which says nothing of the spread over seeds."
    others = [one for one in found.domains.values() if one.task != found.within]
    text = f"{start}{own.seeds} seeds differ by {_told(own)} on {found.within}"
    if not others:
        return f"{text}."
    widest = max(others, key=lambda one: one.spreads[sparsity].range)
    return f"{text}, and by up to {_told(widest.spreads[sparsity])} out of domain, on {widest.name}."


def _told(spread: SeedSpread) -> str:
    expected = "" if spread.sampling_range is None else f" (by chance {_points(spread.sampling_range)})"
    return f"{_points(spread.range)} points{expected}"


def _mean(spread: SeedSpread) -> str:
    if spread.seeds == 1:
        return _points(spread.mean)
    return f"{_points(spread.mean)} [{_points(spread.low)} - {_points(spread.high)}]"


def _range(spread: SeedSpread) -> str:
    return "-" if spread.sampling_range is None else f"{_points(spread.range)} ({_points(spread.sampling_range)})"


def _middle(kinds: list[Domain], sparsity: float) -> str:
    spreads = [one.spreads[sparsity] for one in kinds]
    known = [one.sampling_range for one in spreads if one.sampling_range is not None]
    return f"{_points(median(one.range for one in spreads))} ({_points(median(known))})" if known else "-"


def _points(share: float) -> str:
    return number(100 * share, 1)
