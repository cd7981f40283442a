"""Candidates side by side have the metrics that they have alone, whatever circuit was current before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from styles import CASES, NAMES, NORMED_HEADS, STYLES, fresh, model_of, random_batch
from torch import Tensor

import tlprune as tp
from tlprune.backends.passes import counted
from tlprune.graph import Convention, Graph
from tlprune.learning.hard_metric import HardMetric
from tlprune.learning.resumed_trials import ResumedTrials, reach_of
from tlprune.learning.trials import Trials, WholeTrials
from tlprune.masking.ablation import Ablation
from tlprune.masking.reach import Reach
from tlprune.sites import Sites

SPLIT = [(case, name) for case, name in zip(CASES, NAMES, strict=True) if case[1].qkv == "split"]
EXAMPLES = random_batch(5, seed=1)


def metric_of(model: Any, convention: Convention | None = None, **options: Any) -> HardMetric:
    ablation: Ablation = options.pop("ablation", tp.Resample())
    sites = Sites((Graph.of(model, convention),))
    return HardMetric(model, sites, ablation, EXAMPLES, tp.KL(), **{"batch_size": 2, **options})


def resumed(metric: HardMetric) -> Trials:
    return ResumedTrials(metric, reach_of(metric), batch_size=64)


def whole(metric: HardMetric) -> Trials:
    return WholeTrials(metric, batch_size=64)


def random_circuits(graph: Graph, *densities: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(densities), graph.n_edges, generator=generator) < torch.tensor(densities)[:, None]


def without(kept: Tensor, *edges: int) -> Tensor:
    """For each edge the circuit without it and all before it."""
    rows = kept.repeat(len(edges), 1)
    for row, _ in enumerate(edges):
        rows[row, list(edges[: row + 1])] = False
    return rows


def agree(trials: Trials, metric: HardMetric, candidates: Tensor) -> None:
    assert trials.values(candidates) == pytest.approx([metric(one) for one in candidates], rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("make", [resumed, whole])
@pytest.mark.parametrize(("style", "convention"), [case for case, _ in SPLIT], ids=[name for _, name in SPLIT])
def test_any_candidates_have_the_metrics_of_single_runs(style: str, convention: Convention, make: Any) -> None:
    metric = metric_of(model_of(style), convention)
    trials, circuits = make(metric), random_circuits(metric.graph, 1.0, 0.9, 0.5, 0.2, 0.0)
    agree(trials, metric, circuits)
    trials.accept(2)
    agree(trials, metric, circuits)
    last = [int(edge) for edge in circuits[2].nonzero().flatten()[-4:]]
    agree(trials, metric, without(circuits[2], *last))
    trials.accept(3)
    agree(trials, metric, without(circuits[2], *last, 0, 1))
    trials.start(circuits[3])
    agree(trials, metric, circuits[3:4])
    agree(trials, metric, without(circuits[3], *range(6)))


ABLATIONS = {"zero": tp.Zero(), "mean": tp.Mean(EXAMPLES.corrupt), "places": tp.Mean(EXAMPLES.corrupt, over="examples")}


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("make", [resumed, whole])
@pytest.mark.parametrize("style", ["gpt2", "gemma2", "parallel"])
def test_every_ablation_serves(style: str, make: Any, ablation: str) -> None:
    metric = metric_of(model_of(style), ablation=ABLATIONS[ablation])
    trials, circuits = make(metric), random_circuits(metric.graph, 0.8, 0.5, 0.0)
    agree(trials, metric, circuits)
    trials.accept(0)
    agree(trials, metric, without(circuits[0], *range(5)))


@pytest.mark.parametrize("style", STYLES)
def test_edges_into_dead_readers_change_nothing_and_some_into_live_ones_do(style: str) -> None:
    """To the last bit, so that a positive threshold removes them."""
    metric = metric_of(model_of(style), batch_size=8)
    reach, kept = reach_of(metric), torch.ones(metric.graph.n_edges, dtype=torch.bool)
    for readers in metric.graph.readers[1:]:
        readers.block(kept)[:, 1:3] = False  # nobody reads the first two heads
    first = metric.graph.readers[0]
    live = reach.live(first, reach.needed(kept))
    value = metric(kept)
    for row, alive in enumerate(live.tolist()):
        changed = metric(without(kept, row)[0]) != value
        assert changed if alive else not changed, first.names[row]
    assert live.any() and live.all() == (style in NORMED_HEADS)


def test_heads_behind_one_norm_depend_on_each_other() -> None:
    """An edge into a head that nobody reads moves the scale of the others; without coupling it would be missed."""
    metric = metric_of(model_of("gemma2"), batch_size=8)
    graph, reach = metric.graph, reach_of(metric)
    kept = torch.ones(graph.n_edges, dtype=torch.bool)
    for readers in graph.readers[1:]:
        readers.block(kept)[:, 1] = False  # nobody reads a0.h0
    edge = graph.index("input->a0.h0<q>")
    assert reach.coupled and not reach_of(metric_of(model_of("gpt2"))).coupled
    assert abs(metric(without(kept, edge)[0]) - metric(kept)) > 1e-6
    first = graph.readers[0]
    assert reach.live(first, reach.needed(kept)).all()
    assert not Reach(graph).live(first, reach.needed(kept)).all()


def test_padded_prompts_are_run_with_their_masks() -> None:
    mask = torch.ones(5, 6, dtype=torch.long)
    mask[::2, :2] = 0
    clean, corrupt = (tp.Tokens(tokens.ids, mask) for tokens in (EXAMPLES.clean, EXAMPLES.corrupt))
    batch = tp.Batch(EXAMPLES.index, clean, corrupt, EXAMPLES.positions, EXAMPLES.answers, EXAMPLES.foils)
    model = model_of("gpt2")
    metric = HardMetric(model, tp.edges(model), tp.Resample(), batch, tp.KL())
    unpadded = HardMetric(model, tp.edges(model), tp.Resample(), EXAMPLES, tp.KL())
    circuits = random_circuits(metric.graph, 0.9, 0.5)
    assert abs(metric(circuits[0]) - unpadded(circuits[0])) > 1e-6
    for make in (resumed, whole):
        agree(make(metric), metric, circuits)


def test_only_blocks_with_a_change_are_run() -> None:
    model = model_of("gpt2")
    metric = metric_of(model, batch_size=8)
    trials, graph = resumed(metric), metric.graph
    kept = torch.ones(graph.n_edges, dtype=torch.bool)
    runs = {
        "m2->logits": 0,
        "m1->a2.h1<k>": 1,
        "a1.h0->m1": 2,
        "input->m0": 3,
    }
    for edge, blocks in runs.items():
        with counted(model) as passes:
            trials.values(without(kept, graph.index(edge)))
        assert passes.forward == pytest.approx(blocks / 3 * len(EXAMPLES)), edge


def late(metric: HardMetric) -> Tensor:
    """A circuit whose last two MLPs are read by MLPs and the logits alone, and m0 by attention."""
    kept = torch.ones(metric.graph.n_edges, dtype=torch.bool)
    for readers in metric.graph.readers:
        if readers.kind == "attention" and readers.layer == 2:
            readers.block(kept)[:, metric.graph.writers.index("m1")] = False
    return kept


@pytest.mark.parametrize("hooked", [False, True])
def test_mlps_that_no_attention_reads_are_run_at_the_answers_alone(hooked: bool) -> None:
    """And everywhere, if a hook of somebody else's may count on that; the metrics are the same."""
    model = fresh("gpt2")
    shapes: dict[str, int] = {}
    for layer in range(3):
        own = model.blocks[layer].mlp.forward
        model.blocks[layer].mlp.forward = lambda stream, layer=layer, own=own: (
            shapes.update({f"m{layer}": stream.shape[1]}) or own(stream)
        )
    if hooked:
        model.hook_dict["blocks.1.hook_mlp_out"].add_hook(lambda value, hook: 2 * value)
    metric = metric_of(model, batch_size=8)
    kept = late(metric)
    trials, candidates = resumed(metric), without(kept, 0, 1, 2)
    trials.start(kept)
    expected = [metric(one) for one in candidates]
    shapes.clear()
    assert trials.values(candidates) == pytest.approx(expected, rel=1e-9, abs=1e-11)
    assert shapes == {"m0": 6, "m1": 6 if hooked else 1, "m2": 6 if hooked else 1}
    trials.accept(0)
    agree(trials, metric, without(candidates[0], metric.graph.index("m0->m1"), metric.graph.index("m1->m2")))
