"""A folder that ``tlprune knowledge find`` wrote, as the other actions read it."""

from __future__ import annotations

from pathlib import Path

from tlprune.circuit import Circuit
from tlprune.files import read_json
from tlprune.knowledge.finding import read_seeds
from tlprune.studies.commands.study import FILE, Study


def opened(folder: Path, *, device: str | None = None) -> tuple[Study, dict[int, Circuit]]:
    """Model and task of a folder, and its subnetworks by seed.

    Raises:
        ValueError: nothing was found there, or the task has changed since, so that what is held out may have been
            trained on.
    """
    if not (folder / FILE).exists():
        raise ValueError(f"{folder} holds no subnetworks. Give the folder that tlprune knowledge find wrote.")
    study, circuits = Study(folder, read_json(folder / FILE, "study"), device), read_seeds(folder)
    known = {circuit.provenance.get("task", {}).get("fingerprint") for circuit in circuits.values()}
    if known != {study.task.fingerprint}:
        raise ValueError(
            f"The subnetworks in {folder} were found on examples {', '.join(sorted(map(str, known)))} of "
            f"{study.task.name} but these are {study.task.fingerprint} now. Restore the data."
        )
    return study, circuits
