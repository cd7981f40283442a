"""A saved subnetwork of weights, and the model that it was found on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tlprune.circuit import Circuit
from tlprune.models.load import load
from tlprune.scores import Scores

NAMES = ("circuit.safetensors", "circuit.json")
SCORES = ("scores.safetensors", "scores.json")


def circuit_in(path: Path) -> Circuit:
    """The circuit of a file, or of a folder that has one: that of a run, or of a search with one seed.

    Raises:
        ValueError: there is none, or one for each of several seeds, or it is not whole.
    """
    if path.is_file():
        return Circuit.load(path)
    found = [path / name for name in NAMES if (path / name).is_file()][:1] or sorted(path.glob("seed-*.safetensors"))
    if len(found) > 1:
        files = ", ".join(str(one) for one in found)
        raise ValueError(f"One subnetwork is needed but {path} has one for each seed. Give one of {files}.")
    if not found:
        raise ValueError(
            f"A subnetwork is read from {' or '.join(NAMES)} but {path} has neither. Give the folder of a run, or the "
            "file."
        )
    return Circuit.load(found[0])


def scores_in(path: Path) -> Scores | None:
    """The scores beside a circuit, where they were saved."""
    folder = path.parent if path.is_file() else path
    found = next((folder / name for name in SCORES if (folder / name).is_file()), None)
    return None if found is None else Scores.load(found)


def model_of(circuit: Circuit, name: str | None, device: str | None) -> Any:
    """The named model, or the one that the circuit's command was given.

    Raises:
        ValueError: neither names one.
    """
    known = name or circuit.provenance.get("command", {}).get("model")
    if known is None:
        raise ValueError("The circuit does not say which model it is of. Give --model.")
    return load(known, device=device)
