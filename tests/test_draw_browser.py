"""Pages in a real browser: what the pointer, the keyboard, the slider and the colour scheme do, and nothing fetched.

Needs playwright and Debian's chromium; without them these tests are skipped, or fail where they are required.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_draw import GRAPHS, nodes, sample
from test_draw_spans import FLOW, SHARED
from test_draw_spans import sample as sample_by_span

import tlprune as tp
from tlprune.graph import Architecture, Graph
from tlprune.sites import Sites

Open = Callable[..., Any]
SMALL = Graph(Architecture(2, 2, 2))
SHOWN = "edges => edges.filter(e => getComputedStyle(e).display !== 'none').map(e => e.dataset.edge)"
HOT = "edges => edges.filter(e => e.classList.contains('hot')).map(e => e.dataset.edge)"
CLICK = "node => node.dispatchEvent(new MouseEvent('click', {bubbles: true, clientX: 5, clientY: 5}))"
ON_CURVE = (
    "e => { const m = e.getPointAtLength(e.getTotalLength() / 2).matrixTransform(e.getScreenCTM()); return [m.x, m.y] }"
)


def absent(reason: str) -> None:
    if os.environ.get("TLPRUNE_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("playwright is not installed")
        return
    if (chromium := shutil.which("chromium")) is None:
        absent("chromium is not installed")
        return
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a drawing; at the end no page may have complained or asked for anything but itself."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    faults: list[str] = []
    context.on("request", lambda request: faults.append(request.url) if request.url != address else None)
    context.on("weberror", lambda error: faults.append(str(error.error)))
    context.on("console", lambda message: faults.append(message.text))
    address = (tmp_path / "page.html").as_uri()

    def open_one(drawing: Any, *, scheme: str = "light") -> Any:
        drawing.save(tmp_path / "page.html")
        page = context.new_page()
        page.emulate_media(color_scheme=scheme)
        page.goto(address)
        return page

    yield open_one
    context.close()
    assert faults == []


def shown(page: Any) -> list[str]:
    return page.eval_on_selector_all(".edge", SHOWN)


def weighted(count: int) -> tuple[tp.Circuit, torch.Tensor]:
    circuit = sample(GRAPHS["plain"], count)
    weights = torch.randn(len(circuit.graph), generator=torch.Generator().manual_seed(3))
    weights[circuit.kept.nonzero()[:4]] = 0.125  # ties
    return circuit, weights


def test_boxes_and_curves_are_there_and_tell_their_names_and_scores(opened: Open) -> None:
    circuit, weights = weighted(30)
    drawing = tp.draw(circuit, weights=weights, title="Thirty edges")
    page = opened(drawing)
    assert page.title() == "Thirty edges"
    boxes = page.locator(".node")
    assert set(boxes.evaluate_all("nodes => nodes.map(n => n.dataset.node)")) == nodes(drawing)
    assert all(box.is_visible() for box in boxes.all())
    assert sorted(shown(page)) == sorted(circuit.edges)
    tip = page.locator("#tip")
    edge = circuit.edges[7]
    page.mouse.move(*page.locator(f'.edge[data-edge="{edge}"]').evaluate(ON_CURVE))
    assert tip.evaluate("tip => tip.classList.contains('on')")
    seen = str(tip.text_content())
    assert seen in {f"{name}  {weights[circuit.graph.index(name)]:+.3g}" for name in circuit.edges}
    assert page.eval_on_selector_all(".edge", HOT) == [seen.partition("  ")[0]]
    writer = edge.partition("->")[0]
    page.locator(f'[data-node="{writer}"]').hover()
    own = [name for name in circuit.edges if name.startswith(f"{writer}->")]
    assert tip.inner_text().startswith(writer) and f"read by ({len(own)})" in tip.inner_text()
    page.mouse.move(1, 850)
    assert not tip.evaluate("tip => tip.classList.contains('on')")


def test_the_slider_leaves_the_edges_of_large_weight_and_counts_them(opened: Open) -> None:
    circuit, weights = weighted(30)
    sizes = {name: abs(float(f"{weights[circuit.graph.index(name)]:.6g}")) for name in circuit.edges}
    page = opened(tp.draw(circuit, weights=weights))
    slider, counts = page.locator("#threshold"), []
    for place in range(int(str(slider.get_attribute("max"))) + 1):
        slider.fill(str(place))
        limit = sorted(sizes.values())[place]
        assert sorted(shown(page)) == sorted(name for name, size in sizes.items() if size >= limit)
        found = re.fullmatch(r"(\d+) of 30 edges(, \|weight\| ≥ \S+)?", page.locator("#count").inner_text())
        assert found and int(found[1]) == len(shown(page))
        counts.append(len(shown(page)))
    assert counts == sorted(counts, reverse=True) and counts[0] == 30 and counts[-1] == 1
    assert page.locator(".node.bare").count() == len(nodes(tp.draw(circuit))) - 2
    slider.focus()
    page.keyboard.press("Home")
    assert len(shown(page)) == 30
    assert opened(tp.draw(circuit)).locator("#threshold").count() == 0


def test_the_legend_hides_a_colour(opened: Open) -> None:
    page = opened(tp.draw(sample(SMALL, len(SMALL) // 2).effective))
    logits = {name for name in shown(page) if name.endswith("->logits")}
    everything = set(shown(page))
    page.locator('[data-toggle="logits"]').click()
    assert set(shown(page)) == everything - logits and len(everything - logits) > 3 < len(logits)
    assert page.locator("#count").inner_text() == f"{len(everything - logits)} of {len(everything)} edges"
    page.locator('[data-toggle="logits"]').press("Enter")
    assert set(shown(page)) == everything


def reached(circuit: tp.Circuit, start: str) -> set[str]:
    """Edges that lead to a box and that follow from it, walked name by name; keys and values move as the flow says."""
    names, (node, _, span) = circuit.edges, start.partition("@")
    read = [name for name in names if parts_of(name)[1::2] == (node, span)]
    sent = [name for name in names if _sends(name, node, span)]
    writes = [name for name in names if parts_of(name)[0] == node and parts_of(name)[3] == span]
    keyed = any(parts_of(name)[2] in ("k", "v") for name in read)
    after = [name for name in names if parts_of(name)[0] in served(node) and _goes(span, parts_of(name)[3], keyed)]
    arriving = {*read, *(name for name in sent if writes or parts_of(name)[3] == span)}
    before = {name for name in names if arriving & _following(names, [name])}
    return before | _following(names, after)


def _goes(span: str, other: str, keyed: bool) -> bool:
    return span == other or (keyed and (span, other) in FLOW.moves)


def _sends(name: str, node: str, span: str) -> bool:
    """Whether what an edge brings to a key or value is written by a head at a span."""
    _, reader, part, own = parts_of(name)
    return part in ("k", "v") and node in served(reader) and _goes(own, span, True)


def _following(names: list[str], first: list[str]) -> set[str]:
    met, waiting = set(), [*first]
    while waiting:
        if (name := waiting.pop()) not in met:
            met.add(name)
            _, reader, part, span = parts_of(name)
            waiting += [
                other
                for other in names
                if parts_of(other)[0] in served(reader) and _goes(span, parts_of(other)[3], part in ("k", "v"))
            ]
    return met


def parts_of(name: str) -> tuple[str, str, str, str]:
    """Writer, reader, its part and the span of an edge."""
    found = re.fullmatch(r"([^@]+)->([^<@]+)(?:<(\w)>)?(?:@(\w+))?", name)
    assert found
    return found[1], found[2], found[3] or "", found[4] or ""


def served(node: str) -> set[str]:
    """The heads that write what a box read."""
    layer, shared, index = node.partition(".kv")
    return {f"{layer}.h{2 * int(index) + i}" for i in (0, 1)} if shared else {node}


CIRCUITS = {
    "plain": lambda: sample(GRAPHS["plain"], 60),
    "shared keys and values": lambda: sample(GRAPHS["grouped"], 80),
    "by span": lambda: sample_by_span(SMALL, 50).effective,
    "by span, shared": lambda: sample_by_span(SHARED, 50).effective,
}


@pytest.mark.parametrize("name", CIRCUITS)
def test_a_click_shows_all_that_is_upstream_and_downstream(name: str, opened: Open) -> None:
    circuit = CIRCUITS[name]()
    drawing = tp.draw(circuit)
    page, sizes = opened(drawing), set()
    for start in sorted(nodes(drawing)):
        page.locator(f'[data-node="{start}"]').evaluate(CLICK)
        hot = page.eval_on_selector_all(".edge", HOT)
        assert set(hot) == reached(circuit, start), start
        joined = {end for edge in hot for end in ends_of(edge)} | {start}
        told = page.locator("#tip").inner_text()
        ways = [int(count) for count in re.findall(r"stream: \d+ nodes?, (\d+) edges?", told)]
        assert sum(ways) == len(hot), told
        assert page.locator("#tip.docked").is_visible()
        assert joined <= set(page.eval_on_selector_all(".node.hot", "all => all.map(n => n.dataset.node)"))
        sizes.add(len(hot))
        page.keyboard.press("Escape")
        assert not page.locator(".circuit.focus").count()
    assert len(sizes) > 3


def ends_of(edge: str) -> set[str]:
    writer, reader, _, span = parts_of(edge)
    return {f"{writer}@{span}", f"{reader}@{span}"} if span else {writer, reader}


def test_what_is_filtered_away_leads_nowhere(opened: Open) -> None:
    """``m1`` is read by the logits alone over an edge of small weight."""
    circuit = tp.Circuit.from_edges(GRAPHS["plain"], ["input->m0", "m0->m1", "m1->logits", "m0->logits"])
    weights = torch.zeros(len(circuit.graph))
    for name, value in (("input->m0", 3.0), ("m0->m1", -4.0), ("m1->logits", 0.5), ("m0->logits", 2.0)):
        weights[circuit.graph.index(name)] = value
    page = opened(tp.draw(circuit, weights=weights))
    page.locator('[data-node="m1"]').click()
    assert set(page.eval_on_selector_all(".edge", HOT)) == {"input->m0", "m0->m1", "m1->logits"}
    page.locator("#threshold").fill("1")
    assert set(page.eval_on_selector_all(".edge", HOT)) == {"input->m0", "m0->m1"}
    assert "downstream: 0 nodes, 0 edges" in page.locator("#tip").inner_text()


def test_the_keyboard_goes_from_box_to_box(opened: Open) -> None:
    edges = ["input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->m0", "a0.h1->m0", "m0->logits"]
    page = opened(tp.draw(tp.Circuit.from_edges(GRAPHS["plain"], edges)))
    focused = "document.activeElement.dataset.node"
    page.locator(".node").first.focus()
    assert page.evaluate(focused) == "input"
    seen = []
    for key in ("ArrowUp", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
        seen.append(page.evaluate(focused))
    assert ({seen[0], seen[1], seen[2]} == {"a0.h0", "a0.h1"} and seen[0] == seen[2] != seen[1]) or seen[0] == seen[1]
    assert seen[3:] == ["m0", "logits", "logits", "m0"]
    assert page.locator("#tip").inner_text().startswith("m0")
    page.keyboard.press("Enter")
    pinned = page.locator('[data-node="m0"]')
    assert pinned.get_attribute("aria-pressed") == "true" and pinned.get_attribute("role") == "button"
    assert pinned.get_attribute("aria-label") == "m0, reads 2, is read by 1"
    assert len(page.eval_on_selector_all(".edge", HOT)) == 5
    assert page.locator('.node[tabindex="0"]').count() == 1
    page.keyboard.press("Escape")
    assert pinned.get_attribute("aria-pressed") == "false"


COLOURS = """() => ['body', '.ground', '.head', '.edge'].map(name => {
  const style = getComputedStyle(document.querySelector(name));
  return [style.backgroundColor, style.fill, style.stroke];
})"""


def test_dark_and_light_by_the_screen_and_by_the_switch(opened: Open) -> None:
    drawing = tp.draw(tp.Circuit.from_edges(GRAPHS["plain"], ["input->a0.h1<v>", "a0.h1->logits"]))
    day, night = opened(drawing), opened(drawing, scheme="dark")
    light, dark = day.evaluate(COLOURS), night.evaluate(COLOURS)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert light[0][0] == "rgb(255, 255, 255)" and light[1][1] == "rgb(255, 255, 255)"
    for page, other, own in ((day, dark, light), (night, light, dark)):
        page.locator("#theme").click()
        assert page.evaluate(COLOURS) == other
        page.locator("#theme").click()
        assert page.evaluate(COLOURS) == own


def test_a_notebooks_frame_answers_too(opened: Open, browser: Any) -> None:
    drawing = tp.draw(sample(GRAPHS["plain"], 30))
    faults: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: faults.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.set_content(f"<p>A cell.</p>{drawing._repr_html_()}")
    inside = page.frame_locator("iframe")
    assert inside.locator("#count").inner_text() == "30 of 30 edges"
    inside.locator('[data-node="logits"]').click()
    assert inside.locator("#tip").inner_text().startswith("logits")
    inside.locator("#theme").click()
    page.close()
    assert [fault for fault in faults if not fault.startswith(("about:", "data:"))] == []


def test_a_graph_of_32491_edges_thinned_to_500_is_soon_there(opened: Open) -> None:
    """The browser's own count of its main thread's work, so that waiting for a busy machine is not in it."""
    graph = Graph(Architecture(12, 12, 12))
    assert len(graph) == 32_491
    scores = tp.Scores(Sites((graph,)), torch.randn(len(graph), generator=torch.Generator().manual_seed(0)))
    page = opened(tp.draw(scores, edges=500))
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    page.reload()
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < metrics["TaskDuration"] < 2
    assert len(shown(page)) == 500
    assert page.locator("#count").inner_text() == "500 of 500 edges"


def test_charts_tell_their_numbers(opened: Open) -> None:
    circuit = sample(GRAPHS["plain"], 60)
    page = opened(tp.draw_density(circuit, title="Density"), scheme="dark")
    queries = sum("->a1." in edge and edge.endswith("<q>") for edge in circuit.edges)
    page.locator(".mark", has_text="%").first.hover()
    assert page.locator("#tip").inner_text().startswith("logits, logits: ")
    told = page.locator(".mark").evaluate_all(
        """marks => marks.map(mark => {
          mark.dispatchEvent(new MouseEvent('mouseenter'));
          return document.getElementById('tip').innerText;
        })"""
    )
    assert f"layer 1, q: {queries} of 80 kept" in told
    line = {"kl_sampled": 0.25, "kl_hard": None, "expected_kept": 7.0, "total": 9}
    page = opened(tp.draw_training([{"step": 1, **line}, {"step": 2, **line}]))
    page.locator(".mark circle").first.hover()
    assert page.locator("#tip").inner_text() == "kl sampled\n1: 0.25"
