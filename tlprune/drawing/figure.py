"""The figure itself: a scene and its layout as the text of one SVG."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import groupby

from tlprune.drawing.layout import Box, Layout
from tlprune.drawing.ports import port
from tlprune.drawing.routing import Curve, routes
from tlprune.drawing.scene import SEVERAL, Link, Node, Scene
from tlprune.drawing.style import FONT, dark_rules, paint

CROWDED = 400
"""Above this many links, strokes are thin and translucent."""

NAMES = {"several": "several parts", "idle": "not effective"}
FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
PARTS = ("q", "k", "v", "mlp", "logits", SEVERAL)


@dataclass(frozen=True)
class Figure:
    """Everything that one SVG shows.

    Attributes:
        scene: nodes and links.
        title: above the figure, or nothing.
        caption: below the figure.
        weighted: links carry weights, and their strokes show them.
    """

    scene: Scene
    title: str | None
    caption: str
    weighted: bool = False

    def svg(self) -> str:
        """The text of the SVG, in ASCII, with no reference to anything outside of it."""
        layout = Layout.of(self.scene, top=66.0 if self.title else 38.0)
        width, height, bundled = layout.width, layout.height + 26, " bundled" if self.scene.bundled else ""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" class="circuit{bundled}" '
                f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
                f'font-family="{FONT}" aria-label="{clean(self.title or "Circuit")}: {clean(self.caption)}">',
                f"<style>{dark_rules()}</style>",
                f'<rect {paint("ground")} width="{width:.0f}" height="{height:.0f}"/>',
                *self._heading(),
                *_bands(layout),
                *self._links(layout),
                *self._ties(layout),
                *self._nodes(layout),
                *self._notices(layout, height),
                "</svg>",
            ]
        )

    def _heading(self) -> Iterator[str]:
        y = 30
        if self.title:
            yield f'<text {paint("ink")} x="20" y="{y}" font-size="17" font-weight="600">{clean(self.title)}</text>'
            y += 28
        yield from _legend(self._parts_shown(), y)

    def _parts_shown(self) -> list[str]:
        parts = {link.part for link in self.scene.links if link.effective}
        idle = ["idle"] if any(not link.effective for link in self.scene.links) else []
        return [part for part in PARTS if part in parts] + idle

    def _links(self, layout: Layout) -> Iterator[str]:
        drawn = sorted(zip(self.scene.links, routes(self.scene, layout), strict=True), key=lambda pair: _depth(pair[0]))
        for part, group in groupby(drawn, key=lambda pair: _paint(pair[0])):
            dashes = ' stroke-dasharray="3 3"' if part == "part-idle" else ""
            yield f'<g {paint(part)} fill="none" stroke-linecap="round" stroke-opacity="{self._opacity}"{dashes}>'
            for link, path in group:
                yield self._link(link, path)
            yield "</g>"

    @property
    def _opacity(self) -> float:
        if self.scene.bundled:
            return 0.2
        return next((share for most, share in ((60, 0.9), (CROWDED, 0.75)) if len(self.scene.links) <= most), 0.45)

    def _link(self, link: Link, path: str) -> str:
        note = link.name if link.weight is None else f"{link.name}  {link.weight:+.3g}"
        return (
            f'<path class="edge" data-edge="{clean(link.name)}" data-from="{clean(link.writer)}" '
            f'data-to="{clean(link.reader)}" data-part="{link.part}" stroke-width="{self._stroke(link):.2f}" '
            f'd="{path}"><title>{clean(note)}</title></path>'
        )

    def _stroke(self, link: Link) -> float:
        scale = 1.0 if len(self.scene.links) <= CROWDED else 0.6
        if self.weighted:
            return scale * (0.5 + 4.5 * abs(link.weight or 0.0) / self._heaviest)
        if not link.effective:
            return 0.8 * scale
        return scale * (0.7 * len(link.parts) if self.scene.bundled else 1.6)

    @cached_property
    def _heaviest(self) -> float:
        return max((abs(link.weight or 0.0) for link in self.scene.links), default=0.0) or 1.0

    def _ties(self, layout: Layout) -> Iterator[str]:
        for node in self.scene.nodes:
            for head in node.serves:
                low, high = layout.boxes[node.name], layout.boxes[head]
                x, y = high.x + high.width * 0.24, high.bottom
                path = Curve([(low.x, low.top), (x, y)], 1 / 2).path()
                yield f'<path {paint("tie")} data-tie="{node.name}" data-head="{head}" fill="none" d="{path}"/>'

    def _nodes(self, layout: Layout) -> Iterator[str]:
        keyvalue = {head: node.name for node in self.scene.nodes for head in node.serves}
        for node in self.scene.nodes:
            shared = f' data-keyvalue="{keyvalue[node.name]}"' if node.name in keyvalue else ""
            yield f'<g class="node" data-node="{clean(node.name)}" tabindex="0"{shared}>'
            yield from _node(node, layout.boxes[node.name])
            yield "</g>"

    def _notices(self, layout: Layout, height: float) -> Iterator[str]:
        if not self.scene.links:
            first, last = layout.boxes[layout.rows[0][0]], layout.boxes["logits"]
            yield _text("soft", last.x, (first.y + last.y) / 2 + 4, "No edge is kept: this circuit is empty.", size=13)
        yield f'<text {paint("soft")} x="20" y="{height - 14:.0f}" font-size="12">{clean(self.caption)}</text>'


def clean(text: str) -> str:
    """Text as ASCII that XML and HTML read back as the same characters; those that XML forbids become a mark.

    Example:
        >>> clean('a0.h0->"m1" é')
        'a0.h0-&gt;&quot;m1&quot; &#233;'
    """
    return escape(FORBIDDEN.sub("\ufffd", text)).encode("ascii", "xmlcharrefreplace").decode()


def _paint(link: Link) -> str:
    return f"part-{link.part}" if link.effective else "part-idle"


def _depth(link: Link) -> tuple[bool, int]:
    return link.effective, -PARTS.index(link.part)


def _legend(parts: list[str], y: float) -> Iterator[str]:
    x = 20.0
    for part in parts:
        name = NAMES.get(part, part)
        dashes = ' stroke-dasharray="3 3"' if part == "idle" else ""
        yield (
            f'<g class="legend" data-toggle="{part}"><path {paint(f"part-{part}")} stroke-width="2.5"{dashes} '
            f'd="M{x:.0f} {y - 4:.0f}h22"/><text {paint("soft")} x="{x + 28:.0f}" y="{y:.0f}" font-size="12">{name}'
            f"</text></g>"
        )
        x += 28 + 6.3 * len(name) + 20


def _bands(layout: Layout) -> Iterator[str]:
    for layer, top, bottom in layout.bands:
        width, height = layout.width - 24, bottom - top
        yield f'<rect {paint("band")} x="12" y="{top:.1f}" width="{width:.0f}" height="{height:.1f}" rx="8"/>'
        yield f'<text {paint("soft")} x="24" y="{(top + bottom) / 2 + 4:.1f}" font-size="11">layer {layer}</text>'


def _node(node: Node, box: Box) -> Iterator[str]:
    look = {"mlp": "box-mlp", "embedding": "end", "logits": "end"}.get(node.kind, node.kind)
    look = look if node.effective else "faint"
    radius = {"head": 7.0, "keyvalue": 6.0}.get(node.kind, box.height / 2)
    dashes = "" if node.effective else ' stroke-dasharray="3 2"'
    yield (
        f'<rect {paint(look)} x="{box.x - box.width / 2:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" rx="{radius:.0f}" stroke-width="1.1"{dashes}/>'
    )
    ink = ("inverse" if look == "end" else "ink") if node.effective else "soft"
    size, lift = (9.0, 1.5) if node.kind == "keyvalue" else (11.5, 0.5 if node.ports else 4.0)
    yield _text(ink, box.x, box.y + lift - (2 if node.kind == "keyvalue" else 0), node.name, size=size)
    for part in node.ports:
        x, y = port(box, part, ports=node.ports)
        yield _text(f"mark-{part}" if node.effective else "soft", x, y - 3.0, part, size=8)


def _text(look: str, x: float, y: float, text: str, *, size: float) -> str:
    return f'<text {paint(look)} x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="middle">{clean(text)}</text>'
