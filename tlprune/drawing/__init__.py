"""Pictures of circuits: one figure as SVG, and the same figure as a page that answers to the pointer."""

from tlprune.drawing.drawn import draw, draw_overlay
from tlprune.drawing.picture import Drawing

__all__ = ["Drawing", "draw", "draw_overlay"]
