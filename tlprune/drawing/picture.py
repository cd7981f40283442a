"""A finished picture, which a notebook shows and a file keeps."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from tlprune.drawing.page import frame
from tlprune.drawing.raster import png
from tlprune.files import write_whole

SUFFIXES = (".html", ".svg", ".png", ".dot")
TALLEST_FRAME = 900.0


@dataclass(frozen=True)
class Drawing:
    """A finished picture; a notebook shows it by itself.

    Attributes:
        svg: the figure alone, for papers.
        html: a page with the same figure that answers to pointer and keyboard; it loads nothing.
        dot: the circuit in Graphviz' language; ``None`` for a chart.
    """

    svg: str = field(repr=False)
    html: str = field(repr=False)
    dot: str | None = field(default=None, repr=False)

    def png(self, *, zoom: float = 2.0) -> bytes:
        """The figure as pixels, in its light colours; needs resvg_py, and nothing of the system but a font.

        Args:
            zoom: pixels for each unit of the figure.

        Raises:
            ModuleNotFoundError: resvg_py is not installed.
            ValueError: there is no font.
        """
        return png(self.svg, zoom=zoom)

    def save(self, path: str | Path) -> None:
        """Write the page (``.html``), the figure (``.svg`` or ``.png``) or, of a circuit, Graphviz' text (``.dot``).

        Raises:
            ValueError: the suffix is another one, or the file cannot be written.
            ModuleNotFoundError: it is ``.png`` and resvg_py is not installed.
        """
        target = Path(path)
        content = self._content(suffix_of(target))
        try:
            write_whole(target, content)
        except OSError as error:
            raise ValueError(
                f"A drawing needs a place to be written but {target} cannot be ({error.strerror}). "
                "Give a path in an existing folder that you may write to."
            ) from None

    def _content(self, suffix: str) -> str | bytes:
        if suffix == ".png":
            return self.png()
        if (content := {".svg": self.svg, ".html": self.html, ".dot": self.dot}[suffix]) is None:
            raise ValueError("Graphviz' text is of a circuit's graph but this drawing is a chart. Save it as .svg.")
        return content

    def _repr_html_(self) -> str:
        found = re.search(r' height="(\d+)"', self.svg)
        return frame(self.html, height=min(TALLEST_FRAME, float(found[1]) + 56 if found else TALLEST_FRAME))


def suffix_of(path: str | Path) -> str:
    """The ending of a path that a drawing can be saved under.

    Raises:
        ValueError: it is none of these.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"A drawing is saved as {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} but the path is {path}. "
            "End the path in one of these."
        )
    return suffix
