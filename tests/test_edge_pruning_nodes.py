"""Edge Pruning with gates of writers, sizes that training reaches, and rates of one's own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from styles import error, fresh, random_batch
from test_edge_pruning import built, task_of

from tlprune.gates import HardConcrete
from tlprune.learning.budgets import Budgets, Lagrangian
from tlprune.learning.fit import fit
from tlprune.learning.objectives import KL
from tlprune.masking.ablation import Resample, Zero
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.methods.edge_pruning import RECIPES, EdgePruning
from tlprune.methods.hap import HAP
from tlprune.methods.writer_gates import joint_scores, reached_circuit, with_writers, writer_of_each
from tlprune.selection.top_connected import TopConnected

STEPS = 30


def masks_of(method: EdgePruning, name: str = "copy") -> Masks:
    one = built(name, 0)
    sites = method.sites(one.model)
    return method.masks(one.model, one.task.discovery, sites, Resample(), progress=False)


def test_an_edge_has_its_writers_value() -> None:
    graph = built("copy", 0).circuit.graph
    values = writer_of_each(graph, torch.arange(len(graph.writers)))
    assert [graph.writers[number] for number in values.tolist()] == [edge.split("->")[0] for edge in graph.edges()]


@pytest.mark.parametrize(("style", "ablation"), [("gpt2", Resample()), ("no_norm", Resample()), ("no_norm", Zero())])
def test_gates_of_writers_multiply_those_of_their_edges(style: str, ablation: Any) -> None:
    """Before a norm, zero ablation of what stands alone has no intermediate values: see docs/architecture.md."""
    model, batch = fresh(style), random_batch(4, seed=1)
    sites = with_writers(EdgePruning().sites(model))
    mask = torch.rand(len(sites), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own, writers = mask[sites.part("edges")], mask[sites.part("nodes")]
    both = Masked(model, Masks(sites), ablation)(batch, mask=mask)
    joint = own * writer_of_each(sites.graph, writers)
    one = Masked(model, Masks(EdgePruning().sites(model)), ablation)(batch, mask=joint)
    assert error(both, one) <= 1e-9


def test_a_writer_target_is_a_budget_of_its_own_that_rises_alike() -> None:
    method = EdgePruning(recipe="paper", sparsity=0.9, node_sparsity=0.4, steps=60, rise=40, warmup=10)
    plan = method.plan(masks_of(method))
    assert isinstance(plan["budget"], Budgets)
    edges, nodes = plan["budget"].parts
    assert (edges.on, nodes.on) == ("edges", "nodes")
    assert [round(edges.target(step), 9) for step in (0, 20, 40, 59)] == [0, 0.45, 0.9, 0.9]
    assert [round(nodes.target(step), 9) for step in (0, 20, 40, 59)] == [0, 0.2, 0.4, 0.4]
    assert edges.measure == nodes.measure == "sampled"


def test_rates_and_warm_ups_replace_the_recipes_and_nothing_else() -> None:
    method = EdgePruning(recipe="paper", steps=720, rate=1.0, multiplier_rate=1e-4, warmup=96, rise=640, sparsity=0.9)
    plan, paper = method.plan(masks_of(method)), RECIPES["paper"].optimiser(720)
    assert plan["optimiser"] == replace(paper, rate=1.0, multiplier_rate=1e-4, warmup=96)
    assert math.isclose(plan["budget"].target(320), 0.45, rel_tol=1e-9)
    own = EdgePruning(recipe="paper", steps=720, sparsity=0.9)
    assert own.plan(masks_of(own))["optimiser"] == paper


def test_the_planted_circuit_is_found_with_gates_of_writers() -> None:
    one = built("copy", 0)
    method = EdgePruning(edges=len(one.circuit), node_sparsity=1 - 2 / 11, steps=STEPS, batch_size=8)
    found = method.find(one.model, one.task)
    assert found == one.circuit
    assert found.sites.kinds == ("edges",)


def test_scores_are_the_less_open_gate_and_an_exact_size_is_exact() -> None:
    method = EdgePruning(edges=20, node_sparsity=0.5)
    masks = masks_of(method)
    with torch.no_grad():
        masks.log_alpha.copy_(torch.randn(len(masks.sites), generator=torch.Generator().manual_seed(0)))
    values, sites = masks.log_alpha.detach(), masks.sites
    scores = joint_scores(masks, {})
    for edge in sites.graph.edges():
        own = values[sites.part("edges")][sites.graph.index(edge)]
        writer = values[sites.part("nodes")][sites.graph.writers.index(edge.split("->")[0])]
        assert scores[edge] == float(min(own, writer))
    assert method.circuit(masks, {}) == TopConnected().select(scores, 20)
    assert method.circuit(masks, {}) != scores.top(20)
    assert len(method.circuit(masks, {})) == 20


def test_a_reached_size_is_the_sum_of_noise_free_masks_less_edges_of_removed_writers() -> None:
    masks = masks_of(EdgePruning(recipe="paper", sparsity=1.1, node_sparsity=0.5, size="reached"))
    with torch.no_grad():
        masks.log_alpha.copy_(3 * torch.randn(len(masks.sites), generator=torch.Generator().manual_seed(1)))
    found, sites, gate = reached_circuit(masks, {}), masks.sites, masks.gate
    kept = {}
    for kind in ("edges", "nodes"):
        own = masks.log_alpha.detach()[sites.part(kind)]
        count = round(float(gate.harden(own).sum()))
        kept[kind] = own >= own.sort(descending=True).values[count - 1]
        assert int(kept[kind].sum()) == count
    writers = {sites.graph.writers[number] for number in kept["nodes"].nonzero().flatten().tolist()}
    expected = {edge for edge in sites.graph.edges(kept["edges"]) if edge.split("->")[0] in writers}
    assert set(found.edges) == expected
    assert 0 < len(found) < int(kept["edges"].sum())


def test_without_gates_of_writers_the_reached_size_is_that_of_the_edges() -> None:
    masks = masks_of(EdgePruning(recipe="paper", sparsity=1.1, size="reached"))
    with torch.no_grad():
        masks.log_alpha.copy_(3 * torch.randn(len(masks.sites), generator=torch.Generator().manual_seed(1)))
    assert len(reached_circuit(masks, {})) == round(float(masks.gate.harden(masks.log_alpha.detach()).sum()))


def test_pressure_above_one_goes_on_where_every_edge_is_closed() -> None:
    """``g = t - s`` stays positive at full sparsity, so the multiplier's gradient never vanishes."""
    above, at = (RECIPES["paper"].pressure(target, 10) for target in (1.02, 1.0))
    for budget, least in ((above, 0.02), (at, 0.0)):
        multipliers = budget.start()
        budget.term(multipliers, torch.tensor(1.0), 9).backward()
        assert multipliers.grad is not None
        assert math.isclose(float(multipliers.grad[0]), least, abs_tol=1e-6)


def test_a_target_above_one_trains_and_gives_what_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPES["paper"], initial=0.0)  # from 10 on it takes a thousand steps
    monkeypatch.setitem(RECIPES, "paper", recipe)
    model = fresh("attention_only", torch.float32)
    task = task_of(*(random_batch(4, seed=seed) for seed in (1, 2, 3)))
    method = EdgePruning(recipe="paper", sparsity=1.05, size="reached", steps=12)
    found, masks = method.find(model, task), Masks(method.sites(model), HardConcrete(initial=0.0))
    fit(
        Masked(model, masks), task.discovery, KL(), recipe.pressure(1.05, 12),
        steps=12, optimiser=recipe.optimiser(12),
    )  # fmt: skip
    assert found == reached_circuit(masks, {})
    assert 0 < len(found) < len(found.sites)
    assert found.provenance["method"]["size"] == "reached"


def test_writers_start_open_where_a_warm_start_ranks_edges() -> None:
    method = EdgePruning(edges=5, node_sparsity=0.5, warm_start=EdgePruning(edges=5, steps=2))
    masks = masks_of(method)
    sites, initial = masks.sites, RECIPES["short"].initial
    assert (masks.log_alpha[sites.part("nodes")] == initial).all()
    own = masks.log_alpha.detach()[sites.part("edges")]
    assert own.unique().numel() > 1
    assert math.isclose(float(own.mean()), initial, rel_tol=1e-5)


def test_gates_of_writers_leave_out_embeddings_that_are_always_kept() -> None:
    model = fresh("gpt2", torch.float32)
    task = task_of(*(random_batch(4, seed=seed) for seed in (1, 2, 3)))
    method = EdgePruning(edges=9, node_sparsity=0.5, steps=2, keep_embeddings=True)
    assert method.sites(model).group("nodes").as_dict()["names"][0] == "a0.h0"
    assert len(method.find(model, task)) == 9


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sparsity": 1.02}, "recipe='paper', size='reached'"),
        ({"sparsity": 1.02, "size": "reached"}, "for the short recipe below 1"),
        ({"recipe": "paper", "edges": 5, "size": "reached"}, "no edges"),
        ({"node_sparsity": 1.0}, "node_sparsity must lie between 0 and 1"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"multiplier_rate": math.inf}, "multiplier_rate must be above 0"),
        ({"warmup": -1}, "warmup must be at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EdgePruning(**settings)


def test_hap_prunes_to_exact_numbers_of_edges_alone() -> None:
    moves = {"attention_edges": 2, "spans": ("end",)}
    for settings in ({"node_sparsity": 0.5}, {"size": "reached", "recipe": "paper"}, moves):
        with pytest.raises(ValueError, match="HAP prunes edges alone, to an exact number"):
            HAP(**settings)


def test_lagrangians_on_all_sites_keep_their_settings() -> None:
    """Checkpoints of runs without gates of writers stay those of the same runs."""
    method = EdgePruning(edges=5)
    budget = method.plan(masks_of(method))["budget"]
    assert isinstance(budget, Lagrangian)
    assert budget.on is None
