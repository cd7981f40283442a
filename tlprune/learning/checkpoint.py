"""Checkpoints: a run as one file of tensors and JSON, written whole, from which it goes on bit for bit.

The file is in safetensors format. Its tensors are masks, multipliers, moments of the optimiser, the state of the random
generator, the order of examples, and the best masks so far; its metadata are the step, the time and the settings.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tlprune.files import check_room, write_whole
from tlprune.learning.best import Best
from tlprune.learning.settings import differences
from tlprune.learning.training import Training

FORMAT = "tlprune-checkpoint"
VERSION = "2"


def write_checkpoint(path: Path, training: Training, best: Best, settings: Mapping[str, Any]) -> None:
    """Write the state of a run; the file that was there stays until the new one is whole and on the disk.

    Raises:
        ValueError: the file cannot be written.
    """
    facts = {"step": training.done, "seconds": training.seconds, "best": best.facts(), "settings": dict(settings)}
    metadata = {"format": FORMAT, "version": VERSION, "run": json.dumps(facts)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in _tensors(training, best).items()}
    with _refusing(path):
        write_whole(path, save(tensors, metadata))


def write_first_checkpoint(path: Path, training: Training, best: Best, settings: Mapping[str, Any]) -> None:
    """The same where there may be none yet: also see to it that there is room for a second one beside it.

    No later one is larger: moments are there from the start, and room for the best masks.

    Raises:
        ValueError: the file cannot be written, or not twice.
    """
    write_checkpoint(path, training, best, settings)
    with _refusing(path):
        check_room(path.parent, path.stat().st_size)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"A checkpoint needs room for two of its size in a folder that can be written, but {path} cannot be: "
            f"{error.strerror}. Make the folder, free some space, or give another path. What was there is as it was."
        ) from error


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Attributes:
        facts: step, time, and what is known of the best masks.
        tensors: the state, by name.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read_checkpoint(path: Path, settings: Mapping[str, Any]) -> Saved | None:
    """The state that a run is to go on from; ``None`` where there is no file.

    Raises:
        ValueError: the file is not a whole checkpoint, or is of a run with other settings, task, model or sites.
    """
    if not path.exists():
        return None
    facts, tensors = _read(path)
    if found := differences(facts["settings"], settings):
        raise ValueError(
            f"A run can go on from its own checkpoint only, but {path} was written with another {'; '.join(found)}. "
            "Use the same settings, or another path to start anew."
        )
    return Saved(facts, tensors)


def resume(saved: Saved, training: Training, best: Best) -> None:
    """Put a run into a state that was saved."""
    facts, tensors = saved.facts, saved.tensors
    _restore(training, tensors)
    best.restore(facts["best"], {n.removeprefix("best."): t for n, t in tensors.items() if n.startswith("best.")})
    training.done, training.started = facts["step"], time.perf_counter() - facts["seconds"]
    training.masks.gate = training.masks.gate.at(max(0, training.done - 1))


# ---- what a run consists of


def _tensors(training: Training, best: Best) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {"generator": training.generator.get_state()}
    tensors |= {f"best.{name}": value for name, value in best.values.items()}
    if best.patience is not None and not best.values:
        tensors |= {f"room.{name}": torch.zeros_like(value) for name, value in training.trained().items()}
    for name, parameter in _parameters(training).items():
        tensors[name] = parameter
        moments = training.optimiser.state.get(parameter) or _no_moments(parameter)
        tensors |= {f"{kind}.{name}": value for kind, value in moments.items()}
    for stream, examples in training.streams.items():
        tensors |= {f"examples.{stream}.{name}": value for name, value in examples.state().items()}
    return tensors


@torch.no_grad()
def _restore(training: Training, tensors: Mapping[str, Tensor]) -> None:
    training.generator.set_state(tensors["generator"])
    for name, parameter in _parameters(training).items():
        parameter.copy_(tensors[name])
        kinds = [other.removesuffix(f".{name}") for other in tensors if other in _moments_of(name)]
        if kinds:  # a fused optimiser counts its steps where the parameter is
            own = {kind: tensors[f"{kind}.{name}"].to(parameter.device) for kind in kinds}
            training.optimiser.state[parameter] = own
    for stream, examples in training.streams.items():
        prefix = f"examples.{stream}."
        examples.restore({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})


def _parameters(training: Training) -> dict[str, torch.nn.Parameter]:
    multipliers = {f"multipliers.{place}": b.multipliers for place, b in enumerate(training.budgets)}
    return {**training.trained(), **multipliers}


def _no_moments(parameter: Tensor) -> dict[str, Tensor]:
    """Those that the optimiser begins with."""
    return {
        "step": torch.tensor(0.0),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def _moments_of(name: str) -> set[str]:
    return {f"{kind}.{name}" for kind in ("step", "exp_avg", "exp_avg_sq")}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole checkpoint ({error}). Give the path of one, or of nothing, to start anew."
        ) from error
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"{path} is a safetensors file but not a checkpoint of version {VERSION}. Give another path, to start anew."
        )
    return json.loads(metadata["run"]), tensors
