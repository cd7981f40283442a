"""Shapes of models for tests of graphs."""

from tlprune.graph import Architecture

GPT2 = Architecture(12, 12, 12, position_embedding=True)
STORIES = Architecture(5, 8, 4)
SHAPES = {
    "plain": Architecture(3, 2, 2),
    "positions": Architecture(2, 3, 3, position_embedding=True),
    "grouped": Architecture(2, 4, 2),
    "parallel": Architecture(3, 2, 2, parallel=True),
    "attention_only": Architecture(3, 2, 2, has_mlp=False),
    "grouped_parallel": Architecture(2, 4, 1, parallel=True),
}
