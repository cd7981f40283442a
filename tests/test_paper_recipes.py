"""The paper's recipes: the published scripts' numbers, and what they make of Edge Pruning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import tlprune as tp
from tlprune.learning.objectives import KL
from tlprune.learning.optimiser import Optimiser
from tlprune.masking.ablation import Resample, Zero
from tlprune.masking.masks import Masks
from tlprune.methods.edge_pruning import EdgePruning
from tlprune.methods.paper_recipes import recipes
from tlprune.models.planted import planted
from tlprune.tasks import TASKS, greater_than

# rates, steps, warm-ups of rates and targets, examples per step, edge target, node target if on: of the scripts
SCRIPTS: dict[str, tuple[Any, ...]] = {
    "ioi": (0.8, 0.8, 3000, 200, 2500, 32, 0.98, None),
    "ioi-t1": (0.8, 0.8, 3000, 200, 2500, 32, 0.98, None),
    "greater-than": (0.8, 0.8, 3000, 200, 2500, 32, 0.98, None),
    "gendered-pronoun": (0.8, 0.8, 3000, 200, 2500, 32, 0.98, None),
    "reverse": (0.03, 0.001, 6000, 1500, 5900, 16, 1.02, None),
    "xproportion": (1.0, 1e-4, 720, 96, 640, 16, 0.92, 0.4),
    "boolean-few-shot": (0.8, 0.4, 6000, 200, 5500, 32, 1.2, None),
    "boolean-instruction": (0.8, 0.4, 6000, 200, 5500, 32, 1.2, None),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_training_is_what_the_script_says(name: str) -> None:
    rate, multiplier_rate, steps, warmup, rise, batch, target, nodes = SCRIPTS[name]
    one, method = planted("copy"), recipes[name].settings
    sites = method.sites(one.model)
    plan = method.plan(Masks(sites))
    assert plan["optimiser"] == Optimiser(rate, multiplier_rate, weight_decay=0.01, clip=1.0, warmup=warmup)
    assert (plan["steps"], plan["batch_size"]) == (steps, batch)
    parts = {"edges": target} if nodes is None else {"edges": target, "nodes": nodes}
    budgets = [plan["budget"]] if nodes is None else plan["budget"].parts
    assert sites.kinds == tuple(parts)
    for budget, aim in zip(budgets, parts.values(), strict=True):
        assert budget.measure == "sampled"
        assert budget.target(0) == 0
        assert budget.target(rise // 2) == pytest.approx(aim * (rise // 2) / rise)
        assert budget.target(rise) == budget.target(steps - 1) == pytest.approx(aim)


def test_every_recipe_is_of_a_script_and_names_a_task() -> None:
    assert set(recipes) == set(SCRIPTS)
    assert set(recipes) <= set(TASKS)
    assert len(recipes) == len(SCRIPTS)
    assert tp.recipes is recipes


def test_compiled_programs_are_ablated_to_zero_and_embeddings_of_boolean_expressions_are_kept() -> None:
    for name, recipe in recipes.items():
        compiled = name in ("reverse", "xproportion")
        assert recipe.ablation == (Zero() if compiled else Resample())
        assert recipe.settings.keep_embeddings == name.startswith("boolean")
        assert recipe.settings.size == "reached"
        assert recipe.settings.sparsity in recipe.targets


def test_greater_than_compares_years_alone(testbed: Any) -> None:
    task = greater_than(testbed, train=8, validation=4, test=4)
    method = recipes["greater-than"].method(task, sparsity=1.05, seed=3)
    assert method.objective == KL(tokens=tuple(task.options["number_tokens"].values()))
    assert len(method.objective.tokens) == 100
    assert (method.sparsity, method.seed) == (1.05, 3)
    assert recipes["greater-than"].method(task.discovery).objective == method.objective
    with pytest.raises(ValueError, match="which tokens these are"):
        recipes["greater-than"].method(planted("copy").task)


def test_the_node_loss_is_one_change_away() -> None:
    recipe = recipes["ioi"]
    method = recipe.method(planted("copy").task, node_sparsity=recipe.node_sparsity)
    assert method == replace(recipe.settings, node_sparsity=0.72)


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="There is no recipe 'ioi-t2'; there are ioi, ioi-t1"):
        recipes["ioi-t2"]
    assert "ioi-t2" not in recipes


def test_a_recipe_finds_under_its_own_ablation() -> None:
    one, recipe = planted("copy"), recipes["reverse"]
    short = replace(recipe, settings=replace(recipe.settings, steps=2))
    found = short.find(one.model, one.task, sparsity=0.9)
    assert found.provenance["ablation"] == Zero().as_dict()
    assert EdgePruning(**{**vars(short.settings), "sparsity": 0.9}) == tp.method_from(found.provenance)
