"""Pruned models looked at: parameters and products that are left, and how alike the masks of several are."""

from __future__ import annotations
