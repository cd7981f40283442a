"""An axis of a chart: where numbers stand on it, and at which of them it has ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MOST_TICKS = 7


@dataclass(frozen=True)
class Axis:
    """Numbers from ``low`` to ``high`` on the pixels from ``start`` to ``end``.

    Attributes:
        low: the number at the start.
        high: the number at the end; more than ``low``.
        start: in pixels.
        end: in pixels; less than the start for an axis that grows upwards.
        log: whether equal ratios have equal lengths; ``low`` is then positive.

    Example:
        >>> axis = Axis(1, 1000, start=0, end=300, log=True)
        >>> round(axis.place(10)), axis.ticks()
        (100, [1, 3, 10, 30, 100, 300, 1000])
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @staticmethod
    def over(values: Iterable[float], *, start: float, end: float, log: bool = False) -> Axis:
        """The axis that has room for all of some numbers; a little more where they all are one.

        Example:
            >>> Axis.over([0.03, 0.98], start=0, end=1), Axis.over([5], start=0, end=1)
            (Axis(low=0.0, high=1.0, start=0, end=1, log=False), Axis(low=4.0, high=6.0, start=0, end=1, log=False))
        """
        found = sorted(values) or [1.0]
        low, high = found[0], found[-1]
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
        if log:
            return Axis(low, high, start, end, log)
        step = _step(low, high)
        return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end)

    def place(self, value: float) -> float:
        """Where a number stands."""
        low, high, at = (math.log(number) if self.log else number for number in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round numbers from low to high; on a logarithmic axis powers of ten, and 2, 3 or 5 times these."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1) if self.log else ()
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [_rounded(digit * 10.0**power) for power in powers for digit in digits]
            found = [tick for tick in found if self.low <= tick * (1 + 1e-9) and tick <= self.high * (1 + 1e-9)]
            if 2 <= len(found) <= MOST_TICKS:
                return found
        return found[:: math.ceil(len(found) / MOST_TICKS)] if len(found) > 1 else self._even()

    def _even(self) -> list[float]:
        step = _step(self.low, self.high)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [_rounded(number * step) for number in range(first, last + 1)]


def _step(low: float, high: float) -> float:
    """A round distance between ticks: 1, 2 or 5 times a power of ten."""
    rough = (high - low) / (MOST_TICKS - 2)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))


def _rounded(number: float) -> float:
    """Without what binary fractions add: ``0.30000000000000004`` is ``0.3``."""
    short = float(f"{number:.13g}")
    return int(short) if short == int(short) else short


def number_text(number: float) -> str:
    """How numbers are written beside an axis and in a note.

    Example:
        >>> [number_text(number) for number in (32491, 0.25, 1e-7, 3.0, 0.123456)]
        ['32,491', '0.25', '1e-07', '3', '0.1235']
    """
    return f"{number:,.0f}" if number == int(number) and abs(number) < 1e9 else f"{number:.4g}"
