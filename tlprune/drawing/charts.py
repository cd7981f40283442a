"""Charts by plotly: the library where it is there, and pages of figures that need nothing but a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlprune.files import write_whole

TEMPLATE = "plotly_white"


def plotly() -> Any:
    """``plotly.graph_objects``.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    try:
        import plotly.graph_objects as found
    except ImportError:
        raise ModuleNotFoundError("plots need plotly, which is not installed. Run pip install plotly") from None
    return found


def write_page(path: Path, figures: Sequence[Any], *, title: str) -> None:
    """Write figures below each other as one page, with plotly's program in it.

    Args:
        path: the file.
        figures: of plotly.
        title: of the page.
    """
    from html import escape

    from plotly.offline import get_plotlyjs

    parts = [figure.to_html(full_html=False, include_plotlyjs=False) for figure in figures]
    page = f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title>"
    write_whole(path, f"{page}<script>{get_plotlyjs()}</script>{''.join(parts)}")
