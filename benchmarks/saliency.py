"""What scoring weights by ``tp.saliency_scores`` costs per batch beside a plain forward and backward run.

    python -m benchmarks.saliency [--examples 16 --tokens 64 --width 768 --layers 12] [--json]

A decoder of GPT-2's shape with random weights, 2 threads. ``plain`` is a forward and backward run of the same prompts
with gradients of exactly the scored tensors. Each criterion looks at one batch; smooth ones are divided by their noised
passes. Times are CPU seconds of this process, all kinds interleaved, medians. What is done once per pass, such as
putting the scores into one vector, is left out by taking the difference between passes of two batches and of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import tyro

import tlprune as tp
from benchmarks.alone import medians, show
from benchmarks.speed import THREADS, Work, gpt2_shaped
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
        json: print one JSON object instead of lines.
    """

    examples: int = 16
    tokens: int = 64
    layers: int = 12
    width: int = 768
    vocabulary: int = 5000
    rounds: int = 5
    json: bool = False


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(THREADS)
    show(costs(settings), settings)


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
    swapped = {name: lambda _, leaf=leaf: leaf.view_as(leaf) for name, leaf in leaves.items()}

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
