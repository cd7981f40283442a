"""Edge Pruning finds the circuits that were planted, repeats itself, and sees and leaves what it should."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import error, fresh, random_batch, refuses_choice
from test_lent_model import assert_unchanged, state

from tlprune.circuit import Circuit
from tlprune.evaluation import evaluate
from tlprune.graph import Convention, Graph
from tlprune.learning.fit import Optimiser, fit
from tlprune.learning.objectives import KL
from tlprune.masking.ablation import Resample, Zero
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.means import Mean
from tlprune.masking.plain import plain_run
from tlprune.masking.sites import edges
from tlprune.methods.edge_pruning import RECIPES, EdgePruning
from tlprune.models.planted import Planted, planted
from tlprune.sealing import sealed
from tlprune.task import Batch, Stream, Task, Tokenisation

SEEDS = [0, 1, 2]
UNIQUE = ["copy", "induction", "and", "adder"]


@cache
def built(name: str, seed: int) -> Planted:
    return planted(name, seed=seed)


@cache
def ranked(name: str, seed: int, method_seed: int = 0) -> Masks:
    """The masks that the default recipe ends with: its own parts, put together by hand."""
    one, recipe = built(name, seed), RECIPES["short"]
    masks = Masks(edges(one.model), recipe_gate(recipe.initial))
    budget = recipe.budget(1 - len(one.circuit) / masks.graph.n_edges, recipe.steps)
    fit(
        Masked(one.model, masks), one.task.discovery, KL(), budget,
        steps=recipe.steps, optimiser=recipe.optimiser(recipe.steps), seed=method_seed,
    )  # fmt: skip
    return masks


def recipe_gate(initial: float) -> Any:
    gate = Masks(edges(built("copy", 0).model)).gate
    return dataclasses.replace(gate, initial=initial)


def average_precision(masks: Masks, circuit: Circuit) -> float:
    """Mean, over the true edges, of the share of true ones among those ranked no lower."""
    order = torch.argsort(masks.log_alpha.detach(), descending=True, stable=True)
    hits = circuit.kept[order].double()
    return float((hits.cumsum(0) / torch.arange(1, len(hits) + 1) * hits).sum() / hits.sum())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", UNIQUE)
def test_planted_circuit_is_found_exactly(name: str, seed: int) -> None:
    one, masks = built(name, seed), ranked(name, seed)
    assert average_precision(masks, one.circuit) == 1
    assert masks.circuit(edges=len(one.circuit)).edges == one.circuit.edges


# ---- the OR gate, whose branches stand in for each other


def branches(one: Planted) -> list[Circuit]:
    """Either bit's way to the logits: from the input into a head, on to the MLP, and out."""
    into = [edge for edge in one.circuit.edges if edge.startswith("input->")]
    found = []
    for edge in into:
        head = edge.removeprefix("input->").partition("<")[0]
        onward = [other for other in one.circuit.edges if other.startswith(f"{head}->")]
        last = [other for other in one.circuit.edges if other.endswith("->logits")]
        found.append(Circuit.from_edges(one.model, [edge, *onward, *last]))
    return found


def kl_of(one: Planted, circuit: Circuit) -> float:
    return evaluate(one.model, circuit, one.task.test)["circuit"].performance.means()["kl"]


@pytest.mark.parametrize("seed", SEEDS)
def test_either_branch_of_an_or_gate_suffices_so_no_loss_tells_them_apart(seed: int) -> None:
    """KL is 0 with one branch of three edges, so the five true edges cannot be told from three and any two others."""
    one = built("or", seed)
    first, second = branches(one)
    assert len(first) == len(second) == 3
    assert (first.kept | second.kept).equal(one.circuit.kept)
    for branch in (first, second):
        assert kl_of(one, branch) <= 1e-5
        wrong = branch.like(branch.kept | one.circuit.complement.kept)
        assert kl_of(one, wrong) <= 1e-5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_whole_branch_of_an_or_gate_is_found(seed: int) -> None:
    one = built("or", seed)
    found = ranked("or", seed).circuit(edges=len(one.circuit))
    assert len(found) == len(one.circuit)
    assert kl_of(one, found) <= 1e-4
    assert any(not (branch.kept & ~found.kept).any() for branch in branches(one))


# ---- the contract of every method


def test_find_is_the_recipe_put_together_and_repeats_under_its_seed() -> None:
    one = built("copy", 0)
    method = EdgePruning(edges=len(one.circuit))
    assert method.find(one.model, one.task) == ranked("copy", 0).circuit(edges=len(one.circuit))


def test_a_seed_repeats_a_circuit_and_another_differs() -> None:
    """On a random model: the edges of a planted one that do nothing tie, whatever the seed."""
    model, task = fresh("lnpre", torch.float32), task_of(*(random_batch(8, seed=seed) for seed in (1, 2, 3)))
    first, again, other = (EdgePruning(edges=20, steps=20, seed=seed).find(model, task) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def task_of(train: Batch, validation: Batch, test: Any) -> Task:
    return Task("random", {"main": Stream(train, validation, test)}, Tokenisation(prepend_bos=True))


def test_test_examples_are_never_touched() -> None:
    task = task_of(*(random_batch(8, seed=seed) for seed in (1, 2, 3)))
    for subject in (sealed(task), sealed(task).discovery):
        found = EdgePruning(steps=3, validate_every=1).find(fresh("lnpre", torch.float32), subject)
        tokenisation = {"prepend_bos": True, "padding_side": "right", "predicted": "last"}
        known = {"name": "random", "fingerprint": task.fingerprint, "tokenisation": tokenisation, "options": {}}
        assert found.provenance["task"] == known


def test_validation_examples_decide_nothing() -> None:
    """They are measured for the record; gates, size and edges are the same whatever they are."""
    train, model = random_batch(8, seed=1), fresh("lnpre", torch.float32)
    runs = [task_of(train, random_batch(4, seed=seed), random_batch(4, seed=9)) for seed in (2, 3)]
    first, second = (EdgePruning(steps=5, validate_every=1).find(model, task) for task in runs)
    assert first == second


@pytest.mark.parametrize(
    "ablation", [None, Zero(), Mean(random_batch(4, seed=4).corrupt)], ids=["resample", "zero", "mean"]
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_model_is_left_untouched(recipe: str, ablation: Any) -> None:
    model = fresh("llama", torch.float32)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    before = state(model)
    task = task_of(random_batch(8, seed=1), random_batch(4, seed=2), random_batch(4, seed=3))
    found = EdgePruning(recipe=recipe, steps=3, kv="per_query_head").find(model, task, ablation=ablation)
    assert_unchanged(before, model)
    assert found.graph == Graph.of(model, Convention("merged", "per_query_head"))
    assert len(found) == round(0.05 * found.graph.n_edges)


def test_the_papers_recipe_has_the_papers_numbers() -> None:
    paper = RECIPES["paper"]
    assert paper.optimiser(3000) == Optimiser(0.8, 0.8, weight_decay=0.01, clip=1.0, warmup=200)
    budget = paper.budget(0.98, 3000)
    assert [round(budget.target(step), 3) for step in (0, 1250, 2500, 2999)] == [0, 0.49, 0.98, 0.98]
    assert (paper.initial, paper.steps, budget.measure) == (10.0, 3000, "sampled")


def test_kept_embeddings_are_in_every_circuit_and_in_no_count() -> None:
    model, task = fresh("gpt2", torch.float32), task_of(*(random_batch(4, seed=seed) for seed in (1, 2, 3)))
    found = EdgePruning(edges=9, steps=2, keep_embeddings=True).find(model, task)
    assert (len(found), found.graph.convention.embeddings) == (9, "kept")
    empty = found.like(torch.zeros_like(found.kept))
    logits = Masked(model, empty)(task.test)
    replaced = Resample().replaced(Masked(model, empty).backend, task.test.clean, task.test.corrupt)
    expected = plain_run(model, found.graph, task.test.clean, empty.kept.float(), replaced)[:, -1:]
    assert error(logits, expected) <= 1e-5
    assert error(logits, model(task.test.corrupt.ids)[:, -1:]) > 1e-3


def test_provenance_is_plain_data_with_every_field(tmp_path: Path) -> None:
    one, method = built("copy", 0), EdgePruning(edges=5, steps=2, seed=3)
    found = method.find(one.model, one.task, metrics=tmp_path / "metrics.jsonl")
    assert json.loads(json.dumps(found.provenance)) == found.provenance
    known = dict(found.provenance["method"])
    assert known.pop("name") == "edge-pruning"
    assert EdgePruning(**known) == method
    assert found.provenance["task"]["fingerprint"] == one.task.fingerprint
    assert found.provenance["ablation"] == {"name": "resample"}
    assert set(found.provenance["versions"]) == {"tlprune", "torch", "transformer-lens"}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    found.save(tmp_path / "circuit.json")
    assert Circuit.load(tmp_path / "circuit.json").provenance == found.provenance


def test_a_circuit_is_refused_on_a_model_with_other_weights() -> None:
    one, other = built("copy", 0), built("copy", 1)
    found = EdgePruning(edges=5, steps=2).find(one.model, one.task)
    assert evaluate(one.model, found, one.task.test)["circuit"].kept == 5
    with pytest.raises(ValueError, match="Load the model it was found on"):
        evaluate(other.model, found, one.task.test)


BAD = {
    "dense": ({"sparsity": 0.0}, "Sparsity must lie between 0 and 1"),
    "percent": ({"sparsity": 95}, "give 0.95"),
    "no steps": ({"steps": 0}, "steps must be at least 1"),
    "no examples": ({"batch_size": 0}, "batch_size must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_at_once(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        EdgePruning(**options)


@pytest.mark.parametrize(
    ("options", "message"), [({"edges": 111}, "lie between 0 and 110"), ({"edges": -1}, "but is -1")]
)
def test_sizes_outside_the_graph_are_refused_before_training(options: dict[str, int], message: str) -> None:
    one = built("copy", 0)
    with pytest.raises(ValueError, match=message):
        EdgePruning(**options).find(one.model, one.task)


def test_unknown_choices_are_refused() -> None:
    one = built("copy", 0)
    with refuses_choice("recipe must be one of short, paper"):
        EdgePruning(recipe="long")
    with refuses_choice("kv must be one of shared, per_query_head"):
        EdgePruning(kv="grouped").find(one.model, one.task)
