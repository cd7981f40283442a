"""Drawings: well-formed, complete, self-contained, and clear about what they refuse."""

from __future__ import annotations

import re
from html import unescape
from xml.etree import ElementTree

import pytest
import torch

from tlprune.circuit import Circuit
from tlprune.drawing.contents import Contents
from tlprune.drawing.drawn import Drawing, draw
from tlprune.drawing.layout import Layout
from tlprune.drawing.scene import BUNDLED, Scene
from tlprune.graph import Architecture, Convention, Graph
from tlprune.sites import Sites

NAMESPACE = "http://www.w3.org/2000/svg"
PLAIN = Architecture(4, 8, 8, position_embedding=True)
GROUPED = Architecture(5, 8, 4)
GPT2 = Architecture(12, 12, 12, position_embedding=True)

GRAPHS = {
    "plain": Graph(PLAIN),
    "separate": Graph(PLAIN, Convention("separate")),
    "kept": Graph(PLAIN, Convention("kept")),
    "grouped": Graph(GROUPED),
    "per query head": Graph(GROUPED, Convention(kv="per_query_head")),
    "attention only": Graph(Architecture(2, 4, 4, has_mlp=False)),
    "parallel": Graph(Architecture(3, 4, 4, parallel=True)),
}


def sample(graph: Graph, count: int, *, seed: int = 0) -> Circuit:
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    kept[torch.randperm(graph.n_edges, generator=torch.Generator().manual_seed(seed))[:count]] = True
    return Circuit(Sites((graph,)), kept)


def tree(drawing: Drawing) -> ElementTree.Element:
    return ElementTree.fromstring(drawing.svg)


def drawn(drawing: Drawing, *, effective: bool | None = None) -> list[str]:
    """Names of the drawn edges, from groups of effective edges or of the others or of both."""
    return [
        path.get("data-edge")
        for group in tree(drawing).iter(f"{{{NAMESPACE}}}g")
        for path in group.findall(f"{{{NAMESPACE}}}path[@data-edge]")
        if effective is None or ("part-idle" not in group.get("class")) == effective
    ]


def nodes(drawing: Drawing) -> set[str]:
    return {group.get("data-node") for group in tree(drawing).iter() if group.get("data-node")}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("count", [1, 30, 100])
def test_every_edge_is_drawn_once_and_told_apart(name, count):
    circuit = sample(GRAPHS[name], count)
    drawing = draw(circuit)
    assert sorted(drawn(drawing)) == sorted(circuit.edges)
    assert sorted(drawn(drawing, effective=True)) == sorted(circuit.effective.edges)
    ends = {end.partition("<")[0] for edge in circuit.edges for end in edge.split("->")}
    assert nodes(drawing) == ends | set(circuit.graph.embeddings or ["embeddings"]) | {"logits"}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_drawing_asks_for_nothing_from_outside(name):
    drawing = draw(sample(GRAPHS[name], 40), title="see https below")
    for text in (drawing.svg, drawing.html):
        assert set(re.findall(r"\w+://[^\"'\s<]*", text)) == {NAMESPACE}
        assert not re.search(r"\b(src|href)=|@import|url\(", text)
        assert text.isascii()


def test_counts_and_convention_are_stated():
    circuit = sample(GRAPHS["grouped"], 170)
    stated = f"170 of 1,701 edges, {circuit.n_effective} effective; embeddings merged, kv shared"
    assert stated in draw(circuit).svg and stated in draw(circuit).html


def test_the_same_circuit_gives_the_same_drawing():
    circuit = sample(GRAPHS["grouped"], 60)
    assert draw(circuit) == draw(Circuit.from_edges(circuit.graph, reversed(circuit.edges)))


@pytest.mark.parametrize("name", ["plain", "separate", "kept"])
def test_an_empty_circuit_says_so(name):
    drawing = draw(Circuit.from_edges(GRAPHS[name], []))
    assert "this circuit is empty" in drawing.svg
    assert nodes(drawing) == set(GRAPHS[name].embeddings or ["embeddings"]) | {"logits"}


def test_shared_key_value_heads_are_tied_to_the_drawn_query_heads():
    edges = ["input->a0.h0<q>", "input->a0.kv0<k>", "input->a0.h3<q>", "a0.h0->logits", "a0.h3->a1.kv1<v>"]
    figure = tree(draw(Circuit.from_edges(GRAPHS["grouped"], edges)))
    ties = [(e.get("data-tie"), e.get("data-head")) for e in figure.iter() if e.get("data-tie")]
    assert ties == [("a0.kv0", "a0.h0")]


@pytest.mark.parametrize("name", GRAPHS)
def test_rows_rise_and_boxes_do_not_overlap(name):
    layout = Layout.of(Scene.of(Contents.of(sample(GRAPHS[name], 100))))
    heights = [{layout.boxes[node].y for node in row} for row in layout.rows]
    assert all(len(row) == 1 for row in heights) and [min(row) for row in heights] == sorted(map(min, heights))[::-1]
    for row in layout.rows:
        boxes = [layout.boxes[node] for node in row]
        assert all(b.x - a.x >= (a.width + b.width) / 2 for a, b in zip(boxes, boxes[1:], strict=False))
        assert boxes[0].x - boxes[0].width / 2 >= 0 and boxes[-1].x + boxes[-1].width / 2 <= layout.width


def test_curves_keep_clear_of_other_boxes():
    circuit = sample(GRAPHS["plain"], 60)
    layout, figure = Layout.of(Scene.of(Contents.of(circuit)), top=38.0), tree(draw(circuit))
    for path in figure.iter(f"{{{NAMESPACE}}}path"):
        own = {path.get("data-from"), path.get("data-to")}
        for x, y in _points(path.get("d")) if path.get("data-edge") else ():
            inside = [n for n, b in layout.boxes.items() if abs(x - b.x) < b.width / 2 and abs(y - b.y) < b.height / 2]
            assert set(inside) <= own, path.get("data-edge")


def _points(path: str) -> list[tuple[float, float]]:
    """Places along a path of cubic pieces."""
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    corners = list(zip(numbers[::2], numbers[1::2], strict=True))
    return [
        tuple(
            (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
            for a, b, c, d in zip(*corners[i : i + 4], strict=True)
        )
        for i in range(0, len(corners) - 1, 3)
        for t in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]


def test_a_large_circuit_has_one_curve_for_each_pair_of_nodes():
    graph = Graph(GPT2)
    drawing = draw(Circuit(Sites((graph,)), torch.ones(graph.n_edges, dtype=torch.bool)))
    names = drawn(drawing)
    pairs = {tuple(edge.partition("<")[0].split("->")) for edge in graph.edges()}
    assert len(names) == len(pairs) and {tuple(name.partition("<")[0].split("->")) for name in names} == pairs
    assert "a0.h1->a2.h0<q,k,v>" in names and "m11->logits" in names
    assert "one curve per pair of nodes" in drawing.svg


def test_a_bundle_that_is_not_effective_is_told_apart():
    graph = Graph(GPT2)
    kept = torch.ones(graph.n_edges, dtype=torch.bool)
    kept[[graph.index(edge) for edge in graph.edges() if edge.endswith(("a11.h0<q>", "a11.h0<v>"))]] = False
    kept[[graph.index("a11.h0->m11"), graph.index("a11.h0->logits")]] = False
    circuit = Circuit(Sites((graph,)), kept)
    assert "a0.h0->a11.h0<k>" in drawn(draw(circuit), effective=False)


def test_bundling_starts_above_its_threshold():
    graph = Graph(GPT2)
    scenes = [Scene.of(Contents.of(sample(graph, count))) for count in (BUNDLED, BUNDLED + 1)]
    assert [scene.bundled for scene in scenes] == [False, True]


def test_weights_decide_the_stroke():
    circuit = Circuit.from_edges(GRAPHS["plain"], ["input->m0", "m0->logits", "input->logits"])
    weights = torch.zeros(circuit.graph.n_edges)
    weights[circuit.graph.index("input->m0")], weights[circuit.graph.index("m0->logits")] = -4.0, 2.0
    strokes = {
        path.get("data-edge"): float(path.get("stroke-width"))
        for path in tree(draw(circuit, weights=weights)).iter(f"{{{NAMESPACE}}}path")
        if path.get("data-edge")
    }
    assert strokes["input->m0"] > strokes["m0->logits"] > strokes["input->logits"] > 0


def test_weights_must_fit_and_be_finite():
    circuit = sample(GRAPHS["plain"], 5)
    with pytest.raises(ValueError, match=r"need shape \(1,519,\).*have \(3,\)"):
        draw(circuit, weights=torch.ones(3))
    with pytest.raises(ValueError, match="must be finite"):
        draw(circuit, weights=torch.full((circuit.graph.n_edges,), float("nan")))


@pytest.mark.parametrize("title", ["</svg><script>alert(1)</script>", 'a "quoted" & <b>', "é 字 🙂", "bell\x07 \ud800"])
def test_a_title_is_text_and_nothing_else(title):
    drawing = draw(sample(GRAPHS["plain"], 5), title=title)
    texts = [element.text for element in tree(drawing).iter(f"{{{NAMESPACE}}}text")]
    assert re.sub("[\x07\ud800]", "\ufffd", title) in texts
    assert drawing.html.count("<script>") == 1


def test_saving_writes_the_figure_or_the_page(tmp_path):
    circuit = sample(GRAPHS["plain"], 5)
    drawing = draw(circuit, tmp_path / "circuit.html")
    drawing.save(str(tmp_path / "circuit.SVG"))
    assert (tmp_path / "circuit.html").read_text() == drawing.html
    assert (tmp_path / "circuit.SVG").read_text() == drawing.svg
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["circuit.pdf", "circuit"])
def test_another_suffix_is_refused(tmp_path, name):
    circuit = sample(GRAPHS["plain"], 5)
    with pytest.raises(ValueError, match=r"saved as \.html, \.svg, \.png or \.dot but the path is .*circuit"):
        draw(circuit, tmp_path / name)
    with pytest.raises(ValueError, match=r"saved as \.html, \.svg"):
        draw(circuit).save(tmp_path / name)


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "folder.svg").mkdir()
    for path in (tmp_path / "missing" / "circuit.svg", tmp_path / "folder.svg"):
        with pytest.raises(ValueError, match=f"{path} cannot be .*Give a path") as caught:
            draw(sample(GRAPHS["plain"], 5), path)
        assert caught.value.__suppress_context__
    assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]


def test_a_notebook_shows_the_page_in_a_frame_of_its_own():
    drawing = draw(sample(GRAPHS["plain"], 5), title="a & b")
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts" [^>]*></iframe>', drawing._repr_html_())
    assert frame and unescape(frame[1]) == drawing.html
