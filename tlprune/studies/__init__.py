"""Studies of many subnetworks of one model: found over seeds and sizes, kept in a folder, looked at together."""

from __future__ import annotations
