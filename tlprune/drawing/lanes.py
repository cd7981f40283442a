"""A circuit by span as panels side by side: one for each span, with the same rows, and what attention moves between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tlprune.drawing.contents import Contents
from tlprune.drawing.figure import Panel
from tlprune.drawing.layout import Layout, level
from tlprune.drawing.scene import Scene
from tlprune.spans import Spanned

HEADING = 30.0
NARROWEST, OVERLAP = 190.0, 72.0
"""The width of a panel at least, and how far panels share their margins, of which the first has the names of layers."""


def lanes(contents: Contents, *, top: float) -> tuple[tuple[Panel, ...], tuple[tuple[str, str], ...]]:
    """A panel for each span with a kept edge, and the pairs of boxes between which attention moves something.

    A head whose k or v (or whose q, k and v together) has an effective edge at one span and which has an effective edge
    out of it at another that attends there is joined by a curve from the first to the second.

    Args:
        contents: edges by span.
        top: free space above.
    """
    scenes = Scene.by_span(contents)
    whole = Scene.of(contents.without_spans())
    if not scenes:
        return (Panel(whole, Layout.of(whole, top=top)),), ()
    frame = Layout.of(whole, top=top + HEADING)
    levels = {level(row[0]): frame.boxes[row[0].name].y for row in whole.rows}
    return tuple(_placed(scenes, levels, frame.height)), tuple(dict.fromkeys(_moves(contents, whole, scenes)))


def _placed(scenes: Mapping[str, Scene], levels: Mapping[tuple[int, str], float], height: float) -> Iterator[Panel]:
    right = 0.0
    for span, scene in scenes.items():
        bare = Layout.of(scene, levels=levels, least=NARROWEST)
        layout = bare.shifted(right)
        boxes = layout.boxes.values()
        middle = (min(b.x - b.width / 2 for b in boxes) + max(b.x + b.width / 2 for b in boxes)) / 2
        right += bare.width
        yield Panel(scene, Layout(**{**vars(layout), "width": right, "height": height}), (f"@{span}", middle))
        right -= OVERLAP


def _moves(contents: Contents, whole: Scene, scenes: Mapping[str, Scene]) -> Iterator[tuple[str, str]]:
    edges, serves = contents.edges, {node.name: node.serves for node in whole.nodes}
    assert isinstance(edges, Spanned)
    for source, target in edges.flows.moves:
        if source != target and source in scenes and target in scenes:
            sent = {link.writer for link in scenes[target].links if link.effective}
            for link in scenes[source].links:
                reader = link.reader.partition("@")[0]
                if link.effective and reader.startswith("a") and link.parts != ("q",):
                    heads = (f"{head}@{target}" for head in serves[reader] or (reader,))
                    yield from ((link.reader, head) for head in heads if head in sent)
