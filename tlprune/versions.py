"""Versions of what made a result, for its provenance."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from tlprune import __version__


def versions() -> dict[str, str]:
    """Versions of tlprune, torch and TransformerLens."""
    return {"tlprune": __version__, **{name: _version(name) for name in ("torch", "transformer-lens")}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
