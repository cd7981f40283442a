"""Schedules: plain functions from a step number to a value."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """Always ``value``."""
    return lambda step: value


def linear(start: float, end: float, *, steps: int) -> Schedule:
    """A straight line from ``start`` at step 0 to ``end`` at step ``steps``, then ``end``.

    Example:
        >>> rise = linear(0, 0.98, steps=250)
        >>> rise(0), rise(125), rise(1000)
        (0.0, 0.49, 0.98)
    """
    return lambda step: start + (end - start) * _progress(step, steps)


def logarithmic(start: float, end: float, *, steps: int) -> Schedule:
    """A straight line in the logarithm of ``1 - value``: the kept fraction shrinks by a constant factor per step.

    Example:
        >>> [round(logarithmic(0, 0.99, steps=2)(step), 4) for step in range(3)]
        [0.0, 0.9, 0.99]
    """
    if start >= 1 or end >= 1:
        raise ValueError(f"A logarithmic schedule needs values below 1 but got {start} and {end}. Use linear.")
    first, last = math.log1p(-start), math.log1p(-end)
    return lambda step: 0.0 - math.expm1(first + (last - first) * _progress(step, steps))


def exponential(start: float, end: float, *, steps: int) -> Schedule:
    """A constant factor per step, from ``start`` at step 0 to ``end`` at step ``steps``, then ``end``.

    Raises:
        ValueError: an end is not above 0.

    Example:
        >>> [round(exponential(1, 0.01, steps=2)(step), 4) for step in range(4)]
        [1.0, 0.1, 0.01, 0.01]
    """
    if start <= 0 or end <= 0:
        raise ValueError(f"An exponential schedule needs values above 0 but got {start} and {end}. Use linear.")
    return lambda step: start * (end / start) ** _progress(step, steps)


def join(first: Schedule, second: Schedule, *, at: int) -> Schedule:
    """``first`` up to step ``at``, from there ``second``, which counts its steps from 0.

    Example:
        >>> warm = join(linear(0, 1, steps=10), linear(1, 0, steps=10), at=10)
        >>> [warm(step) for step in (5, 10, 15)]
        [0.5, 1.0, 0.5]
    """
    return lambda step: first(step) if step < at else second(step - at)


def _progress(step: int, steps: int) -> float:
    return 1.0 if steps <= 0 else min(max(step / steps, 0.0), 1.0)
