"""Text tables: the first column to the left, numbers to the right."""

from __future__ import annotations

import math
from collections.abc import Sequence


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with two spaces between columns as wide as they need to be.

    Example:
        >>> print("\\n".join(aligned(["", "edges", "KL"], [["circuit", "5", "0.0100"], ["empty", "0", "10.0000"]])))
                 edges       KL
        circuit      5   0.0100
        empty        0  10.0000
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [_line(cells, widths) for cells in (header, *rows)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        f"{cell:<{width}}" if place == 0 else f"{cell:>{width}}"
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *rest])


def number(value: float, digits: int) -> str:
    """With a fixed number of digits, and never ``-0.0``; what is infinite or not a number is ``undefined``.

    Example:
        >>> number(-1e-9, 2), number(1234.5, 1), number(float("nan"), 1)
        ('0.00', '1,234.5', 'undefined')
    """
    if not math.isfinite(value):
        return "undefined"
    return f"{round(value, digits) + 0.0:,.{digits}f}"
