"""The curves of a drawing: from a writer up to a reader, around the boxes between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tlprune.drawing.layout import Box, Layout
from tlprune.drawing.ports import Point, ends, starts
from tlprune.drawing.scene import Scene

CLEARANCE = 7.0
TIGHTENINGS = 8
MOST_LANES = 20_000
"""Above this many, curves follow their lanes."""


@dataclass(frozen=True)
class Gap:
    """The free space between two boxes of a row."""

    left: float
    right: float

    def nearest(self, x: float) -> float:
        """The place inside that is nearest to another one."""
        return min(max(x, self.left), self.right)

    def outside(self, *xs: float) -> float:
        """How far the farthest of some places lies outside."""
        return max(abs(self.nearest(x) - x) for x in xs)


@dataclass(frozen=True)
class Row:
    """A row of boxes as an obstacle."""

    top: float
    bottom: float
    gaps: tuple[Gap, ...]

    @staticmethod
    def of(boxes: Sequence[Box]) -> Row:
        """A row of boxes from left to right."""
        lefts = [-1e6, *(box.x + box.width / 2 + CLEARANCE for box in boxes)]
        rights = [*(box.x - box.width / 2 - CLEARANCE for box in boxes), 1e6]
        gaps = tuple(Gap(left, max(left, right)) for left, right in zip(lefts, rights, strict=True))
        return Row(min(box.top for box in boxes), max(box.bottom for box in boxes), gaps)

    def gap(self, x: float) -> Gap:
        """The gap that is nearest to a place."""
        return min(self.gaps, key=lambda gap: gap.outside(x))


@dataclass(frozen=True)
class Passage:
    """A curve's way through one gap: where it enters from below and where it leaves above."""

    row: Row
    gap: Gap
    low: float
    high: float

    @property
    def points(self) -> list[Point]:
        """Below the row and above it."""
        return [(self.low, self.row.bottom), (self.high, self.row.top)]

    def moved(self, low: float, high: float) -> Passage:
        """As near to other places as the gap allows."""
        return replace(self, low=self.gap.nearest(low), high=self.gap.nearest(high))


@dataclass
class Route:
    """One curve, with a passage for every row where the smooth way would meet a box.

    Attributes:
        start: on top of the writer.
        end: below the reader.
        lanes: its column in every row between, which decides the gap that it takes there.
        passages: by row; rows that it crosses freely have none.
    """

    start: Point
    end: Point
    lanes: dict[int, float] = field(default_factory=dict)
    passages: dict[int, Passage] = field(default_factory=dict)

    @property
    def points(self) -> list[Point]:
        """From the start up to the end."""
        return [self.start, *(p for level in sorted(self.passages) for p in self.passages[level].points), self.end]

    def avoid(self, rows: Sequence[Row]) -> None:
        """Add passages, the worst collision first, until the curve meets no box."""
        while open_rows := [level for level in self.lanes if level not in self.passages]:
            curve = Curve(self.points)
            found = {level: _passage(rows[level], curve, self.lanes[level]) for level in open_rows}
            level = max(open_rows, key=lambda level: found[level][0])
            if found[level][0] <= 0.5:
                break
            self.passages[level] = found[level][1]
            self._tighten()

    def follow(self, rows: Sequence[Row]) -> None:
        """Pass every row in its lane: quick, but less smooth than :meth:`avoid`."""
        for level, lane in self.lanes.items():
            gap = rows[level].gap(lane)
            self.passages[level] = Passage(rows[level], gap, gap.nearest(lane), gap.nearest(lane))

    def _tighten(self) -> None:
        """Pull the passages towards the straight lines between their neighbours, as far as the gaps allow."""
        levels = sorted(self.passages)
        for _ in range(TIGHTENINGS if len(levels) > 1 else 1):
            for level in levels:
                points, place = self.points, 1 + 2 * levels.index(level)
                before, after = points[place - 1], points[place + 2]
                slope = (after[0] - before[0]) / (after[1] - before[1])
                low, high = (before[0] + slope * (y - before[1]) for _, y in points[place : place + 2])
                self.passages[level] = self.passages[level].moved(low, high)


@dataclass(frozen=True)
class Curve:
    """A smooth curve through points of falling y, vertical at both ends and without overshoot.

    Attributes:
        points: where it passes.
        handle: a third makes x a cubic of y; more makes a single piece leave and arrive more upright.
    """

    points: Sequence[Point]
    handle: float = 1 / 3

    def slopes(self) -> list[float]:
        """Of x over y at every point."""
        return [0.0, *map(_bend, self.points, self.points[1:], self.points[2:]), 0.0]

    def at(self, *heights: float) -> list[float]:
        """The x of the curve at some y, for handles of a third."""
        slopes = self.slopes()
        return [self._at(height, slopes) for height in heights]

    def _at(self, height: float, slopes: list[float]) -> float:
        piece = next(i for i, (_, y) in enumerate(self.points[1:]) if height >= y)
        (x, y), (to_x, to_y) = self.points[piece : piece + 2]
        step, t = to_y - y, (height - y) / (to_y - y)
        enter, leave = x + slopes[piece] * step / 3, to_x - slopes[piece + 1] * step / 3
        return (1 - t) ** 3 * x + 3 * (1 - t) ** 2 * t * enter + 3 * (1 - t) * t**2 * leave + t**3 * to_x

    def path(self) -> str:
        """The curve as SVG path data.

        Example:
            >>> Curve([(0.0, 30.0), (9.0, 0.0)], handle=1 / 2).path()
            'M0.0 30.0C0.0 15.0 9.0 15.0 9.0 0.0'
        """
        slopes = self.slopes()
        result = [f"M{self.points[0][0]:.1f} {self.points[0][1]:.1f}"]
        for i, ((x, y), (to_x, to_y)) in enumerate(zip(self.points, self.points[1:], strict=False)):
            reach = (to_y - y) * self.handle
            enter, leave = x + slopes[i] * reach, to_x - slopes[i + 1] * reach
            result.append(f"C{enter:.1f} {y + reach:.1f} {leave:.1f} {to_y - reach:.1f} {to_x:.1f} {to_y:.1f}")
        return "".join(result)


def routes(scene: Scene, layout: Layout) -> list[str]:
    """An SVG path for every link of the scene, in its order.

    Curves go through the gaps between boxes; those of a bundled scene go straight, behind the boxes.
    """
    found = [Route(start, end) for start, end in zip(starts(scene, layout), ends(scene, layout), strict=True)]
    for (index, level), column in layout.lanes.items():
        found[index].lanes[level] = column
    rows = [Row.of([layout.boxes[name] for name in row]) for row in layout.rows]
    for route in found:
        if len(layout.lanes) <= MOST_LANES:
            route.avoid(rows)
        else:
            route.follow(rows)
    _take_lanes(found, layout.lane)
    return [Curve(route.points, 1 / 3 if route.lanes else 1 / 2).path() for route in found]


def _passage(row: Row, curve: Curve, lane: float) -> tuple[float, Passage]:
    """How far a curve lies outside the gap of its lane in a row, and the passage that would mend it."""
    low, high = curve.at(row.bottom, row.top)
    gap = row.gap(lane)
    return gap.outside(low, high), Passage(row, gap, gap.nearest(low), gap.nearest(high))


def _take_lanes(found: list[Route], lane: float) -> None:
    """Lay the curves that share a gap side by side."""
    sharing: dict[tuple[int, float], list[Route]] = defaultdict(list)
    for route in found:
        for level, passage in route.passages.items():
            sharing[level, passage.gap.left].append(route)
    for (level, _), together in sharing.items():
        together.sort(key=lambda route: _rank(route, level))
        middles = [(r.passages[level].low + r.passages[level].high) / 2 for r in together]
        places = _apart(middles, together[0].passages[level].gap, lane)
        for route, old, new in zip(together, middles, places, strict=True):
            passage = route.passages[level]
            route.passages[level] = passage.moved(passage.low + new - old, passage.high + new - old)


def _rank(route: Route, level: int) -> tuple[float, float]:
    return round(route.passages[level].low + route.passages[level].high), route.lanes[level]


def _apart(middles: list[float], gap: Gap, lane: float) -> list[float]:
    """Ordered places at least a lane apart, as far as the gap has room."""
    lane = min(lane, (gap.right - gap.left) / max(1, len(middles) - 1))
    last = len(middles) - 1
    placed: list[float] = []
    for place, middle in enumerate(middles):
        least = placed[-1] + lane if placed else -1e9
        placed.append(min(max(middle, gap.left + place * lane, least), gap.right - (last - place) * lane))
    return placed


def _bend(before: Point, at: Point, after: Point) -> float:
    """Harmonic mean of the slopes on both sides, or zero at a turn: keeps every piece monotone."""
    here = (at[0] - before[0]) / (at[1] - before[1])
    following = (after[0] - at[0]) / (after[1] - at[1])
    return 2 * here * following / (here + following) if here * following > 0 else 0.0
