"""What scoring weights by ``tp.saliency_scores`` costs per batch beside a plain forward and backward run.

    python -m benchmarks.saliency [--examples 16 --tokens 64 --width 768 --layers 12] [--memory] [--json]

A decoder of GPT-2's shape with random weights, 2 threads. ``plain`` is a forward and backward run of the same prompts
with gradients of exactly the scored tensors. Each criterion looks at one batch; smooth ones are divided by their noised
passes. Times are CPU seconds of this process, all kinds interleaved, medians. What is done once per pass, such as
putting the scores into one vector, is left out by taking the difference between passes of two batches and of one.

``--memory`` gives what a pass with each criterion needs above the loaded model at its highest, each in a process of its
own, in copies of the scored weights. Prompts are two tokens there, so that activations weigh nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

import tlprune as tp
from benchmarks.alone import medians, show
from benchmarks.speed import THREADS, Work, gpt2_shaped, memory_status
from tlprune.backends import backend_of
from tlprune.methods.criteria import Criterion
from tlprune.methods.saliency_pass import label_loss, passed_over
from tlprune.sites import Weights
from tlprune.task import Batch, Tokens

SAMPLES = 3
CRITERIA: dict[str, Criterion] = {
    "GradCAM": tp.GradCAM(shift=10),
    "SNIP": tp.SNIP(),
    "MagnitudeGradient": tp.MagnitudeGradient(),
    "SmoothGrad": tp.SmoothGrad(samples=SAMPLES),
    "SmoothGradCAM": tp.SmoothGradCAM(samples=SAMPLES, shift=10),
}


@dataclass(frozen=True)
class Settings:
    """Cost of scoring weights.

    Attributes:
        examples: prompts per batch.
        tokens: tokens per prompt.
        layers: layers of the model.
        width: width of its residual stream, a multiple of 64.
        vocabulary: its tokens.
        rounds: measurements of each kind.
        memory: measure memory instead of time.
        only: measure the peak memory of a pass with this criterion in this process, in bytes.
        json: print one JSON object instead of lines.
    """

    examples: int = 16
    tokens: int = 64
    layers: int = 12
    width: int = 768
    vocabulary: int = 5000
    rounds: int = 5
    memory: bool = False
    only: str | None = None
    json: bool = False


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(THREADS)
    if settings.only is not None:
        print(peak_memory(settings, CRITERIA[settings.only]))
    else:
        show(copies(settings) if settings.memory else costs(settings), settings)


def costs(settings: Settings) -> dict[str, Any]:
    """Each criterion's time per batch, or per noised pass, over that of the plain run."""
    model, batch = model_of(settings), examples(settings)
    works = {"plain": plain(model, batch)}
    for name, criterion in CRITERIA.items():
        for count in (1, 2):
            works[f"{name} {count}"] = scoring(model, batch, criterion, count, settings.examples)
    for work in works.values():
        work()
    seconds = medians(works, settings.rounds)
    return {name: _ratio(name, seconds) for name in CRITERIA} | {"plain_seconds": round(seconds["plain"], 3)}


def _ratio(name: str, seconds: dict[str, float]) -> float:
    passes = SAMPLES if CRITERIA[name].gradient == "smooth" else 1
    return round((seconds[f"{name} 2"] - seconds[f"{name} 1"]) / passes / seconds["plain"], 3)


def copies(settings: Settings) -> dict[str, float]:
    """Peak memory of each criterion's pass over that of the scored weights."""
    own = len(weights_of(model_of(settings))) * torch.get_default_dtype().itemsize
    return {name: round(_peak(settings, name) / own, 2) for name in CRITERIA}


def _peak(settings: Settings, name: str) -> int:
    """In a process of its own that gives every freed tensor of a megabyte back, so that only living ones count."""
    shape = [f"--{field}={getattr(settings, field)}" for field in ("layers", "width", "vocabulary")]
    command = [sys.executable, "-m", "benchmarks.saliency", "--only", name, *shape]
    own = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout.split()[-1])


def peak_memory(settings: Settings, criterion: Criterion) -> int:
    """Bytes above the loaded model and libraries that scoring needs for prompts of two tokens."""
    least = replace(settings, examples=1, tokens=2)
    model = model_of(least)
    work = scoring(model, examples(least), criterion, 2, least.examples)
    scoring(gpt2_shaped(layers=1, width=64, vocabulary=least.vocabulary), examples(least), criterion, 2, 1)()
    Path("/proc/self/clear_refs").write_text("5")  # forget the high water of loading
    before = memory_status("VmRSS")
    work()
    return memory_status("VmHWM") - before


def model_of(settings: Settings) -> Any:
    return gpt2_shaped(layers=settings.layers, width=settings.width, vocabulary=settings.vocabulary)


def examples(settings: Settings) -> Batch:
    """Two batches of random prompts, read at their last token."""
    count = 2 * settings.examples
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, settings.vocabulary, (count, settings.tokens), generator=generator)
    last = torch.full((count, 1), settings.tokens - 1)
    return Batch(torch.arange(count), Tokens(ids), Tokens(ids), last, ids[:, :1], torch.full_like(last, -100))


def scoring(model: Any, batch: Batch, criterion: Criterion, count: int, size: int) -> Work:
    """A pass over so many batches."""
    backend, weights = backend_of(model), weights_of(model)

    def work() -> None:
        passed_over(backend, weights, batch, [(criterion, count)], batch_size=size, seed=0)

    return work


def plain(model: Any, batch: Batch) -> Work:
    """One batch forward and backward, with gradients of the scored tensors and nothing else."""
    backend, half = backend_of(model), batch.rows(torch.arange(len(batch) // 2))
    leaves = {
        matrix.name: backend.parameters()[matrix.name].detach().requires_grad_()
        for matrix in weights_of(model).matrices
    }
    swapped = {name: lambda _, leaf=leaf: leaf for name, leaf in leaves.items()}

    def work() -> None:
        for leaf in leaves.values():
            leaf.grad = None
        logits = backend.with_weights(swapped, lambda: backend.logits(half.clean, half.positions))
        label_loss(logits, half).backward()

    return work


def weights_of(model: Any) -> Weights:
    group = tp.prunable(model).group("weights")
    assert isinstance(group, Weights)
    return group


if __name__ == "__main__":
    main()
