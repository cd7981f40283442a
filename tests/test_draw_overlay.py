"""Two circuits on each other: whose each edge is, in colours, counts and names; and drawings of scores."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from test_draw import GPT2, GRAPHS, NAMESPACE, drawn, nodes, sample, tree
from test_draw_spans import sample as sample_by_span

import tlprune as tp
from tlprune.drawing.scene import BUNDLED
from tlprune.graph import Architecture, Graph
from tlprune.sites import Nodes, Sites


def owners(drawing: Any) -> dict[str, set[str]]:
    """Names of the drawn edges by the colour of their group."""
    found: dict[str, set[str]] = {"first": set(), "both": set(), "second": set()}
    for group in tree(drawing).iter(f"{{{NAMESPACE}}}g"):
        for path in group.findall(f"{{{NAMESPACE}}}path[@data-edge]"):
            assert f"part-{group.attrib['data-look']}" == group.attrib["class"]
            found[group.attrib["data-look"]].add(path.attrib["data-edge"])
    return found


def legend(drawing: Any) -> dict[str, str]:
    groups = (group for group in tree(drawing).iter(f"{{{NAMESPACE}}}g") if "data-toggle" in group.attrib)
    return {group.attrib["data-toggle"]: "".join(group.itertext()).strip() for group in groups}


@pytest.mark.parametrize("name", GRAPHS)
def test_every_edge_has_the_colour_of_whose_it_is(name: str) -> None:
    first, second = sample(GRAPHS[name], 40, seed=1), sample(GRAPHS[name], 40, seed=2)
    second = second.like(second.kept | (first.kept & (torch.arange(len(first.kept)) % 2 == 0)))
    drawing = tp.draw_overlay(first, second, names=("early", "late"))
    whose = {"first": first - second, "both": first & second, "second": second - first}
    assert owners(drawing) == {owner: set(circuit.edges) for owner, circuit in whose.items()}
    counts = [len(circuit) for circuit in whose.values()]
    assert list(legend(drawing).values()) == [
        f"only early ({counts[0]})", f"both ({counts[1]})", f"only late ({counts[2]})"
    ]  # fmt: skip
    assert f"{sum(counts)} of {len(GRAPHS[name]):,} edges (early: {len(first)}, late: {len(second)})" in drawing.svg
    assert f"intersection over union {first.iou(second):.2f}" in drawing.svg
    assert sorted(drawn(drawing)) == sorted((first | second).edges)
    told = {str(title.text) for title in tree(drawing).iter(f"{{{NAMESPACE}}}title")}
    assert {f"{edge}  only late" for edge in whose["second"].edges} <= told


def test_an_edge_is_dashed_where_no_circuit_that_has_it_has_a_path_through_it() -> None:
    """``input->m0`` is of one circuit and ``m0->logits`` of the other: their union has a path, but neither has one."""
    graph = GRAPHS["plain"]
    first = tp.Circuit.from_edges(graph, ["input->m0", "input->logits", "input->m1"])
    second = tp.Circuit.from_edges(graph, ["m0->logits", "input->m1", "m1->logits"])
    assert len((first | second).effective) == 5
    drawing = tp.draw_overlay(first, second)
    dashed = {
        path.attrib["data-edge"]
        for group in tree(drawing).iter(f"{{{NAMESPACE}}}g")
        for path in group.findall(f"{{{NAMESPACE}}}path[@data-edge]")
        if "stroke-dasharray" in group.attrib
    }
    assert dashed == {"input->m0", "m0->logits"}
    assert "dashed: not effective" in drawing.svg
    assert "dashed" not in tp.draw_overlay(second.effective, second.effective).svg


def test_a_box_has_the_colour_of_the_circuit_that_alone_uses_it() -> None:
    graph = GRAPHS["plain"]
    first = tp.Circuit.from_edges(graph, ["input->a0.h1<v>", "a0.h1->logits", "input->m0", "m0->logits"])
    second = tp.Circuit.from_edges(graph, ["input->a0.h2<v>", "a0.h2->logits", "input->m0", "m0->logits"])
    figure = tree(tp.draw_overlay(first, second))
    looks = {
        group.attrib["data-node"]: group[0].attrib["class"]
        for group in figure.iter(f"{{{NAMESPACE}}}g")
        if "data-node" in group.attrib
    }
    assert looks == {"input": "end", "a0.h1": "only-first", "a0.h2": "only-second", "m0": "box-mlp", "logits": "end"}


def test_by_span_and_bundled_overlays_keep_whose_each_edge_is() -> None:
    first, second = (sample_by_span(GRAPHS["plain"], 40, seed=seed) for seed in (1, 2))
    found = owners(tp.draw_overlay(first, second))
    assert found["first"] == set((first - second).edges) and found["second"] == set((second - first).edges)
    large, other = (sample(Graph(GPT2), BUNDLED, seed=seed) for seed in (1, 2))
    drawing = tp.draw_overlay(large, other)
    assert "one curve per pair of nodes" in drawing.svg
    pairs = {tuple(edge.partition("<")[0].split("->")) for edge in (large - other).edges}
    assert {tuple(name.partition("<")[0].split("->")) for name in owners(drawing)["first"]} == pairs


def test_circuits_over_different_edges_are_refused_and_models_may_differ() -> None:
    one = sample(GRAPHS["plain"], 5)
    for other in (sample(GRAPHS["separate"], 5), sample_by_span(GRAPHS["plain"], 5)):
        with pytest.raises(ValueError, match="needs two circuits over the same edges but"):
            tp.draw_overlay(one, other)
    tuned = tp.Circuit(one.sites, one.kept, {"model": {"weights": "b"}})
    both = tp.draw_overlay(tp.Circuit(one.sites, one.kept, {"model": {"weights": "a"}}), tuned)
    assert legend(both)["both"] == "both (5)"
    empty = tp.Circuit.from_edges(GRAPHS["plain"], [])
    assert "this circuit is empty" in tp.draw_overlay(empty, empty).svg


# ---- scores, and circuits of more than edges


def test_scores_are_drawn_by_the_largest_with_their_values() -> None:
    graph = GRAPHS["plain"]
    scores = tp.Scores(Sites((graph,)), torch.randn(len(graph), generator=torch.Generator().manual_seed(0)))
    drawing = tp.draw(scores, edges=60)
    expected = tp.TopConnected(by="absolute").select(scores, 60)
    assert sorted(drawn(drawing)) == sorted(expected.edges)
    assert drawing == tp.draw(expected, weights=scores) == tp.draw(expected, weights=scores.values)
    weights = {e.attrib["data-edge"]: e.attrib["data-weight"] for e in tree(drawing).iter() if "data-edge" in e.attrib}
    assert {name: float(value) for name, value in weights.items()} == pytest.approx(
        {name: scores[name] for name in expected.edges}, rel=1e-4
    )
    assert len(drawn(tp.draw(scores, edges=10**6))) == len(graph)


def test_edges_beside_sites_of_other_kinds_are_the_ones_drawn() -> None:
    graph = Graph(Architecture(2, 2, 2))
    heads = Nodes("heads", ("a0.h0", "a0.h1", "a1.h0", "a1.h1"))
    names = ["a0.h0", "a0.h1", "input->a0.h1<v>", "a0.h1->logits"]
    circuit = tp.Circuit.from_names(Sites((heads, graph)), names)
    assert sorted(drawn(tp.draw(circuit))) == sorted(names[2:])
    assert nodes(tp.draw(circuit)) == {"input", "a0.h1", "logits"}
    scores = tp.Scores(circuit.sites, torch.arange(float(len(circuit.sites))))
    named = {e.text for e in tree(tp.draw(circuit, weights=scores)).iter(f"{{{NAMESPACE}}}title")}
    assert named == {f"{name}  {scores[name]:+.3g}" for name in names[2:]}
    assert set(drawn(tp.draw(scores, edges=3))) <= set(graph.edges())


def test_a_bundle_says_how_many_edges_it_has() -> None:
    graph = Graph(GPT2)
    drawing = tp.draw(tp.Circuit(Sites((graph,)), torch.ones(len(graph), dtype=torch.bool)))
    counts = [int(e.attrib.get("data-count", 1)) for e in tree(drawing).iter() if "data-edge" in e.attrib]
    assert sum(counts) == len(graph) and max(counts) == 3


def test_a_figure_is_light_or_dark_by_the_screen_and_by_choice() -> None:
    style = ElementTree.fromstring(tp.draw(sample(GRAPHS["plain"], 5)).svg)[0].text or ""
    assert style.count("@media screen") == 2
    by_screen = set(re.findall(r"\.circuit:not\(\[data-theme=light\]\) (\.[\w-]+\{[^}]+\})", style))
    assert by_screen == set(re.findall(r"\.circuit\[data-theme=dark\] (\.[\w-]+\{[^}]+\})", style)) != set()
