"""Skill neurons put to the test: what is lost without them, whose they are, and what a model keeps of them."""

from __future__ import annotations
