"""What a step of ``tp.KnowledgeSubnetwork`` costs beside the same three batches run plain.

    python -m benchmarks.knowledge [--text 10 --tokens 512 --target 250 --control 250] [--json] [--no-memory]

GPT-2-small shape with random weights and vocabulary 50,257, masks on every weight of the upper half of the layers
(42,467,328 of them), 2 threads. ``knowledge_step`` is a step of training: three draws, three terms forward and backward
under masks, the price, the optimiser. ``plain_step`` has the same prompts and losses, the model as it is, gradients of
exactly the matrices that are masked, nothing else, and all references stored as log-probabilities; only answer
positions are unembedded. ``filling`` is the first meeting of the examples, when the references are computed.

Times are CPU seconds of this process, the two kinds interleaved, medians. Operations are those of matrix products and
attention, counted, which no other load on the machine can change. Peak memory is measured in a process for each kind:
high-water RSS less RSS after the model is there, over the bytes of the model. The slope is how much that grows with
each masked weight, from masks on the upper half and on the upper quarter of the layers and one short example of each
kind, since activations grow with masked layers, too; with it a line says what a step of GPT-2 XL's shape would take (48
layers of width 1,600: 737,280,000 masked weights), its activations apart.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

import tlprune as tp
from benchmarks.alone import medians, show
from benchmarks.speed import THREADS, Work, cpu_seconds, gpt2_shaped, memory_status
from tlprune.backends import backend_of
from tlprune.learning.objectives import weighted
from tlprune.masking.cache import reference_predictions
from tlprune.sites import Weights
from tlprune.task import Batch, Stream, Task, Tokenisation, Tokens

FACT = 12  # tokens of a prompt that tells a fact, the tail included
XL_MASKED = 24 * 12 * 1600**2
XL_MODEL = 1_557_611_200 * 4


@dataclass(frozen=True)
class Settings:
    """Cost of a step of knowledge-critical subnetworks.

    Attributes:
        target: facts to erase per step.
        control: other facts per step.
        text: blocks of text per step.
        tokens: tokens per block.
        layers: layers of the model.
        width: width of its residual stream, a multiple of 64.
        vocabulary: its tokens.
        rounds: measurements of each kind.
        memory: whether to measure peak memory too.
        json: print one JSON object instead of lines.
        only: measure the peak memory of this kind of step in this process, in bytes.
        masked: layers that are masked, counted from the last; by default half of them.
    """

    target: int = 16
    control: int = 16
    text: int = 2
    tokens: int = 64
    layers: int = 12
    width: int = 768
    vocabulary: int = 50257
    rounds: int = 5
    memory: bool = True
    json: bool = False
    only: str | None = None
    masked: int | None = None


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(THREADS)
    if settings.only:
        print(peak_memory(settings))
        return
    show(costs(settings) | (memory(settings) if settings.memory else {}), settings)


def model_of(settings: Settings) -> Any:
    return gpt2_shaped(layers=settings.layers, width=settings.width, vocabulary=settings.vocabulary)


def examples(settings: Settings, count: int, length: int, *, everywhere: bool, seed: int) -> Batch:
    """Random prompts read in front of their last token, or at all of them but the last."""
    ids = torch.randint(0, settings.vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))
    positions = torch.arange(length - 1)[0 if everywhere else -1 :].expand(count, -1)
    answers = ids[torch.arange(count)[:, None], positions + 1]
    return Batch(torch.arange(count), Tokens(ids), Tokens(ids), positions, answers, torch.full_like(answers, -100))


def task_of(settings: Settings) -> Task:
    streams = {}
    for seed, name in enumerate(("main", "control", "text")):
        count = {"main": settings.target, "control": settings.control, "text": settings.text}[name]
        length = settings.tokens if name == "text" else FACT
        one = examples(settings, count, length, everywhere=name == "text", seed=seed)
        streams[name] = Stream(one, one.rows(torch.arange(1)), one.rows(torch.arange(1)))
    return Task("random", streams, Tokenisation(prepend_bos=False))


def method_of(settings: Settings) -> tp.KnowledgeSubnetwork:
    masked = settings.masked or settings.layers // 2
    return tp.KnowledgeSubnetwork(layers=f"{settings.layers - masked}-{settings.layers - 1}")


# ---- the kinds of step


def knowledge_step(model: Any, settings: Settings) -> Work:
    """The next step of a training run as the method starts it."""
    method, task = method_of(settings), task_of(settings)
    masks = tp.Masks(method.sites(model), tp.StraightThrough())
    plan = method.plan(masks)
    records = tp.steps(tp.Masked(model, masks, tp.Zero()), method.examples(task.discovery), **plan)

    def step() -> None:
        next(records)

    return step


def plain_step(model: Any, settings: Settings) -> Work:
    """The same prompts and losses without masks."""
    method, task, backend = method_of(settings), task_of(settings), backend_of(model)
    weights = method.sites(model).group("weights")
    assert isinstance(weights, Weights)
    names = [matrix.name for matrix in weights.matrices]
    leaves = {name: backend.parameters()[name].detach().requires_grad_() for name in names}
    swapped = {name: lambda _, name=name: leaves[name] for name in names}
    batches = {name: stream.train for name, stream in task.streams.items()}
    references = {name: reference_predictions(backend, batch) for name, batch in batches.items()}

    def step() -> None:
        for leaf in leaves.values():
            leaf.grad = None
        for weight, objective in weighted(method.objective):
            batch = batches[objective.on]
            logits = backend.with_weights(swapped, lambda batch=batch: backend.logits(batch.clean, batch.positions))
            (weight * objective(logits, batch, references[objective.on])).backward()

    return step


KINDS: dict[str, Callable[[Any, Settings], Work]] = {"knowledge_step": knowledge_step, "plain_step": plain_step}


# ---- measuring


def costs(settings: Settings) -> dict[str, float]:
    """Time and operations of a knowledge step over those of a plain one."""
    model = model_of(settings)
    works = {name: make(model, settings) for name, make in KINDS.items()}
    filling = cpu_seconds(works["knowledge_step"])
    works["plain_step"]()
    seconds = medians(works, settings.rounds)
    counted = {name: operations(work) for name, work in works.items()}
    return {
        "time": round(seconds["knowledge_step"] / seconds["plain_step"], 3),
        "operations": round(counted["knowledge_step"] / counted["plain_step"], 3),
        "filling": round(filling / seconds["plain_step"], 3),
        "plain_step_seconds": round(seconds["plain_step"], 3),
    }


def operations(work: Work) -> int:
    """Of matrix products and attention, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def memory(settings: Settings) -> dict[str, Any]:
    """Peak memory of each kind over the model's own, and how it grows with the masked weights."""
    half, quarter = settings.layers // 2, max(1, settings.layers // 4)
    peaks = {name: _peak(settings, name, half) for name in KINDS}
    least = replace(settings, target=1, control=1, text=1, tokens=FACT)
    fewer, more = (_peak(least, "knowledge_step", masked) for masked in (quarter, half))
    each = 12 * settings.width**2  # weights of a layer's matrices
    own = sum(value.nbytes for value in model_of(settings).parameters())
    slope = (more - fewer) / ((half - quarter) * each) if half > quarter else float("nan")
    return {
        "peak_memory": {name: round(peak / own, 2) for name, peak in peaks.items()},
        "model_bytes": own,
        "bytes_per_masked_weight": round(slope, 1),
        "gpt2_xl_gigabytes": round((XL_MODEL + slope * XL_MASKED) / 1e9, 1),
    }


def _peak(settings: Settings, kind: str, masked: int) -> int:
    """In a process of its own."""
    numbers = ("target", "control", "text", "tokens", "layers", "width", "vocabulary")
    options = [part for name in numbers for part in (f"--{name}", str(getattr(settings, name)))]
    command = [sys.executable, "-m", "benchmarks.knowledge", "--only", kind, "--masked", str(masked), *options]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_memory(settings: Settings) -> int:
    """Bytes above the loaded model that a kind of step needs."""
    model = model_of(settings)
    Path("/proc/self/clear_refs").write_text("5")  # forget the high water of loading
    before = memory_status("VmRSS")
    work = KINDS[str(settings.only)](model, settings)
    for _ in range(3):
        work()
    return memory_status("VmHWM") - before


if __name__ == "__main__":
    main()
