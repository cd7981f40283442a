"""A figure as pixels, by resvg: a package without any other program or system library behind it."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tlprune.drawing.style import FONT

FACE = "DejaVu Sans"
"""What words are set in where none of the figure's own fonts is installed."""


def png(svg: str, *, zoom: float = 2.0) -> bytes:
    """A figure as a PNG, in its light colours.

    Args:
        svg: the figure.
        zoom: pixels for each of its units; 2 suits slides and screens of high density.

    Raises:
        ModuleNotFoundError: resvg_py is not installed.
        ValueError: there is no font, so that the picture would be without words.
    """
    if not _has_words():
        raise ValueError(
            "A PNG needs a font for its words but this machine has none that fits. Install one (pip install matplotlib "
            f"brings {FACE}), or save the drawing as .svg or .html."
        )
    return _rendered(svg, zoom)


def _rendered(svg: str, zoom: float) -> bytes:
    return _resvg().svg_to_bytes(svg_string=svg, zoom=zoom, sans_serif_family=FACE, font_dirs=_fonts())


def _resvg() -> Any:
    try:
        return import_module("resvg_py")
    except ImportError:
        raise ModuleNotFoundError(
            "A drawing as .png needs resvg_py, which is not installed. Run pip install resvg_py, or save it as .svg."
        ) from None


def _fonts() -> list[str]:
    """Folders of fonts beside the system's own: those that matplotlib brings, where it is installed."""
    found = find_spec("matplotlib")
    return [
        str(Path(place) / "mpl-data/fonts/ttf") for place in (found.submodule_search_locations if found else ()) or ()
    ]


@cache
def _has_words() -> bool:
    start = f'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20" font-family="{FONT}">'
    return _rendered(f'{start}<text x="2" y="15">a0</text></svg>', 1.0) != _rendered(f"{start}</svg>", 1.0)
