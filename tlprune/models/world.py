"""Where the model of the invented world lies, which ``scripts/train_world.py`` made.

What there is to know about the world is in ``tlprune.tasks.knowledge.world_facts``.
"""

from __future__ import annotations

from pathlib import Path

NAME = "world"
DIRECTORY = Path(__file__).parent / NAME
