"""Draw a circuit, and keep the picture as SVG or as a page."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit, edges_text
from tlprune.drawing.figure import Figure, Panel
from tlprune.drawing.lanes import lanes
from tlprune.drawing.layout import Layout
from tlprune.drawing.page import frame, page
from tlprune.drawing.scene import Scene
from tlprune.files import write_whole
from tlprune.spans import Spanned

TALLEST_FRAME = 900.0


@dataclass(frozen=True)
class Drawing:
    """A finished picture of a circuit; a notebook shows it by itself.

    Attributes:
        svg: the figure alone, for papers.
        html: a page with the same figure that highlights what the pointer is on; it loads nothing.
    """

    svg: str = field(repr=False)
    html: str = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write the figure (``.svg``) or the page (``.html``).

        Raises:
            ValueError: the suffix is another one, or the file cannot be written.
        """
        target = Path(path)
        text = {".svg": self.svg, ".html": self.html}[_suffix(target)]
        try:
            write_whole(target, text)
        except OSError as error:
            raise ValueError(
                f"A drawing needs a place to be written but {target} cannot be ({error.strerror}). "
                "Give a path in an existing folder that you may write to."
            ) from None

    def _repr_html_(self) -> str:
        found = re.search(r' height="(\d+)"', self.svg)
        return frame(self.html, height=min(TALLEST_FRAME, float(found[1]) + 8 if found else TALLEST_FRAME))


def draw(
    circuit: Circuit,
    path: str | Path | None = None,
    *,
    title: str | None = None,
    weights: Float[Tensor, "edge"] | None = None,
) -> Drawing:
    """Draw a circuit: embeddings at the bottom, layers upwards, logits at the top.

    Only nodes with kept edges appear, beside the embeddings and the logits. An effective edge is a solid curve in the
    colour of the part that it enters; a kept edge on no path from an embedding to the logits is grey and dashed.
    Above 400 curves strokes are thin and translucent; above 2,000 edges one curve stands for all edges from one node
    to another. A drawing is read best below some 200 edges.

    By span each span with a kept edge has a column of its own, with the same rows; a dotted curve goes from where a key
    or value is read to the span where its head writes. Such boxes and edges end in the span: ``a5.h3@s2``.

    Args:
        circuit: what to draw.
        path: where to save it as well, ending in ``.svg`` or ``.html``.
        title: above the figure.
        weights: a number for every edge of the graph, or at every span, such as scores; strokes are as wide as it is
            large. A bundle has the sum of the absolute weights of its edges.

    Raises:
        ValueError: the weights do not fit the graph or are not finite, or the file cannot be written.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> graph = Graph(Architecture(n_layers=1, n_heads=2, n_kv_heads=2))
        >>> drawing = draw(Circuit.from_edges(graph, ["input->a0.h1<v>", "a0.h1->logits"]), title="Copying")
        >>> drawing.svg.count("data-edge"), "2 of 13 edges, 2 effective" in drawing.svg
        (2, True)
    """
    if path is not None:
        _suffix(Path(path))
    if weights is not None:
        weights = _checked(weights, circuit)
    top = 66.0 if title else 38.0
    panels, moves = _whole(circuit, weights, top=top) if not circuit.sites.spans else lanes(circuit, weights, top=top)
    figure = Figure(panels, title, _caption(circuit, panels, weights is not None), weights is not None, moves)
    svg = figure.svg()
    drawing = Drawing(svg, page(svg, title=title or "Circuit"))
    if path is not None:
        drawing.save(path)
    return drawing


def _whole(
    circuit: Circuit, weights: Tensor | None, *, top: float
) -> tuple[tuple[Panel, ...], tuple[tuple[str, str], ...]]:
    """One panel for the whole prompt."""
    scene = Scene.of(circuit, weights)
    return (Panel(scene, Layout.of(scene, top=top)),), ()


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".html"):
        raise ValueError(f"A drawing is saved as .svg or .html but the path is {path}. End the path in one of these.")
    return suffix


def _checked(weights: Tensor, circuit: Circuit) -> Tensor:
    edges = circuit.sites.part("edges")
    total = edges.stop - edges.start
    if weights.shape != (total,):
        raise ValueError(
            f"The weights of a drawing need shape ({total:,},), one for every edge of the graph, but "
            f"have {tuple(weights.shape)}. Give weights over the graph of the circuit."
        )
    weights = weights.detach().to("cpu", torch.float32)
    if not weights[circuit.kept[edges]].isfinite().all():
        raise ValueError(
            "The weights of the kept edges must be finite but some are infinite or NaN. Replace them, for instance "
            "with weights.nan_to_num()."
        )
    return weights


def _caption(circuit: Circuit, panels: tuple[Panel, ...], weighted: bool) -> str:
    scene, total = panels[0].scene, len(circuit.sites.group("edges"))
    counts = f"{edges_text(circuit.count('edges'), total)}, {circuit.effective.count('edges'):,} effective"
    if isinstance(edges := circuit.sites.group("edges"), Spanned):
        drawn = {panel.heading[0].removeprefix("@") for panel in panels if panel.heading}
        bare = circuit.without_spans().count("edges")
        counts = f"{counts}, at {len(drawn)} of {len(edges.all_spans)} spans; {bare:,} of {len(edges.group):,} distinct"
    width = "width by |weight|" if weighted else "width by number of parts" if scene.bundled else ""
    bundles = "one curve per pair of nodes" if scene.bundled else ""
    notes = ", ".join(note for note in (bundles, width) if note)
    return "; ".join(part for part in (counts, str(circuit.graph.convention), notes) if part)
