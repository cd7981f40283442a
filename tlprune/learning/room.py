"""Whether a run fits into memory, before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tlprune.learning.estimate import estimate_of_run
from tlprune.learning.memory import Estimate, shown
from tlprune.learning.training import Training
from tlprune.masking.unembedding import vocabulary
from tlprune.task import Discovery

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")  # where Linux says what a container may take


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, what PyTorch holds for reuse included; ``None`` where nobody says.

    Example:
        >>> free_memory(torch.device("meta")) is None
        True
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or not MEMINFO.exists():
        return None
    line = next((line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:")), None)
    known = [] if line is None else [int(line.split()[1]) * 1024]
    return min([*known, *_of_group()], default=None)


def _of_group() -> list[int]:
    """What a control group has left; nothing where it has no limit."""
    limit, used = (GROUP / name for name in ("memory.max", "memory.current"))
    if not (limit.exists() and used.exists()) or limit.read_text().strip() == "max":
        return []
    return [int(limit.read_text()) - int(used.read_text())]


def fitting(training: Training, discovery: Discovery, memory: float | None = None) -> int | None:
    """How many examples of a run are to be run at once so that it fits; ``None`` for as many as the run has it.

    Nothing is changed or refused where the free memory or the need is not known: on other devices than GPUs of NVIDIA
    and the CPU of Linux, and with hooks of somebody's on the model, which a run without numbers would set off.

    Args:
        training: the run, before its first step.
        discovery: its examples.
        memory: bytes that it may take beside the model's weights; by default what is free.

    Raises:
        ValueError: the number was given and is too large, or not even single examples fit.
    """
    free = free_memory(training.masked.backend.device) if memory is None else memory
    if free is None or at_most(training) <= free:
        return None
    found = told(training, discovery)
    if found is None or found.beside_weights <= free:
        return None
    largest = _in_pieces(found, training, discovery).largest_batch(free + found.weights)
    if largest and training.layout.micro_batch is None:
        return largest
    raise ValueError(_too_much(found, free, training, largest))


def _in_pieces(found: Estimate, training: Training, discovery: Discovery) -> Estimate:
    """What a run takes by how many examples it runs at once; what it takes with all is known."""

    def again(size: int) -> Estimate:
        layout = replace(training.layout, micro_batch=size)
        return replace(estimate_of_run(training.masked, discovery, training.plan, layout), batch=size)

    return replace(found, batch=training.layout.micro_batch or found.batch, again=again)


def told(training: Training, discovery: Discovery) -> Estimate | None:
    """What a run takes, if that can be told."""
    if training.masked.backend.is_hooked():
        return None
    try:
        return estimate_of_run(training.masked, discovery, training.plan, training.layout)
    except (RuntimeError, NotImplementedError, TypeError):  # somebody's gate, ablation or objective asks for numbers
        return None


def _too_much(found: Estimate, free: float, training: Training, largest: int) -> str:
    advice = f"micro_batch={largest}" if largest else "shorter prompts, a model in bfloat16, or a larger device"
    device, at_once = training.masked.backend.device, training.layout.micro_batch or 1
    pieces = f", {at_once:,} at once," if largest else ", even one at a time,"
    return (
        f"A training step of {found.batch:,} x {found.length:,} tokens{pieces} needs more than the {shown(free)} that "
        f"are free on {device}. What would fit: {advice}. Of all at once:\n{found}"
    )


def at_most(training: Training) -> int:
    """Bytes that a step does not exceed, told at once: twice everything that any kind of step has.

    So runs that are far from filling memory, nearly all, are not run without numbers first.
    """
    backend = training.masked.backend
    shape, width = backend.architecture, backend.d_model
    item = max(4, backend.dtype.itemsize)
    total = 0
    for stream in training.streams.values():
        length = stream.train.clean.ids.shape[1]
        writers = shape.n_layers * (shape.n_heads + 1) + 2
        token = width * (4 * writers + 24 * shape.n_heads + 24 * shape.n_layers)
        token += 12 * shape.n_layers * (backend.d_mlp or 0) + 8 * shape.n_layers * shape.n_heads * length
        spans, sites = 1 + len(training.masks.sites.spans), training.masks.sites
        token += 0 if spans == 1 else 6 * len(sites) + (spans - 1) * 8 * shape.n_layers * shape.n_heads * length
        answers = 8 * stream.train.positions.shape[1] * vocabulary(backend)
        kept = len(stream.train) * (length * width * (5 * shape.n_layers + 4) + answers // 8)
        total += stream.size * (length * token + answers) + kept
    weights = sum(value.numel() for value in backend.held().values())
    return 2 * item * (total + 2 * weights + 8 * len(training.masks.sites))
