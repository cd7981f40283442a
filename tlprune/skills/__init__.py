"""Skill neurons looked at: what is lost without them, and models that are pruned to them."""

from __future__ import annotations
