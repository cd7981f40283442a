"""The order and the columns of a drawing: rows of boxes, and a lane in every row for each link that passes it.

Layers, lanes as placeholder nodes and barycentre sweeps after Sugiyama, Tagawa and Toda (1981).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tlprune.drawing.scene import Scene

BOX_GAP, MIXED_GAP = 28.0, 9.0
WIDEST_LANE, LANES_WIDTH = 3.5, 700.0
"""The space between two lanes, and the width that all lanes of a row may take together."""

TIE_PULL, LANE_PULL, IDLE_PULL, MIDDLE_PULL = 4.0, 3.0, 0.3, 0.1
SETTLING = 30
WORK = 150_000
"""Placements that one drawing may cost, so that large ones stay fast."""

Lane = tuple[int, int]
"""A link, by its place in the scene, in a row that it passes."""

Item = str | Lane
Columns = dict[Item, float]
Neighbours = list[tuple[Item, float]]


@dataclass
class Ordering:
    """Rows of items while they are being arranged.

    Attributes:
        rows: from the embeddings up; each from left to right.
        below: for every item its neighbours in the row below, with the strength of their pull.
        above: the same for the row above.
        widths: of the boxes; lanes have none.
        columns: where every item stands.
        lane: the space between two lanes.
    """

    rows: list[list[Item]]
    below: Mapping[Item, Neighbours]
    above: Mapping[Item, Neighbours]
    widths: Mapping[str, float]
    columns: Columns
    lane: float = WIDEST_LANE

    @staticmethod
    def of(scene: Scene, widths: Mapping[str, float]) -> Ordering:
        """The order by name, before any sweep; bundled scenes have no lanes."""
        rows: list[list[Item]] = [[node.name for node in row] for row in scene.rows]
        below: dict[Item, Neighbours] = defaultdict(list)
        above: dict[Item, Neighbours] = defaultdict(list)
        for low, high, pull in () if scene.bundled else _pieces(scene):
            below[high].append((low, pull))
            above[low].append((high, pull))
            if isinstance(high, tuple):
                rows[high[1]].append(high)
        crowd = max(sum(isinstance(item, tuple) for item in row) for row in rows)
        ordering = Ordering(rows, below, above, widths, {}, min(WIDEST_LANE, LANES_WIDTH / max(1, crowd)))
        for row in rows:
            ordering._place(row, {item: float(place) for place, item in enumerate(row)})
        return ordering

    def arrange(self) -> Columns:
        """Sweep up and down, keep the order with the fewest crossings, and let it settle."""
        rounds = WORK // sum(map(len, self.rows))
        best, fewest = [list(row) for row in self.rows], self.crossings()
        for sweep in range(min(SETTLING, max(4, rounds // 2))):
            self._sweep(upwards=sweep % 2 == 0)
            if (crossings := self.crossings()) < fewest:
                best, fewest = [list(row) for row in self.rows], crossings
        self.rows = best
        for step in range(min(SETTLING, max(4, rounds // 2))):
            for row in self.rows if step % 2 else self.rows[::-1]:
                self._place(row, {item: self._centre(self.below[item] + self.above[item]) for item in row})
        return self.columns

    def crossings(self) -> int:
        """Pairs of pieces between neighbouring rows that cross."""
        total = 0
        for row, following in zip(self.rows, self.rows[1:], strict=False):
            place = {item: number for number, item in enumerate(following)}
            seen: list[int] = []
            for item in row:
                arrivals = [place[other] for other, _ in self.above[item]]
                total += sum(len(seen) - bisect_right(seen, arrival) for arrival in arrivals)
                for arrival in arrivals:
                    insort(seen, arrival)
        return total

    def _sweep(self, *, upwards: bool) -> None:
        pulls = self.below if upwards else self.above
        for row in self.rows if upwards else reversed(self.rows):
            wanted = {item: self._centre(pulls[item]) for item in row}
            row.sort(key=lambda item: (wanted[item], self.columns[item]))
            self._place(row, wanted)

    def _centre(self, pulls: Neighbours) -> float:
        """Where its neighbours pull it; a weak pull to the middle keeps unconnected pieces together."""
        total = MIDDLE_PULL + sum(pull for _, pull in pulls)
        return sum(self.columns[other] * pull for other, pull in pulls) / total

    def _place(self, row: list[Item], wanted: Columns) -> None:
        """The columns nearest to the wanted ones that keep order and distances: least squares, pooling neighbours."""
        offsets = [0.0]
        for left, right in zip(row, row[1:], strict=False):
            offsets.append(offsets[-1] + self._distance(left, right))
        pools: list[tuple[float, int]] = []
        for item, offset in zip(row, offsets, strict=True):
            mean, count = wanted[item] - offset, 1
            while pools and pools[-1][0] >= mean:
                before, others = pools.pop()
                mean, count = (mean * count + before * others) / (count + others), count + others
            pools.append((mean, count))
        bases = [mean for mean, count in pools for _ in range(count)]
        self.columns.update((item, base + offset) for item, base, offset in zip(row, bases, offsets, strict=True))

    def _distance(self, left: Item, right: Item) -> float:
        lanes = isinstance(left, tuple) + isinstance(right, tuple)
        return (BOX_GAP, MIXED_GAP, self.lane)[lanes] + (width_of(self.widths, left) + width_of(self.widths, right)) / 2


def width_of(widths: Mapping[str, float], item: Item) -> float:
    """Width of a box; the lane of a passing link has none."""
    return widths.get(item, 0.0) if isinstance(item, str) else 0.0


def _pieces(scene: Scene) -> Iterator[tuple[Item, Item, float]]:
    """Every link cut at the rows that it passes, and the ties of shared key/value nodes: low end, high end, pull."""
    level = scene.levels
    for index, link in enumerate(scene.links):
        lanes = [(index, row) for row in range(level[link.writer] + 1, level[link.reader])]
        stops: list[Item] = [link.writer, *lanes, link.reader]
        strength = 1.0 if link.effective else IDLE_PULL
        for low, high in zip(stops, stops[1:], strict=False):
            yield low, high, strength * (LANE_PULL if isinstance(low, tuple) and isinstance(high, tuple) else 1.0)
    yield from ((node.name, head, TIE_PULL) for node in scene.nodes for head in node.serves)
