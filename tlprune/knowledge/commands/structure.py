"""``tlprune knowledge structure``: where the weights of a subnetwork lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from tlprune.knowledge.commands.saved import circuit_in, scores_in
from tlprune.knowledge.structure import structure
from tlprune.outcome import Outcome
from tlprune.studies.commands.writing import write


@dataclass(frozen=True)
class Lie:
    """Count the weights of a subnetwork by layer, kind of matrix, head and neuron, beside a random one.

    Attributes:
        folder: a directory with circuit.safetensors or circuit.json, and scores beside it where there are some; or
            the file.
        out: directory for structure.json and structure.html; by default the same.
    """

    folder: Positional[Path]
    out: Path | None = None


def lie(settings: Lie) -> Outcome:
    """Tell it and write it; what to say."""
    folder = settings.folder
    found = structure(circuit_in(folder), scores=scores_in(folder))
    more = [found.plot_heads] if found.heads else []
    out = settings.out or (folder.parent if folder.is_file() else folder)
    wrote = write(out, "structure", found, title=f"Structure of {folder}", more=more)
    return Outcome(f"{found}\n\n{wrote}", found.as_dict())
