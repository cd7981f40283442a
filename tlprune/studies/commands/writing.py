"""What every analysis of ``tlprune core`` leaves in a folder: its figures as JSON and, by plotly, as a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tlprune.drawing.charts import write_page
from tlprune.files import write_whole


def write(folder: Path, name: str, found: Any, *, title: str, more: Sequence[Callable[[], Any]] = ()) -> str:
    """Write ``NAME.json`` and, where plotly is installed, ``NAME.html``; what to print of it.

    Args:
        folder: where to.
        name: of the files.
        found: an analysis, with ``as_dict()`` and ``plot()``.
        title: of the page.
        more: what makes further figures of the page, if any.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        figures = [found.plot(), *(plot() for plot in more)]
    except ModuleNotFoundError as error:
        figures, missing = [], f" ({error})"
    else:
        missing = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{name}.json", json.dumps(found.as_dict(), indent=1, allow_nan=False) + "\n")
        if figures:
            write_page(folder / f"{name}.html", figures, title=title)
    except OSError as error:
        raise ValueError(f"Cannot write to {folder}: {error.strerror}. Choose another directory with --out.") from None
    names = [f"{name}.json", *([f"{name}.html"] if figures else [])]
    return f"wrote {' and '.join(names)} to {folder}/{missing}"
