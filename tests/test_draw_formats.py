"""Drawings for other programs: Graphviz' text, read back by a parser of it, and pixels."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_draw import GRAPHS, sample
from test_draw_spans import SHARED, moves
from test_draw_spans import sample as sample_by_span

import tlprune as tp
from tlprune.drawing import raster
from tlprune.drawing.dot import quoted
from tlprune.drawing.style import COLOURS

EDGE = re.compile(r'^  "((?:[^"\\]|\\.)*)" -> "((?:[^"\\]|\\.)*)" \[(.*)\];$', re.MULTILINE)


def attributes(text: str) -> dict[str, str]:
    return {name: value.strip('"') for name, value in re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^,]+)', text)}


def edges_of(text: str) -> list[tuple[str, str, dict[str, str]]]:
    return [(found[1], found[2], attributes(found[3])) for found in EDGE.finditer(text)]


def named(text: str) -> list[str]:
    """Edge names, put together from ends and parts."""
    found = []
    for writer, reader, known in edges_of(text):
        if "part" in known:
            node, at, span = reader.partition("@")
            part = "" if known["part"] in ("mlp", "logits") else f"<{known['part']}>"
            found.append(f"{writer.partition('@')[0]}->{node}{part}{at}{span}")
    return sorted(found)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_text_for_graphviz_has_every_edge_with_its_part_colour_and_score(name: str, tmp_path: Path) -> None:
    circuit = sample(GRAPHS[name], 60)
    weights = torch.randn(len(circuit.graph), generator=torch.Generator().manual_seed(0))
    drawing = tp.draw(circuit, tmp_path / "circuit.dot", weights=weights, title='a "b" \\ c')
    assert (tmp_path / "circuit.dot").read_text() == drawing.dot
    text = str(drawing.dot)
    assert text.isascii() and named(text) == sorted(circuit.edges)
    effective = set(circuit.effective.edges)
    for _, _, known in edges_of(text):
        if "part" in known:
            edge = known["tooltip"]
            assert float(known["score"]) == pytest.approx(float(weights[circuit.graph.index(edge)]), rel=1e-4)
            assert known["color"] == COLOURS[known["part"] if edge in effective else "idle"][0]
            assert ("style" in known) == (edge not in effective)


def test_ties_are_no_edges_and_overlays_say_whose_an_edge_is() -> None:
    circuit = sample_by_span(SHARED, 60)
    drawing = tp.draw(circuit)
    text = str(drawing.dot)
    assert named(text) == sorted(circuit.edges)
    ties = {(a, b) for a, b, known in edges_of(text) if known.get("class") == "tie"}
    across = {(a, b) for a, b in ties if a.partition("@")[2] != b.partition("@")[2]}
    assert across == moves(drawing) != set()
    first, second = sample(GRAPHS["plain"], 20, seed=1), sample(GRAPHS["plain"], 20, seed=2)
    whose = {known["tooltip"]: known["circuit"] for _, _, known in edges_of(str(tp.draw_overlay(first, second).dot))}
    assert {name for name, owner in whose.items() if owner == "first"} == set((first - second).edges)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the parser's own parts
def test_graphviz_text_is_read_by_another_program() -> None:
    pydot = pytest.importorskip("pydot", reason="pydot is not installed")
    circuit = sample(GRAPHS["grouped"], 60)
    (graph,) = pydot.graph_from_dot_data(str(tp.draw(circuit, title='a "b" \\ c\nd').dot))
    read = [edge for edge in graph.get_edges() if edge.get("part")]
    assert sorted(edge.get("tooltip").strip('"') for edge in read) == sorted(circuit.edges)
    ends = {name.partition("<")[0] for edge in circuit.edges for name in edge.split("->")}
    inner = {node.get_name().strip('"') for row in graph.get_subgraphs() for node in row.get_nodes()}
    assert inner == ends | {"input", "logits"}


@pytest.mark.parametrize("text", ['"', "\\", "a\nb", "\\n", "é 字"])
def test_strings_for_graphviz_end_where_they_should(text: str) -> None:
    assert re.fullmatch(r'"(?:[^"\\\n]|\\.)*"', quoted(text)) and quoted(text).isascii()


# ---- pixels


@pytest.fixture
def resvg() -> Any:
    return pytest.importorskip("resvg_py", reason="resvg_py is not installed")


def test_pixels_are_of_the_figures_size_and_show_it(resvg: Any, tmp_path: Path) -> None:
    circuit = sample(GRAPHS["plain"], 20)
    drawing = tp.draw(circuit, tmp_path / "circuit.png", title="Copying")
    data = (tmp_path / "circuit.png").read_bytes()
    width, height = (int(re.search(rf' {side}="(\d+)"', drawing.svg)[1]) for side in ("width", "height"))  # type: ignore[index]
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (2 * width, 2 * height)
    assert struct.unpack(">II", drawing.png(zoom=1)[16:24]) == (width, height)
    assert (
        drawing.png() == data != tp.draw(circuit, title="Copyinh").png() != tp.draw(sample(GRAPHS["plain"], 21)).png()
    )


def test_pixels_without_a_font_are_refused(resvg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any font resvg leaves words out in silence."""
    real = resvg.svg_to_bytes
    bare = {"skip_system_fonts": True, "font_dirs": []}
    monkeypatch.setattr(resvg, "svg_to_bytes", lambda **options: real(**{**options, **bare}))
    raster._has_words.cache_clear()
    try:
        with pytest.raises(ValueError, match="needs a font for its words but"):
            tp.draw(sample(GRAPHS["plain"], 5)).png()
    finally:
        raster._has_words.cache_clear()


def test_without_resvg_there_is_one_clear_error_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    raster._has_words.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="pip install resvg_py, or save"):
        tp.draw(sample(GRAPHS["plain"], 5), tmp_path / "circuit.png")
    assert not any(tmp_path.iterdir())
