"""Gates on what heads move between spans: alone, and beside those of edges at spans."""

from __future__ import annotations

import pytest
from test_attention_scores import MOVED
from test_span_methods import TRUE_SPANS, true_places

import tlprune as tp
from tlprune.methods.edge_pruning import RECIPES


@pytest.mark.parametrize("name", TRUE_SPANS)
def test_pruning_finds_the_true_edges_and_what_is_moved(name: str) -> None:
    """Both, because what a head moves is lost with the edge that brought it there."""
    planted, true = true_places(name, 0)
    spans, moved = planted.task.span_names, MOVED[name]
    method = tp.EdgePruning(edges=len(true), attention_edges=len(moved), steps=80, spans=spans)
    found = method.find(planted.model, planted.task)
    assert (found.names_of("edges"), found.names_of("attention_edges")) == (true.names, moved)
    assert tp.method_from(found.provenance) == method
    assert tp.evaluate(planted.model, found, planted.task)["circuit"].means()["accuracy"] == 1.0


@pytest.mark.parametrize("seed", [0, 1])
def test_training_of_gates_alone_finds_how_induction_moves(seed: int) -> None:
    """Through a softmax without gradient by its keys: gates leave the place where it is saturated."""
    planted, recipe = tp.planted("induction", seed=seed), RECIPES["short"]
    sites = tp.attention_edges(planted.model, spans=planted.task.span_names)
    masks = tp.Masks(sites, tp.HardConcrete(initial=recipe.initial))
    plan = {"budget": recipe.budget(5, len(sites), 100), "optimiser": recipe.optimiser(100), "steps": 100}
    tp.fit(tp.Masked(planted.model, masks), planted.task.discovery, tp.KL(), batch_size=32, **plan)
    patched = tp.AttentionPatching(attention_edges=5, spans=planted.task.span_names)
    found = masks.circuit(attention_edges=5)
    assert found == patched.find(planted.model, planted.task)
    assert seed or sorted(found.names) == sorted(MOVED["induction"])


def test_scores_are_of_both_kinds_and_sizes_are_kept() -> None:
    planted = tp.planted("copy")
    method = tp.EdgePruning(edges=7, attention_edges=3, steps=4, spans=("copied",), kv="per_query_head")
    scores = method.score(planted.model, planted.task)
    assert scores.sites.kinds == ("edges", "attention_edges")
    found = method.find(planted.model, planted.task)
    assert (found.count("edges"), found.count("attention_edges")) == (7, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_edges": 3}, "asked for without spans"),
        ({"attention_edges": 3, "spans": ("copied",), "size": "reached"}, "have gates of their own"),
        ({"attention_edges": 3, "spans": ("copied",), "node_sparsity": 0.5}, "have gates of their own"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tp.EdgePruning(**options)


def test_more_than_there_are_cannot_be_kept() -> None:
    planted = tp.planted("copy")
    with pytest.raises(ValueError, match="The number of attention_edges must lie between 0 and 64"):
        tp.EdgePruning(attention_edges=65, spans=("copied",)).find(planted.model, planted.task)


@pytest.mark.parametrize("convention", [{"qkv": "joined"}, {"heads": "joined"}, {"qkv": "joined", "heads": "joined"}])
def test_edges_may_be_of_groups(convention: dict) -> None:
    planted = tp.planted("copy")
    method = tp.EdgePruning(edges=7, attention_edges=3, steps=2, spans=("copied",), **convention)
    assert method.find(planted.model, planted.task).count("attention_edges") == 3


def test_scores_of_two_kinds_stand_beside_each_other() -> None:
    planted, true = true_places("adder", 0)
    spans, moved = planted.task.span_names, MOVED["adder"]
    edges = tp.EAP(spans=spans).score(planted.model, planted.task)
    across = tp.AttentionEAP(spans=spans).score(planted.model, planted.task)
    both = edges.beside(across)
    assert both.top(len(true) + len(moved)).names == [*true.names, *moved]
    assert (both.of("edges").values == edges.values).all()
    assert (both.of("attention_edges").values == across.values).all()
    assert both.provenance["of"] == [dict(edges.provenance), dict(across.provenance)]
    assert tp.evaluate(planted.model, both.top(6), planted.task)["circuit"].means()["accuracy"] == 1.0
    with pytest.raises(ValueError, match="name some twice"):
        edges.beside(edges)
