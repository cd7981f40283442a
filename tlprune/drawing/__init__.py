"""Pictures of circuits, of what they keep and of how they were found, which answer to the pointer in a browser."""

from tlprune.drawing.curves import draw_faithfulness, draw_training
from tlprune.drawing.drawn import draw, draw_overlay
from tlprune.drawing.kept import draw_density, draw_keep_counts
from tlprune.drawing.picture import Drawing

__all__ = ["Drawing", "draw", "draw_density", "draw_faithfulness", "draw_keep_counts", "draw_overlay", "draw_training"]
