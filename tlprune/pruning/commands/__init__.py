"""The command ``tlprune saliency``."""

from __future__ import annotations
