"""Edges of whole attention layers, and of heads without q, k and v: a group is its members with one value."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import kept_encoder
from encoders import prompts as encoder_prompts
from hooked import NEEDS_HOOKED_TRANSFORMER
from shapes import GPT2, SHAPES, STORIES
from styles import (
    CLEAN,
    CORRUPT,
    OTHERS,
    STYLES,
    backend_of_style,
    error,
    fresh,
    model_of,
    probe,
    random_batch,
    random_mask,
)
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.drawing.contents import Contents
from tlprune.drawing.scene import Scene
from tlprune.graph import Architecture, Convention, Graph
from tlprune.grouping import groups, of_heads, of_parts, summed
from tlprune.learning.hard_metric import HardMetric
from tlprune.masking.edges import run_edges
from tlprune.masking.plain import plain_run
from tlprune.methods.acdc_plain import acdc_plain
from tlprune.task import Stream, Tokenisation

LAYERS = Convention(qkv="joined", heads="joined")
GROUPED = [
    Convention(embeddings, qkv=qkv, heads="joined")
    for embeddings in ("merged", "separate", "kept")
    for qkv in ("split", "joined")
]
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
each_grouped = pytest.mark.parametrize("convention", GROUPED, ids=str)
each_style = pytest.mark.parametrize("style", STYLES)
# Both ways in which fewer edges are told apart.
FEWER = {
    "layers": {"qkv": "joined", "heads": "joined"},
    "layers with parts": {"heads": "joined"},
    "joined": {"qkv": "joined"},
}
each_fewer = pytest.mark.parametrize("fewer", FEWER.values(), ids=FEWER)


def group_of(edge: str, convention: Convention) -> str:
    """The name of the edge that stands for an edge between heads, by what names mean."""
    found = re.sub(r"\.(h|kv)\d+", "", edge) if convention.heads == "joined" else edge
    return re.sub(r"<[qkv]>", "", found) if convention.qkv == "joined" else found


def members_of(graph: Graph, fine: Graph) -> Tensor:
    """For each edge of the fine graph the number of its group, found by names."""
    return torch.tensor([graph.index(group_of(edge, graph.convention)) for edge in fine.edges()])


def random_circuit(graph: Graph, share: float = 0.5, seed: int = 0) -> tp.Circuit:
    kept = torch.rand(len(graph), generator=torch.Generator().manual_seed(seed)) < share
    return tp.Circuit(tp.Sites((graph,)), kept)


def random_task(examples: int = 3) -> tp.Task:
    stream = Stream(*(random_batch(examples, seed=seed) for seed in (1, 2, 3)))
    return tp.Task("random", {"main": stream}, Tokenisation(prepend_bos=True))


# ---- counting


@pytest.mark.parametrize(
    ("convention", "gpt2", "stories"),
    [
        (LAYERS, 325, 66),
        (Convention("separate", qkv="joined", heads="joined"), 350, 66),
        (Convention("kept", qkv="joined", heads="joined"), 300, 55),
        (Convention(heads="joined"), 613, 116),
        (Convention(qkv="joined"), 11_611, 941),
    ],
    ids=str,
)
def test_counts(convention: Convention, gpt2: int, stories: int) -> None:
    assert (len(Graph(GPT2, convention)), len(Graph(STORIES, convention))) == (gpt2, stories)


@each_shape
@each_grouped
def test_every_edge_between_heads_is_in_the_group_that_its_name_says(
    shape: Architecture, convention: Convention
) -> None:
    graph = Graph(shape, convention)
    fine = of_heads(graph)
    assert fine.convention == Convention(convention.embeddings)
    assert torch.equal(groups(graph, fine), members_of(graph, fine))
    assert groups(graph, fine).unique().tolist() == list(range(len(graph)))
    assert [graph.index(name) for name in graph.edges()] == list(range(len(graph)))
    assert Graph.from_dict(graph.as_dict()) == graph
    assert "heads joined" in str(graph)


# ---- what is computed


@NEEDS_HOOKED_TRANSFORMER
@each_style
@pytest.mark.parametrize("convention", [LAYERS, Convention("kept", heads="joined")], ids=str)
def test_a_grouped_mask_is_the_fine_one_with_equal_values_and_its_gradient_their_sum(
    style: str, convention: Convention
) -> None:
    """Against the plain sum over writers, with members found by names."""
    model, backend = model_of(style), backend_of_style(style)
    graph, fine = Graph.of(model, convention), Graph.of(model, Convention(convention.embeddings))
    members, replaced = members_of(graph, fine), tp.Resample().replaced(backend, CLEAN, CORRUPT)
    mask = random_mask(graph)
    spread = mask.detach()[members].requires_grad_()
    found = run_edges(backend, graph, CLEAN, mask, replaced)
    expected = plain_run(model, fine, CLEAN, spread, replaced)
    assert error(found, expected) <= 1e-9
    (own,), (each,) = torch.autograd.grad(probe(found), mask), torch.autograd.grad(probe(expected), spread)
    assert error(own, torch.zeros_like(own).index_add(0, members, each)) <= 1e-9


@pytest.mark.parametrize("ablation", [tp.Zero(), tp.Mean(OTHERS)], ids=["zero", "mean"])
def test_masks_per_example_and_position_and_other_ablations_are_grouped_alike(ablation: Any) -> None:
    backend = backend_of_style("llama")
    graph = Graph.of(backend.model, LAYERS)
    mask, replaced = random_mask(graph, *CLEAN.ids.shape).detach(), ablation.replaced(backend, CLEAN, None)
    fine = of_heads(graph)
    expected = run_edges(backend, fine, CLEAN, mask[..., members_of(graph, fine)], replaced)
    assert error(run_edges(backend, graph, CLEAN, mask, replaced), expected) <= 1e-12


@pytest.mark.parametrize("convention", [LAYERS, Convention("kept", heads="joined")], ids=str)
def test_an_encoder_has_grouped_edges_too(convention: Convention) -> None:
    backend = backend_of(kept_encoder("bert classes"))
    graph, fine = Graph.of(backend.model, convention), Graph.of(backend.model, Convention(convention.embeddings))
    clean, corrupt = (encoder_prompts("bert classes", seed) for seed in (1, 2))
    replaced, members = tp.Resample().replaced(backend, clean, corrupt), members_of(graph, fine)
    mask = random_mask(graph)
    spread = mask.detach()[members].requires_grad_()
    found, expected = (run_edges(backend, *one, replaced) for one in ((graph, clean, mask), (fine, clean, spread)))
    assert error(found, expected) <= 1e-9
    (own,), (each,) = torch.autograd.grad(probe(found), mask), torch.autograd.grad(probe(expected), spread)
    assert error(own, torch.zeros_like(own).index_add(0, members, each)) <= 1e-9


def test_readers_of_a_grouped_run_are_called_as_in_its_graph() -> None:
    model, batch = model_of("gpt2"), random_batch()
    whole = tp.Circuit.from_edges(graph := Graph.of(model, Convention(heads="joined")), graph.edges())
    logits, seen = tp.Masked(model, whole)(batch), tp.Masked(model, whole).run_with_cache(batch)[1]
    assert {*seen} == {name for readers in whole.graph.readers for name in readers.names}
    assert error(model.unembed(model.ln_final(seen["logits"]))[:, -1:], logits) <= 1e-9


def test_an_installed_grouped_circuit_is_the_called_one() -> None:
    model = model_of("llama")
    masked = tp.Masked(model, random_circuit(Graph.of(model, LAYERS), 0.7), tp.Zero())
    with masked.installed() as installed:
        inside = installed(CLEAN.ids)
    assert error(inside, masked(CLEAN)) <= 1e-9


# ---- circuits


@each_shape
@each_grouped
def test_a_grouped_circuit_refined_and_grouped_again_is_itself(shape: Architecture, convention: Convention) -> None:
    circuit = random_circuit(Graph(shape, convention))
    fine = tp.convert(circuit, Convention(convention.embeddings))
    assert {group_of(edge, convention) for edge in fine.edges} == {*circuit.edges}
    assert torch.equal(fine.kept, circuit.kept[groups(circuit.graph, fine.graph)])
    assert tp.convert(fine, convention) == circuit
    assert tp.convert(circuit.effective, fine.graph.convention) == fine.effective


def test_a_circuit_that_keeps_part_of_a_group_has_no_grouped_form_unless_told_which() -> None:
    graph = Graph(SHAPES["plain"])
    part = tp.Circuit.from_edges(graph, ["input->a0.h1<v>", "a0.h1->m1"])
    with pytest.raises(ValueError, match="several edges become one and must agree"):
        tp.convert(part, LAYERS)
    assert tp.convert(part, LAYERS, reduce="max").edges == ["input->a0", "a0->m1"]
    assert tp.convert(part, LAYERS, reduce="min").edges == []
    assert tp.convert(part, Convention(heads="joined"), reduce="max").edges == ["input->a0<v>", "a0->m1"]


def test_a_refined_circuit_computes_the_same() -> None:
    model, batch = model_of("gpt2"), random_batch()
    circuit = random_circuit(Graph.of(model, LAYERS))
    fine = tp.convert(circuit, Convention("separate"))
    first, second = (tp.Masked(model, found)(batch) for found in (circuit, fine))
    assert torch.allclose(first, second, atol=1e-9)
    assert not torch.allclose(first, tp.Masked(model, circuit.complement)(batch), atol=1e-3)


def test_a_grouped_circuit_is_saved_and_drawn(tmp_path: Path) -> None:
    circuit = tp.Circuit.from_edges(Graph(GPT2, LAYERS), ["input->a0", "a0->m3", "m3->a5", "a5->logits", "a1->m1"])
    circuit.save(tmp_path / "circuit.json")
    assert tp.Circuit.load(tmp_path / "circuit.json") == circuit
    assert circuit.nodes == ["input", "a1", "a0", "m3", "a5"]
    scene = Scene.of(Contents.of(circuit))
    assert [node.name for node in scene.nodes if node.effective] == ["input", "a0", "m3", "a5", "logits"]
    parted = tp.Circuit.from_edges(Graph(GPT2, Convention(heads="joined")), ["input->a0<v>", "a0->logits"])
    assert [link.part for link in Scene.of(Contents.of(parted)).links] == ["v", "logits"]
    drawing = tp.draw(circuit).svg
    assert drawing.count("data-edge") == 5
    assert "5 of 325 edges, 4 effective" in drawing


def test_layers_without_heads_carry_no_edge_and_single_heads_induce_none() -> None:
    model = model_of("lnpre")
    sites = tp.heads(model) + tp.edges(model, **FEWER["layers"])
    names = {sites.name(index) for index in range(len(sites))}
    circuit = tp.Circuit.from_names(sites, names - {"a0.h1"})
    assert len(circuit.effective) == len(circuit)
    gone = tp.Circuit.from_names(sites, names - {f"a0.h{head}" for head in range(4)})
    assert {*gone.names} - {*gone.effective.names} == {name for name in gone.edges if "a0" in name}
    graph = Graph.of(model, LAYERS)
    assert tp.induced(tp.Circuit.from_names(tp.layers(model), ["a0", "m1"]), graph).edges == [
        "input->a0", "input->m1", "a0->m1", "input->logits", "a0->logits", "m1->logits",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="all heads of a layer or none"):
        tp.induced(tp.Circuit.from_names(tp.heads(model), ["a0.h1"]), graph)


# ---- methods

QUICK = {
    "edge-pruning": tp.EdgePruning(edges=9, steps=3),
    "ugs": tp.UGS(edges=9, steps=3, samples=1),
    "subnetwork-probing": tp.SubnetworkProbing(edges=9, steps=3, samples=1),
    "hap": tp.HAP(edges=9, steps=3, attribution=tp.EAP(edges=12)),
    "eap": tp.EAP(edges=9),
    "eap-ig": tp.EAPIG(edges=9, steps=2),
    "activations": tp.EAPIG(edges=9, steps=2, path="activations"),
    "relp": tp.RelP(edges=9),
    "edge-patching": tp.EdgePatching(edges=9),
    "information-flow-routes": tp.InformationFlowRoutes(edges=9),
    "random": tp.Random(edges=9),
    "acdc": tp.ACDC(threshold=0.01),
}


@pytest.mark.parametrize("name", QUICK)
@each_fewer
def test_every_method_finds_circuits_of_grouped_edges(name: str, fewer: dict[str, str]) -> None:
    model, task = model_of("lnpre"), random_task()
    method = dataclasses.replace(QUICK[name], **fewer)
    if name == "hap":
        method = dataclasses.replace(method, attribution=dataclasses.replace(QUICK["eap"], edges=12, **fewer))
    found = method.find(model, tp.sealed(task))
    assert found.graph == Graph.of(model, Convention(**fewer))
    assert len(found) == 9 or name == "acdc"
    assert tp.method_from(found.provenance) == method
    assert found.on(model)(task.test).isfinite().all()


@pytest.mark.parametrize("name", ["eap", "eap-ig", "activations", "relp"])
@pytest.mark.parametrize("style", ["lnpre", "gemma2"])
def test_first_order_scores_of_a_group_are_the_sum_of_its_members(name: str, style: str) -> None:
    model, task = model_of(style), random_task()
    # Under grouped queries, k and v of each query head, so that none is in the groups of two joined heads.
    fine = dataclasses.replace(QUICK[name], kv="per_query_head").score(model, task)
    for fewer in FEWER.values():
        grouped = dataclasses.replace(QUICK[name], **fewer).score(model, task)
        expected = torch.zeros_like(grouped.values)
        expected.index_add_(0, members_of(grouped.graph, fine.graph), fine.values)
        assert error(grouped.values, expected) <= 1e-9


def test_routes_of_a_group_are_the_best_of_its_members() -> None:
    model, task = model_of("llama"), random_task(1)
    fine = tp.InformationFlowRoutes().score(model, task)
    grouped = tp.InformationFlowRoutes(qkv="joined", heads="joined").score(model, task)
    expected = torch.zeros_like(grouped.values)
    expected = expected.scatter_reduce(0, members_of(grouped.graph, fine.graph), fine.values, "amax")
    assert error(grouped.values, expected) <= 1e-12


@pytest.mark.parametrize("style", ["lnpre", "gemma2", "parallel"])
@each_fewer
def test_acdc_decides_on_groups_as_its_definition_does(style: str, fewer: dict[str, str]) -> None:
    model, task = model_of(style), random_task()
    sites = tp.edges(model, **fewer)  # pyright: ignore[reportArgumentType]
    metric = HardMetric(model, sites, tp.Resample(), task.discovery.train(), tp.KL())
    found = tp.ACDC(threshold=0.02, **fewer).find(model, task)  # pyright: ignore[reportArgumentType]
    assert torch.equal(found.kept, acdc_plain(metric, sites.graph, 0.02))
    assert 0 < len(found) < len(sites)


@pytest.mark.parametrize("style", ["llama", "gemma2"])
def test_patching_a_group_replaces_all_its_members(style: str) -> None:
    model, task = model_of(style), random_task()
    scores = tp.EdgePatching(objective=tp.KL(), qkv="joined", heads="joined").score(model, task)
    batch = task.discovery.train()
    fine = tp.edges(model)
    members = members_of(scores.graph, fine.graph)
    masked = tp.Masked(model, tp.Masks(fine))
    reference = masked.cache(batch).reference(batch)
    for index in range(len(scores.values)):
        logits = masked(batch, mask=(members != index).double())
        assert error(scores.values[index], tp.KL()(logits, batch, reference)) <= 1e-7


def test_a_planted_circuit_of_layers_is_found() -> None:
    planted = tp.planted("copy")
    truth = tp.convert(planted.circuit, LAYERS, reduce="max")
    found = tp.EdgePruning(edges=len(truth), steps=30, **FEWER["layers"]).find(planted.model, planted.task)  # pyright: ignore
    assert found == truth


def test_every_circuit_grows_on_paths() -> None:
    order = tp.connected_random(Graph(GPT2, LAYERS), 40, seed=1)
    assert order.n_effective == len(order) == 40


def test_sums_are_over_groups() -> None:
    for convention in (LAYERS, Convention(qkv="joined"), Convention("kept", heads="joined")):
        graph = Graph(SHAPES["grouped"], convention)
        fine = of_parts(graph)
        values = torch.randn(len(fine), generator=torch.Generator().manual_seed(0))
        expected = torch.zeros(len(graph)).index_add(0, members_of(graph, fine), values)
        assert torch.allclose(summed(values, graph, fine), expected)
        assert of_parts(fine) is of_heads(fine) is fine
        assert summed(values, fine, fine) is values


def test_the_model_is_left_without_flags() -> None:
    model: Any = fresh("llama")
    before = dict(vars(model.cfg))
    tp.EAP(**FEWER["layers"]).score(model, random_task())  # pyright: ignore[reportArgumentType]
    assert vars(model.cfg) == before
