"""The figure itself: a scene and its layout as the text of one SVG."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from itertools import groupby

from tlprune.drawing.contents import OWNERS
from tlprune.drawing.layout import Box, Layout
from tlprune.drawing.ports import port
from tlprune.drawing.routing import Curve, routes
from tlprune.drawing.scene import IDLE, SEVERAL, Link, Node, Scene
from tlprune.drawing.style import FONT, dark_rules, paint

CROWDED = 400
"""Above this many links, strokes are thin and translucent."""

NAMES = {SEVERAL: "several parts", IDLE: "not effective"}
ONE_ALONE = ("first", "second")
FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LOOKS = ("q", "k", "v", "mlp", "logits", SEVERAL, "first", "both", "second", IDLE)


@dataclass(frozen=True)
class Panel:
    """A scene at its place in a figure.

    Attributes:
        scene: nodes and links.
        layout: where they are.
        heading: its name and its middle, where there are several.
    """

    scene: Scene
    layout: Layout
    heading: tuple[str, float] | None = None


@dataclass(frozen=True)
class Figure:
    """Everything that one SVG shows.

    Attributes:
        panels: side by side, with rows of one height.
        title: above the figure, or nothing.
        caption: below the figure.
        weighted: links carry weights, and their strokes show them.
        moves: pairs of boxes in two panels: attention carries what the first reads to the second.
        names: how the legend calls the colours, where not by themselves.
    """

    panels: tuple[Panel, ...]
    title: str | None
    caption: str
    weighted: bool = False
    moves: tuple[tuple[str, str], ...] = ()
    names: Mapping[str, str] = field(default_factory=lambda: NAMES)

    @cached_property
    def links(self) -> list[Link]:
        """Those of all panels."""
        return [link for panel in self.panels for link in panel.scene.links]

    @property
    def _bundled(self) -> bool:
        return self.panels[0].scene.bundled

    def svg(self) -> str:
        """The text of the SVG, in ASCII, with no reference to anything outside of it."""
        layouts = [panel.layout for panel in self.panels]
        width, height = max(own.width for own in layouts), max(own.height for own in layouts) + 26
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" class="circuit{" bundled" * self._bundled}" '
                f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
                f'font-family="{FONT}" aria-label="{clean(self.title or "Circuit")}: {clean(self.caption)}">',
                f"<style>{dark_rules()}</style>",
                f'<rect {paint("ground")} width="{width:.0f}" height="{height:.0f}"/>',
                *self._heading(),
                *_bands(layouts, width),
                *self._headings(),
                *self._movements(),
                *(line for panel in self.panels for line in self._panel(panel)),
                *self._notices(height),
                "</svg>",
            ]
        )

    def _panel(self, panel: Panel) -> Iterator[str]:
        yield from self._links(panel)
        yield from self._ties(panel)
        yield from self._nodes(panel)

    def _headings(self) -> Iterator[str]:
        top = min(box.top for panel in self.panels for box in panel.layout.boxes.values())
        for name, x in (panel.heading for panel in self.panels if panel.heading):
            yield _text("ink", x, top - 14, name, size=13)

    def _movements(self) -> Iterator[str]:
        boxes = {name: box for panel in self.panels for name, box in panel.layout.boxes.items()}
        for source, target in self.moves:
            a, b = boxes[source], boxes[target]
            lift = 22 + 0.02 * abs(a.x - b.x)
            first, second = f"{a.x:.1f} {a.top - lift:.1f}", f"{b.x:.1f} {b.top - lift:.1f}"
            path = f"M{a.x:.1f} {a.top:.1f}C{first} {second} {b.x:.1f} {b.top:.1f}"
            yield f'{_tie(source, target)} stroke-dasharray="2 3" stroke-width="1.4" d="{path}"/>'

    def _heading(self) -> Iterator[str]:
        y = 30
        if self.title:
            yield f'<text {paint("ink")} x="20" y="{y}" font-size="17" font-weight="600">{clean(self.title)}</text>'
            y += 28
        shown = {link.look for link in self.links} | {look for look in self.names if look not in NAMES}
        looks = {look: self._called(look) for look in LOOKS if look in shown}
        yield from _legend(looks, y, moves=bool(self.moves))

    def _called(self, look: str) -> str:
        """Its name in the legend, with how many edges are its own where it is whose they are."""
        name = self.names.get(look, look)
        own = sum(len(link.parts) for link in self.links if link.owner == look)
        return f"{name} ({own:,})" if look in OWNERS else name

    def _links(self, panel: Panel) -> Iterator[str]:
        curves = zip(panel.scene.links, routes(panel.scene, panel.layout), strict=True)
        drawn = sorted(curves, key=lambda pair: _depth(pair[0]))
        for (look, effective), group in groupby(drawn, key=lambda pair: (pair[0].look, pair[0].effective)):
            dashes = "" if effective else ' stroke-dasharray="3 3"'
            yield (
                f'<g {paint(f"part-{look}")} data-look="{look}" fill="none" stroke-linecap="round" '
                f'stroke-opacity="{self._opacity}"{dashes}>'
            )
            for link, path in group:
                yield self._link(link, path)
            yield "</g>"

    @property
    def _opacity(self) -> float:
        if self._bundled:
            return 0.2
        return next((share for most, share in ((60, 0.9), (CROWDED, 0.75)) if len(self.links) <= most), 0.45)

    def _link(self, link: Link, path: str) -> str:
        note = link.name if link.weight is None else f"{link.name}  {link.weight:+.3g}"
        note += f"  {self.names[link.owner]}" if link.owner else ""
        known = "" if link.weight is None else f' data-weight="{link.weight:.6g}"'
        known += f' data-count="{len(link.parts)}"' if len(link.parts) > 1 else ""
        return (
            f'<path class="edge" data-edge="{clean(link.name)}" data-from="{clean(link.writer)}" '
            f'data-to="{clean(link.reader)}" data-part="{link.part}"{known} stroke-width="{self.stroke(link):.2f}" '
            f'd="{path}"><title>{clean(note)}</title></path>'
        )

    def stroke(self, link: Link) -> float:
        """How wide a link is drawn, in pixels."""
        scale = 1.0 if len(self.links) <= CROWDED else 0.6
        if self.weighted:
            return scale * (0.5 + 4.5 * abs(link.weight or 0.0) / self._heaviest)
        if not link.effective:
            return 0.8 * scale
        return scale * (0.7 * len(link.parts) if self._bundled else 1.6)

    @cached_property
    def _heaviest(self) -> float:
        return max((abs(link.weight or 0.0) for link in self.links), default=0.0) or 1.0

    def _ties(self, panel: Panel) -> Iterator[str]:
        for node in panel.scene.nodes:
            for head in node.serves:
                low, high = panel.layout.boxes[node.name], panel.layout.boxes[head]
                x, y = high.x + high.width * 0.24, high.bottom
                path = Curve([(low.x, low.top), (x, y)], 1 / 2).path()
                yield f'{_tie(node.name, head)} d="{path}"/>'

    def _nodes(self, panel: Panel) -> Iterator[str]:
        keyvalue = {head: node.name for node in panel.scene.nodes for head in node.serves}
        for node in panel.scene.nodes:
            shared = f' data-keyvalue="{clean(keyvalue[node.name])}"' if node.name in keyvalue else ""
            yield f'<g class="node" data-node="{clean(node.name)}" tabindex="0"{shared}>'
            yield from _node(node, panel.layout.boxes[node.name], self._owners.get(node.name))
            yield "</g>"

    @cached_property
    def _owners(self) -> dict[str, str]:
        """The one circuit of two that alone uses a node."""
        users: dict[str, set[str | None]] = {}
        for link in self.links:
            for name in (link.writer, link.reader):
                users.setdefault(name, set()).add(link.owner)
        return {name: owner for name, own in users.items() if len(own) == 1 for owner in own if owner in ONE_ALONE}

    def _notices(self, height: float) -> Iterator[str]:
        if not self.links:
            layout = self.panels[0].layout
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


def _tie(node: str, head: str) -> str:
    """The beginning of a curve that is no edge, between two boxes."""
    return f'<path {paint("tie")} data-tie="{clean(node)}" data-head="{clean(head)}" fill="none"'


def _depth(link: Link) -> tuple[bool, int]:
    return link.effective, -LOOKS.index(link.look)


def _legend(looks: Mapping[str, str], y: float, *, moves: bool) -> Iterator[str]:
    x = 20.0
    for look, name in looks.items():
        dashes = ' stroke-dasharray="3 3"' if look == IDLE else ""
        yield (
            f'<g class="legend" data-toggle="{look}"><path {paint(f"part-{look}")} stroke-width="2.5"{dashes} '
            f'd="M{x:.0f} {y - 4:.0f}h22"/><text {paint("soft")} x="{x + 28:.0f}" y="{y:.0f}" font-size="12">'
            f"{clean(name)}</text></g>"
        )
        x += 28 + 6.3 * len(name) + 20
    if moves:
        yield f'<path {paint("tie")} stroke-width="1.4" stroke-dasharray="2 3" d="M{x:.0f} {y - 4:.0f}h22"/>'
        yield f'<text {paint("soft")} x="{x + 28:.0f}" y="{y:.0f}" font-size="12">attention to another span</text>'


def _bands(layouts: list[Layout], width: float) -> Iterator[str]:
    """A band behind each layer, as high as it is in any panel."""
    ends: dict[int, list[tuple[float, float]]] = {}
    for layer, top, bottom in (band for layout in layouts for band in layout.bands):
        ends.setdefault(layer, []).append((top, bottom))
    for layer, own in ends.items():
        top, bottom = min(low for low, _ in own), max(high for _, high in own)
        height = bottom - top
        yield f'<rect {paint("band")} x="12" y="{top:.1f}" width="{width - 24:.0f}" height="{height:.1f}" rx="8"/>'
        yield f'<text {paint("soft")} x="24" y="{(top + bottom) / 2 + 4:.1f}" font-size="11">layer {layer}</text>'


def _node(node: Node, box: Box, owner: str | None) -> Iterator[str]:
    look = {"mlp": "box-mlp", "embedding": "end", "logits": "end"}.get(node.kind, node.kind)
    look = f"only-{owner}" if owner and look != "end" else look if node.effective else "faint"
    radius = {"head": 7.0, "keyvalue": 6.0}.get(node.kind, box.height / 2)
    dashes = "" if node.effective else ' stroke-dasharray="3 2"'
    yield (
        f'<rect {paint(look)} x="{box.x - box.width / 2:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" rx="{radius:.0f}" stroke-width="1.1"{dashes}/>'
    )
    ink = ("inverse" if look == "end" else "ink") if node.effective else "soft"
    size, lift = (9.0, 1.5) if node.kind == "keyvalue" else (11.5, 0.5 if node.ports else 4.0)
    yield _text(ink, box.x, box.y + lift - (2 if node.kind == "keyvalue" else 0), node.label, size=size)
    for part in node.ports:
        x, y = port(box, part, ports=node.ports)
        yield _text(f"mark-{part}" if node.effective else "soft", x, y - 3.0, part, size=8)


def _text(look: str, x: float, y: float, text: str, *, size: float) -> str:
    return f'<text {paint(look)} x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="middle">{clean(text)}</text>'
