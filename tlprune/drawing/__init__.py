"""Pictures of circuits: one figure as SVG, and the same figure as a page that answers to the pointer."""

from tlprune.drawing.drawn import Drawing, draw

__all__ = ["Drawing", "draw"]
