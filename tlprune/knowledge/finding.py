"""Finding subnetworks into files, so that a search that was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlprune.circuit import Circuit
from tlprune.methods.knowledge import KnowledgeSubnetwork
from tlprune.methods.provenance import check_settings
from tlprune.task import Task

SEEDS = (84, 1318, 735)  # of the source


def knowledge_subnetworks(
    model: Any,
    task: Task,
    method: KnowledgeSubnetwork,
    *,
    seeds: Sequence[int] = SEEDS,
    out: str | Path | None = None,
    command: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] | None = None,
    progress: bool = False,
) -> dict[int, Circuit]:
    """A subnetwork for each seed.

    Args:
        model: the model; left as it was.
        task: only train and validation examples are used.
        method: all but its seed.
        seeds: of the method; by default the source's.
        out: a folder for ``seed-84.safetensors`` and its training record. Called again with the same settings, found
            subnetworks are read and a search that was stopped goes on from its checkpoint.
        command: what made them, for their provenance.
        tell: is called with a line for each subnetwork.
        progress: whether to show a progress bar for each search.

    Raises:
        ValueError: there is no seed, or the folder holds subnetworks of another method, task or model.
    """
    if not seeds:
        raise ValueError("A search needs a seed but got none. Give some, such as 84, 1318 and 735.")
    found = {}
    for seed in dict.fromkeys(seeds):
        path = None if out is None else path_of(Path(out), seed)
        found[seed] = found_at(path, model, task, replace(method, seed=seed), command, progress=progress)
        if tell is not None:
            tell(f"seed {seed}: {found[seed]}")
    return found


def path_of(folder: Path, seed: int) -> Path:
    """Where the subnetwork of a seed is in a folder."""
    return folder / f"seed-{seed}.safetensors"


def read_seeds(folder: str | Path) -> dict[int, Circuit]:
    """The subnetworks of a folder by seed.

    Raises:
        ValueError: there is none, or one is not whole.
    """
    paths = sorted(Path(folder).glob("seed-*.safetensors"))
    if not paths:
        raise ValueError(f"{folder} must hold subnetworks but has none. Give the folder of tlprune knowledge find.")
    found = {int(path.stem.removeprefix("seed-")): Circuit.load(path) for path in paths}
    return dict(sorted(found.items()))


def found_at(
    path: Path | None,
    model: Any,
    task: Task,
    method: KnowledgeSubnetwork,
    command: Mapping[str, Any] | None = None,
    *,
    progress: bool = False,
) -> Circuit:
    """A subnetwork: read where it is in its file, else found and written there.

    Raises:
        ValueError: the one in the file is of another method, task or model.
    """
    if path is None:
        return method.find(model, task, progress=progress)
    if path.exists():
        known = Circuit.load(path)
        check_settings(known.provenance, path, method, model, task.discovery)
        return known
    path.parent.mkdir(parents=True, exist_ok=True)
    records, checkpoint = path.with_suffix(".jsonl"), path.with_suffix(".checkpoint")
    found = method.find(model, task, metrics=records, checkpoint=checkpoint, progress=progress)
    found = found.like(found.kept, {**found.provenance, **({"command": dict(command)} if command else {})})
    found.save(path)
    checkpoint.unlink(missing_ok=True)
    return found
