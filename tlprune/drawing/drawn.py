"""Draw a circuit, and keep the picture as SVG or as a page."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit, edges_text
from tlprune.drawing.figure import Figure
from tlprune.drawing.page import frame, page
from tlprune.drawing.scene import Scene
from tlprune.files import write_whole

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

    Args:
        circuit: what to draw.
        path: where to save it as well, ending in ``.svg`` or ``.html``.
        title: above the figure.
        weights: a number for every edge of the graph, such as scores; strokes are as wide as it is large. A bundle
            has the sum of the absolute weights of its edges.

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
    scene = Scene.of(circuit, weights)
    figure = Figure(scene, title, _caption(circuit, scene, weights is not None), weights is not None)
    svg = figure.svg()
    drawing = Drawing(svg, page(svg, title=title or "Circuit"))
    if path is not None:
        drawing.save(path)
    return drawing


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".html"):
        raise ValueError(f"A drawing is saved as .svg or .html but the path is {path}. End the path in one of these.")
    return suffix


def _checked(weights: Tensor, circuit: Circuit) -> Tensor:
    if weights.shape != (circuit.graph.n_edges,):
        raise ValueError(
            f"The weights of a drawing need shape ({circuit.graph.n_edges:,},), one for every edge of the graph, but "
            f"have {tuple(weights.shape)}. Give weights over the graph of the circuit."
        )
    weights = weights.detach().to("cpu", torch.float32)
    if not weights[circuit.kept].isfinite().all():
        raise ValueError(
            "The weights of the kept edges must be finite but some are infinite or NaN. Replace them, for instance "
            "with weights.nan_to_num()."
        )
    return weights


def _caption(circuit: Circuit, scene: Scene, weighted: bool) -> str:
    counts = f"{edges_text(len(circuit), circuit.graph.n_edges)}, {circuit.n_effective:,} effective"
    width = "width by |weight|" if weighted else "width by number of parts" if scene.bundled else ""
    bundles = "one curve per pair of nodes" if scene.bundled else ""
    notes = ", ".join(note for note in (bundles, width) if note)
    return "; ".join(part for part in (counts, str(circuit.graph.convention), notes) if part)
