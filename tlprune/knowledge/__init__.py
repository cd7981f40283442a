"""Knowledge-critical subnetworks looked at: what is forgotten without one and what is kept, beside chance."""

from __future__ import annotations
