"""Versions of what made a result, for its provenance."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Installed versions of tlprune, torch and TransformerLens."""
    return {name: _version(name) for name in ("tlprune", "torch", "transformer-lens")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
