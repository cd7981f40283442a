"""Drawings by span: every edge once at its span, rows of one height, and curves where attention moves between spans."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from test_draw import GRAPHS, NAMESPACE, drawn, nodes, tree

import tlprune as tp
from tlprune.drawing.contents import Contents
from tlprune.drawing.lanes import lanes
from tlprune.drawing.scene import BUNDLED
from tlprune.flow import Flow
from tlprune.graph import Architecture, Convention, Graph
from tlprune.sites import Sites

NAMES = ("name", "end")
FLOW = Flow(("name", "end", "rest"), (("rest", "name"), ("rest", "end"), ("name", "end")), ("end",))
JOINED = Graph(Architecture(3, 4, 4), Convention(qkv="joined"))
LAYERS = Graph(Architecture(3, 4, 4), Convention(heads="joined"))
KEPT, SHARED = Graph(Architecture(2, 2, 2), Convention("kept")), Graph(Architecture(2, 4, 2))
ALL = GRAPHS | {"joined": JOINED, "layers": LAYERS}


def sample(graph: Graph, count: int, *, seed: int = 0) -> tp.Circuit:
    sites = Sites((graph,)).with_spans(NAMES, flow=FLOW)
    kept = torch.zeros(len(sites), dtype=torch.bool)
    kept[torch.randperm(len(sites), generator=torch.Generator().manual_seed(seed))[:count]] = True
    return tp.Circuit(sites, kept)


def moves(drawing: Any) -> set[tuple[str, str]]:
    """The curves from one span to another."""
    ties = ((e.attrib["data-tie"], e.attrib["data-head"]) for e in tree(drawing).iter() if "data-tie" in e.attrib)
    return {(a, b) for a, b in ties if a.partition("@")[2] != b.partition("@")[2]}


def expected_moves(circuit: tp.Circuit) -> set[tuple[str, str]]:
    """From the names of edges alone."""
    found = set()
    parts = [re.fullmatch(r"(.+)->(a[^<]*)(?:<(\w)>)?@(\w+)", name) for name in circuit.effective.edges]
    for into in (match for match in parts if match and match[3] != "q"):
        for name in circuit.effective.edges:
            writer, span = name.partition("->")[0], name.partition("@")[2]
            shared = re.fullmatch(r"(a\d+)\.kv(\d+)", into[2])
            heads = {into[2]} if not shared else {f"{shared[1]}.h{2 * int(shared[2]) + i}" for i in (0, 1)}
            if writer in heads and (into[4], span) in FLOW.moves:
                found.add((f"{into[2]}@{into[4]}", f"{writer}@{span}"))
    return found


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [1, 30, 100])
def test_every_edge_is_drawn_once_at_its_span(name: str, count: int) -> None:
    circuit = sample(ALL[name], count)
    drawing = tp.draw(circuit)
    assert sorted(drawn(drawing)) == sorted(circuit.edges)
    assert sorted(drawn(drawing, effective=True)) == sorted(circuit.effective.edges)
    ends = set()
    for edge in circuit.edges:
        path, _, span = edge.partition("@")
        ends |= {f"{end.partition('<')[0]}@{span}" for end in path.split("->")}
    assert nodes(drawing) == ends
    assert moves(drawing) == expected_moves(circuit)


@pytest.mark.parametrize("graph", [JOINED, LAYERS, KEPT, SHARED], ids=str)
def test_curves_go_from_what_is_read_to_what_is_written(graph: Graph) -> None:
    circuit = sample(graph, len(graph))
    assert moves(tp.draw(circuit)) == expected_moves(circuit)
    assert len(expected_moves(circuit)) > 1


@pytest.mark.parametrize("name", ALL)
def test_spans_stand_side_by_side_in_the_same_rows(name: str) -> None:
    panels, _ = lanes(Contents.of(sample(ALL[name], 100)), top=0.0)
    assert [panel.heading[0] for panel in panels if panel.heading] == ["@name", "@end", "@rest"]
    boxes = [{name.partition("@")[0]: box for name, box in panel.layout.boxes.items()} for panel in panels]
    for own, after in zip(boxes, boxes[1:], strict=False):
        assert all(own[node].y == after[node].y for node in own.keys() & after.keys())
        assert max(box.x + box.width / 2 for box in own.values()) < min(box.x - box.width / 2 for box in after.values())
    right = max(box.x + box.width / 2 for box in boxes[-1].values())
    assert right < max(panel.layout.width for panel in panels)


def test_counts_are_stated_both_ways_and_spans_named() -> None:
    circuit = sample(SHARED, 60)
    total = len(SHARED)
    text = f"60 of {3 * total:,} edges, {circuit.n_effective} effective, at 3 of 3 spans; "
    text += f"{len(circuit.without_spans())} of {total:,} distinct; embeddings merged"
    svg = tp.draw(circuit, title="By span").svg
    assert text in svg
    assert "attention to another span" in svg
    figure = ElementTree.fromstring(svg)
    assert {"@name", "@end", "@rest"} <= {e.text for e in figure.iter(f"{{{NAMESPACE}}}text")}
    few = tp.Circuit.from_names(circuit.sites, ["input->m0@name"])
    assert "at 1 of 3 spans" in tp.draw(few).svg
    assert "attention to another span" not in tp.draw(few).svg


def test_weights_are_one_for_each_edge_at_each_span() -> None:
    circuit = sample(GRAPHS["plain"], 20)
    weights = torch.arange(float(len(circuit.sites)))
    notes = [str(e.text) for e in tree(tp.draw(circuit, weights=weights)).iter(f"{{{NAMESPACE}}}title")]
    assert sorted(notes) == sorted(f"{name}  {weights[circuit.sites.index(name)]:+.3g}" for name in circuit.edges)
    with pytest.raises(ValueError, match="need shape"):
        tp.draw(circuit, weights=weights[: len(GRAPHS["plain"])])


def test_empty_and_large_circuits() -> None:
    empty = tp.draw(sample(GRAPHS["plain"], 0))
    assert "this circuit is empty" in empty.svg
    large = sample(Graph(Architecture(12, 12, 12)), BUNDLED + 1)
    assert len(drawn(tp.draw(large))) < len(large)
    assert "one curve per pair of nodes" in tp.draw(large).svg
