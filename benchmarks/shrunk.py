"""How much faster an encoder is without the heads and MLPs that pruning removed.

    python -m benchmarks.shrunk [--study FOLDER] [--shapes 32x128 8x32] [--json]

Random subnetworks of a BERT-base shape with random weights, others at means that were measured beforehand; with
``--study``, of the model of that study, and the subnetworks that were found, too. Both models are of transformers, with
the same attention, and run in turns in one process; ratios are of medians of CPU seconds of all threads, on a GPU of
seconds until it is done. Parameters are those left, without and with embeddings.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

import tlprune as tp
from benchmarks import encoders
from tlprune.evaluation.table import aligned
from tlprune.studies.commands.study import Study
from tlprune.studies.shrinkage import Size, speed_up


@dataclass(frozen=True)
class Settings:
    """Speed of shrunk encoders.

    Attributes:
        study: a folder of tlprune core prune, whose subnetworks are measured beside random ones.
        sparsities: fractions of the heads and MLPs that random subnetworks lack.
        seeds: of random subnetworks; and how many of those found, per sparsity.
        shapes: prompts times tokens.
        rounds: runs of each model.
        layers: of the random encoder.
        width: of its residual stream; it has a head for each 64 numbers, and 4 times as many neurons.
        threads: for torch.
        device: where to compute.
        json: print one JSON object per line instead of a table.
    """

    study: Path | None = None
    sparsities: tuple[float, ...] = (0.25, 0.5, 0.7)
    seeds: tuple[int, ...] = (0, 1, 2)
    shapes: tuple[str, ...] = ("32x128", "8x32")
    rounds: int = 9
    layers: int = 12
    width: int = 768
    threads: int = 2
    device: str = "cpu"
    json: bool = False


@dataclass(frozen=True)
class Row:
    """One subnetwork.

    Attributes:
        kind: ``"random"`` or ``"found"``.
        sparsity: fraction of heads and MLPs that it lacks.
        seed: of it.
        parameters: fraction of all parameters that is left.
        others: the same without embeddings.
        speed: how many times as fast, by shape.
    """

    kind: str
    sparsity: float
    seed: int | None
    parameters: float
    others: float
    speed: dict[str, float]


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(settings.threads)
    rows = []
    for row in measured(settings):
        rows.append(row)
        if settings.json:
            print(json.dumps(asdict(row)), flush=True)
    if not settings.json:
        print(table(rows, settings))


def measured(settings: Settings) -> Iterator[Row]:
    """One row after the other."""
    study = None if settings.study is None else Study.open(settings.study, device=settings.device)
    model, means = _random_encoder(settings) if study is None else (study.model, study.means)
    whole = tp.to_huggingface(model)
    for kind, sparsity, seed, circuit in _subnetworks(model, study, settings):
        small = tp.shrink(tp.Masked(model, circuit, means))
        before, after = Size.of(whole), Size.of(small)
        speed = {shape: _ratio(whole, small, shape, settings) for shape in settings.shapes}
        yield Row(kind, sparsity, seed, after.parameters / before.parameters, after.others / before.others, speed)


def _random_encoder(settings: Settings) -> tuple[Any, Any]:
    changes = {"num_hidden_layers": settings.layers, "hidden_size": settings.width}
    changes |= {"num_attention_heads": settings.width // 64, "intermediate_size": 4 * settings.width}
    model = tp.load(encoders.classifier(**changes), device=settings.device)
    return model, tp.Mean(encoders.pairs(8, 32, seed=1)).measure(model)


def _subnetworks(
    model: Any, study: Study | None, settings: Settings
) -> Iterator[tuple[str, float, int | None, tp.Circuit]]:
    sites = tp.heads(model) + tp.mlps(model) if study is None else study.subnetworks.sites
    for sparsity in settings.sparsities:
        for seed in settings.seeds:
            order = torch.randperm(len(sites), generator=torch.Generator().manual_seed(seed))
            kept = torch.zeros(len(sites), dtype=torch.bool)
            kept[order[round(sparsity * len(sites)) :]] = True
            yield "random", sparsity, seed, tp.Circuit(sites, kept)
    if study is None:
        return
    for sparsity in study.subnetworks.sparsities:
        for run, circuit in list(study.subnetworks.at(sparsity).items())[: len(settings.seeds)]:
            yield "found", sparsity, run.seed, circuit


def _ratio(whole: Any, small: Any, shape: str, settings: Settings) -> float:
    examples, tokens = map(int, shape.split("x"))
    prompts = encoders.pairs(examples, tokens, vocabulary=whole.config.vocab_size)
    return speed_up(whole, small, prompts, rounds=settings.rounds).ratio


def table(rows: list[Row], settings: Settings) -> str:
    """Medians over the subnetworks of one kind and sparsity."""
    groups = dict.fromkeys((row.kind, row.sparsity) for row in rows)
    lines = []
    for kind, sparsity in groups:
        own = [row for row in rows if (row.kind, row.sparsity) == (kind, sparsity)]
        cells = [f"{statistics.median(getattr(row, part) for row in own):.1%}" for part in ("parameters", "others")]
        cells += [f"{statistics.median(row.speed[shape] for row in own):.2f}" for shape in settings.shapes]
        lines.append([f"{kind}, {sparsity:.0%} removed", *cells])
    return "\n".join(aligned(["", "parameters", "without embeddings", *settings.shapes], lines))


if __name__ == "__main__":
    main()
