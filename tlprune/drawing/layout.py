"""Where the boxes of a drawing stand: in rows from the embeddings up, and how large the picture is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tlprune.drawing.ordering import Lane, Ordering, width_of
from tlprune.drawing.scene import Node, Scene

HEIGHTS = {"embedding": 28.0, "keyvalue": 26.0, "head": 34.0, "mlp": 24.0, "logits": 28.0}
MARGIN_LEFT, MARGIN_RIGHT = 84.0, 40.0
LEAST_WIDTH = 680.0

Level = tuple[int, str]
"""A row of boxes, by its layer and kind."""


@dataclass(frozen=True)
class Box:
    """The place of a node: its centre and its size, in pixels; y grows downwards."""

    x: float
    y: float
    width: float
    height: float

    @property
    def top(self) -> float:
        """The y of its upper side."""
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        """The y of its lower side."""
        return self.y + self.height / 2


@dataclass(frozen=True)
class Layout:
    """Boxes of all nodes and the size of the picture that holds them.

    Attributes:
        boxes: by node name.
        lanes: the column of each link in each row that it passes; none when bundled.
        rows: node names from the embeddings up, each row from left to right.
        bands: for each drawn layer its index, top and bottom.
        width: of the picture.
        height: of the picture.
        lane: the space between two lanes.

    Example:
        >>> from tlprune.circuit import Circuit
        >>> from tlprune.graph import Architecture, Graph
        >>> graph = Graph(Architecture(n_layers=1, n_heads=2, n_kv_heads=2))
        >>> from tlprune.drawing.contents import Contents
        >>> circuit = Circuit.from_edges(graph, ["input->a0.h1<v>", "a0.h1->logits"])
        >>> layout = Layout.of(Scene.of(Contents.of(circuit)))
        >>> layout.boxes["logits"].y < layout.boxes["a0.h1"].y < layout.boxes["input"].y
        True
    """

    boxes: dict[str, Box]
    lanes: dict[Lane, float]
    rows: tuple[tuple[str, ...], ...]
    bands: tuple[tuple[int, float, float], ...]
    width: float
    height: float
    lane: float

    @staticmethod
    def of(
        scene: Scene, *, top: float = 0.0, levels: Mapping[Level, float] | None = None, least: float = LEAST_WIDTH
    ) -> Layout:
        """Place a scene below ``top`` pixels of free space, at least so wide.

        Args:
            scene: what to place.
            top: free space above.
            levels: the y of every row, by layer and kind, where it is decided elsewhere.
            least: how wide it is at least.
        """
        widths = _widths(scene)
        ordering = Ordering.of(scene, widths)
        columns = ordering.columns if scene.bundled else ordering.arrange()
        left = min(x - width_of(widths, item) / 2 for item, x in columns.items())
        right = max(x + width_of(widths, item) / 2 for item, x in columns.items())
        width = max(least, right - left + MARGIN_LEFT + MARGIN_RIGHT)
        middle = (MARGIN_LEFT + width - MARGIN_RIGHT) / 2 - (left + right) / 2
        heights, height = _heights(scene, top)
        heights = heights if levels is None else [levels[level(row[0])] for row in scene.rows]
        boxes = {
            node.name: Box(columns[node.name] + middle, y, widths[node.name], HEIGHTS[node.kind])
            for row, y in zip(scene.rows, heights, strict=True)
            for node in row
        }
        rows = tuple(tuple(item for item in row if isinstance(item, str)) for row in ordering.rows)
        lanes = {item: x + middle for item, x in columns.items() if isinstance(item, tuple)}
        return Layout(boxes, lanes, rows, _bands(scene, boxes), width, height, ordering.lane)

    def shifted(self, right: float) -> Layout:
        """The same some pixels farther right."""
        boxes = {name: replace(box, x=box.x + right) for name, box in self.boxes.items()}
        return replace(self, boxes=boxes, lanes={lane: x + right for lane, x in self.lanes.items()})


def level(node: Node) -> Level:
    """In which row a node stands."""
    return node.layer, node.kind


def _widths(scene: Scene) -> dict[str, float]:
    ends: dict[str, int] = defaultdict(int)
    for link in scene.links:
        ends[link.writer] += 1
        ends[link.reader] += 1
    longest = max((len(node.label) for node in scene.nodes if node.label not in ("embeddings", "pos_embed")), default=0)
    usual = 7.2 * longest + 14
    return {node.name: _width(node, usual, ends[node.name]) for node in scene.nodes}


def _width(node: Node, usual: float, ends: int) -> float:
    if node.kind in ("embedding", "logits"):
        return min(420.0, max(90.0, 24 + 4.0 * ends))
    return usual


def _heights(scene: Scene, top: float) -> tuple[list[float], float]:
    """The y of every row, and the y below the last."""
    roominess = 1 + min(0.6, len(scene.links) / 700)
    height, result, above = top + 18.0, [], scene.rows[-1][0]
    for row in reversed(scene.rows):
        node = row[0]
        if node is not above:
            height += (26.0 if node.layer == above.layer else 44.0 if scene.links else 90.0) * roominess
        height += HEIGHTS[node.kind]
        result.append(height - HEIGHTS[node.kind] / 2)
        above = node
    return result[::-1], height + 18.0


def _bands(scene: Scene, boxes: dict[str, Box]) -> tuple[tuple[int, float, float], ...]:
    spans: dict[int, list[Box]] = defaultdict(list)
    for node in scene.nodes:
        if node.kind not in ("embedding", "logits"):
            spans[node.layer].append(boxes[node.name])
    return tuple((layer, min(b.top for b in s) - 10, max(b.bottom for b in s) + 10) for layer, s in spans.items())
