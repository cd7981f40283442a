"""A figure of a circuit in Graphviz' language, to be laid out and styled by other programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tlprune.drawing.figure import Figure
from tlprune.drawing.scene import Link, Node, Scene
from tlprune.drawing.style import COLOURS, PAINTS

SHAPES = {"head": "box", "keyvalue": "box", "mlp": "ellipse", "embedding": "box", "logits": "box"}


def dot(figure: Figure) -> str:
    """The nodes and links of a figure as a ``digraph`` that grows upwards.

    Every edge carries ``part`` and, where there are any, ``score`` and ``circuit`` (of an overlay) as attributes of its
    own, which Graphviz lets pass, so that other programs can read them. Dotted lines without arrows are no edges: they
    tie a shared key/value head to its query heads, and reads to the span that attention moves them to.
    """
    lines = [
        "digraph circuit {",
        f"  graph [rankdir=BT, label={quoted(figure.title or '')}, tooltip={quoted(figure.caption)}];",
        '  node [shape=box, style="rounded", fontname="Helvetica", fontsize=11];',
        "  edge [arrowsize=0.5];",
        *(line for panel in figure.panels for line in _scene(panel.scene, figure)),
        *(f'  {quoted(a)} -> {quoted(b)} [style=dotted, dir=none, class="tie"];' for a, b in figure.moves),
        "}",
    ]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A string of the language, in ASCII.

    Example:
        >>> print(quoted('a0.h1@"end" é'))
        "a0.h1@\\"end\\" &#233;"
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + escaped.encode("ascii", "xmlcharrefreplace").decode() + '"'


def _scene(scene: Scene, figure: Figure) -> Iterator[str]:
    for row in scene.rows:
        yield f"  {{ rank=same; {' '.join(_node(node) for node in row)} }}"
    yield from (
        f"  {quoted(link.writer)} -> {quoted(link.reader)} {_attributes(link, figure)};" for link in scene.links
    )
    for node in scene.nodes:
        yield from (
            f'  {quoted(node.name)} -> {quoted(head)} [style=dotted, dir=none, class="tie"];' for head in node.serves
        )


def _node(node: Node) -> str:
    colour = PAINTS["box-mlp" if node.kind == "mlp" else "head"]["stroke"][0] if node.effective else COLOURS["idle"][0]
    dashes = "" if node.effective else ', style="rounded,dashed"'
    return (
        f"{quoted(node.name)} [label={quoted(node.label)}, shape={SHAPES[node.kind]}, color={quoted(colour)}{dashes}];"
    )


def _attributes(link: Link, figure: Figure) -> str:
    known: Mapping[str, str] = {
        "color": quoted(COLOURS[link.look][0]),
        "penwidth": f"{figure.stroke(link):.2f}",
        "tooltip": quoted(link.name),
        "part": quoted(",".join(link.parts)),
        **({} if link.weight is None else {"score": quoted(f"{link.weight:.6g}")}),
        **({} if link.owner is None else {"circuit": quoted(link.owner)}),
        **({} if link.effective else {"style": "dashed"}),
    }
    return f"[{', '.join(f'{name}={value}' for name, value in known.items())}]"
