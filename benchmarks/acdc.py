"""What ACDC costs: a whole search of a small model, and slices of one at GPT-2-small shape.

    python -m benchmarks.acdc [--json] [--no-small] [--no-large]

``small``: 2 layers of 4 heads (110 edges, width 128, vocabulary 50,257, random weights), 8 prompts of 20 tokens: CPU
seconds of :class:`tlprune.ACDC` for all edges at several thresholds, over those of the plain forward and backward
on the same prompts; and the runs it took.

``large``: 12 layers of 12 heads (32,491 edges, random weights), 8 prompts of 20 tokens: CPU seconds per edge tried, for
the first readers of chosen layers, after a random circuit took the place of all later decisions. The sum over all
layers, extrapolated from these, is the time of one threshold. ``--kept`` gives how many edges of the later layers are
in the circuit, ``--prompts`` how many prompts there are.

Times are CPU seconds of this process. The plain step is that of ``benchmarks.speed``.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any

import torch
import tyro

import tlprune as tp
from benchmarks.speed import THREADS, TOKENS, cpu_seconds, examples, gpt2_small, plain_step
from tlprune.learning.hard_metric import HardMetric
from tlprune.learning.resumed_trials import reach_of, trials_of
from tlprune.methods.acdc import ROUNDING
from tlprune.methods.acdc_search import Point, Search
from tlprune.models.transformer_lens import build
from tlprune.task import Stream, Task, Tokenisation

BATCH = 512


@dataclass(frozen=True)
class Settings:
    """Cost of ACDC.

    Attributes:
        json: print one JSON object instead of tables.
        small: whether to search the small model.
        large: whether to search slices of the large one.
        thresholds: of the small model's searches, in nats.
        layers: whose readers the slices are of.
        edges: tried in each slice.
        kept: edges of later layers that are in the circuit.
        prompts: number of prompts.
    """

    json: bool = False
    small: bool = True
    large: bool = True
    thresholds: tuple[float, ...] = (0.0001, 0.001, 0.01)
    layers: tuple[int, ...] = (0, 3, 6, 9, 11)
    edges: int = 24
    kept: tuple[int, ...] = (300, 3000)
    prompts: tuple[int, ...] = (8,)


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(THREADS)
    result = {"small": small(settings) if settings.small else [], "large": large(settings) if settings.large else []}
    print(json.dumps(result, indent=1) if settings.json else "\n\n".join(map(table, filter(None, result.values()))))


def small(settings: Settings) -> list[dict[str, float]]:
    """A whole search at each threshold."""
    model, task = small_model(), random_task(8)
    step = plain_step(model)
    step()
    plain = statistics.median(cpu_seconds(step) for _ in range(9))
    return [_search(model, task, threshold, plain) for threshold in settings.thresholds]


def _search(model: Any, task: Task, threshold: float, plain: float) -> dict[str, float]:
    method, found = tp.ACDC(threshold=threshold), []
    method.find(model, task)
    seconds = cpu_seconds(lambda: found.append(method.find(model, task)))
    counts = found[0].provenance["counts"]
    return {"threshold": threshold, "kept": len(found[0]), **counts, "plain_steps": round(seconds / plain, 2)}


def small_model() -> Any:
    return build(
        n_layers=2, d_model=128, n_heads=4, d_head=32, d_mlp=512, n_ctx=64, d_vocab=50257, act_fn="gelu_new",
        normalization_type="LN", seed=0, device="cpu",
    ).requires_grad_(False)  # fmt: skip


def random_task(count: int) -> Task:
    stream = Stream(examples(count), examples(count, seed=1), examples(count, seed=2))
    return Task("random", {"main": stream}, Tokenisation(prepend_bos=False))


def large(settings: Settings) -> list[dict[str, float]]:
    """Slices of a search, for each number of prompts and of edges kept."""
    model = gpt2_small()
    cases = [(prompts, kept) for prompts in settings.prompts for kept in settings.kept]
    return [_slices(model, prompts, kept, settings) for prompts, kept in cases]


def _slices(model: Any, prompts: int, kept: int, settings: Settings) -> dict[str, float]:
    sites, batch = tp.edges(model), random_task(prompts).discovery.train()
    metric = HardMetric(model, sites, tp.Resample(), batch, tp.KL(), batch_size=BATCH)
    per_edge = {layer: _slice(metric, layer, kept, settings.edges) for layer in settings.layers}
    hours = sum(edges * _between(per_edge, layer) for layer, edges in _edges_by_layer(sites.graph).items()) / 3600
    layers = {f"layer_{layer}_seconds": round(seconds, 4) for layer, seconds in per_edge.items()}
    return {"prompts": prompts, "kept": kept, "tokens": TOKENS, **layers, "hours_of_one_threshold": round(hours, 2)}


def _slice(metric: HardMetric, layer: int, kept: int, edges: int) -> float:
    """CPU seconds per edge into the last readers of a layer's attention, every one of which is removed."""
    graph, reach = metric.graph, reach_of(metric)
    readers = next(one for one in graph.readers if (one.kind, one.layer) == ("attention", layer))
    circuit = torch.ones(graph.n_edges, dtype=torch.bool)
    first = readers.start + readers.n_edges
    circuit[first:] = tp.connected_random(graph, kept).kept[first:]
    circuit[graph.index(f"a{layer}.h{graph.architecture.n_heads - 1}->logits")] = True
    trials = trials_of(metric, reach, batch_size=BATCH)
    start = Point((1e9,), circuit, first, metric(circuit))
    search = Search(trials, metric, reach, rounding=ROUNDING[metric.backend.precision], waiting=[start])
    steps = iter(search)
    next(steps)  # takes the circuit as the current one
    before = search.counts.evaluated
    seconds = cpu_seconds(lambda: _decide(search, steps, before + edges))
    return seconds / max(1, search.counts.evaluated - before)


def _decide(search: Search, steps: Any, until: int) -> None:
    """Try edges until there are so many, or none is left: layer 0 has few."""
    for _ in steps:
        if search.counts.evaluated >= until:
            return


def _edges_by_layer(graph: tp.Graph) -> dict[int, int]:
    counts: dict[int, int] = {}
    for readers in graph.readers:
        layer = min(readers.layer, graph.architecture.n_layers - 1)
        counts[layer] = counts.get(layer, 0) + readers.n_edges
    return counts


def _between(values: dict[int, float], layer: int) -> float:
    """A straight line between the measured layers."""
    below = max((known for known in values if known <= layer), default=min(values))
    above = min((known for known in values if known >= layer), default=max(values))
    share = (layer - below) / (above - below) if above > below else 0.0
    return values[below] + share * (values[above] - values[below])


def table(rows: list[dict[str, float]]) -> str:
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) + 2 for name in rows[0]}
    lines = ["".join(name.rjust(width) for name, width in widths.items())]
    return "\n".join(lines + ["".join(str(row[n]).rjust(w) for n, w in widths.items()) for row in rows])


if __name__ == "__main__":
    main()
