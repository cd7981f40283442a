"""Where the curves of a drawing begin and end: side by side on the top of a writer, at the port of a reader."""

from __future__ import annotations

from collections import defaultdict

from tlprune.drawing.layout import Box, Layout
from tlprune.drawing.scene import Scene

PORTS = {"q": -0.3, "k": 0.0, "v": 0.3}
STEP = 5.0

Point = tuple[float, float]


def port(box: Box, part: str, *, ports: tuple[str, ...]) -> Point:
    """Where a part of a head, or of a shared key/value node, has its place: on the lower side of the box.

    Example:
        >>> port(Box(100.0, 50.0, 60.0, 30.0), "q", ports=("q", "k", "v"))
        (82.0, 65.0)
    """
    if ports == ("k", "v"):
        return box.x + box.width * (-0.22 if part == "k" else 0.22), box.bottom
    return box.x + box.width * PORTS.get(part, 0.0), box.bottom


def starts(scene: Scene, layout: Layout) -> list[Point]:
    """Where every link leaves its writer: side by side on top, in the order of where they go next."""
    return _fan(scene, layout, upwards=True)


def ends(scene: Scene, layout: Layout) -> list[Point]:
    """Where every link enters its reader: at the port of its part, or anywhere below where there are no ports."""
    points = _fan(scene, layout, upwards=False)
    ports = {node.name: node.ports for node in scene.nodes}
    for index, link in enumerate(scene.links):
        if ports[link.reader] and not scene.bundled:
            box = layout.boxes[link.reader]
            x, y = port(box, link.part, ports=ports[link.reader])
            points[index] = x + (points[index][0] - box.x) * 0.16, y
    return points


def _fan(scene: Scene, layout: Layout, *, upwards: bool) -> list[Point]:
    members: dict[str, list[int]] = defaultdict(list)
    for index, link in enumerate(scene.links):
        members[link.writer if upwards else link.reader].append(index)
    levels = scene.levels
    points: list[Point] = [(0.0, 0.0)] * len(scene.links)
    for name, indices in members.items():
        box, level = layout.boxes[name], levels[name] + (1 if upwards else -1)
        indices.sort(key=lambda index: (_next(scene, layout, index, level, upwards), scene.links[index].part))
        step = min(STEP, (box.width - 18) / max(1, len(indices) - 1))
        for place, index in enumerate(indices):
            points[index] = box.x + (place - (len(indices) - 1) / 2) * step, box.top if upwards else box.bottom
    return points


def _next(scene: Scene, layout: Layout, index: int, level: int, upwards: bool) -> float:
    """The column to which a link goes from a box: its lane in the neighbouring row, or the box at its other end."""
    link = scene.links[index]
    return layout.lanes.get((index, level), layout.boxes[link.reader if upwards else link.writer].x)
