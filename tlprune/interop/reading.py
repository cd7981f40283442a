"""Reading files that others wrote: plain data and tensors, never code, and what provenance says of the file."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from tlprune.graph import Architecture, Graph


def load_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote, without running code that the file names; a ValueError if it cannot be had so."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles that torch did not write, before they are refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"it is cut, or holds more than tensors and plain data ({reason})") from None


def load_json(path: Path) -> Any:
    """What a JSON file says; a ValueError if it is not JSON."""
    return json.loads(path.read_text())


def architecture_of(model: Any) -> Architecture:
    """The shape of a TransformerLens model, or of its graph."""
    return model.architecture if isinstance(model, Graph) else Graph.of(model).architecture


def record(path: Path, kind: str) -> dict[str, Any]:
    """Which file it was: the provenance of what was read from it."""
    return {"file": {"format": kind, "name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}}


def reading(path: Path, kind: str, load: Any) -> Any:
    """What ``load`` makes of the file; failures name the file and what it should have been.

    Raises:
        ValueError: the file cannot be read, or is of another kind.
    """
    try:
        return load(path)
    except OSError as error:
        raise ValueError(f"Cannot read {path}: {error.strerror}. Give an existing file.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not {kind}: {error}. Give a whole one.") from None
