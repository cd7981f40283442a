"""Draw a circuit, the strongest of some scores, or two circuits on each other."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit, edges_text
from tlprune.drawing.contents import OWNERS, Contents, checked_weights
from tlprune.drawing.dot import dot
from tlprune.drawing.figure import NAMES, Figure, Panel
from tlprune.drawing.lanes import lanes
from tlprune.drawing.layout import Layout
from tlprune.drawing.page import circuit_page
from tlprune.drawing.picture import Drawing, suffix_of
from tlprune.drawing.scene import Scene
from tlprune.scores import Scores
from tlprune.selection import TopConnected
from tlprune.spans import Spanned


def draw(
    shown: Circuit | Scores,
    path: str | Path | None = None,
    *,
    title: str | None = None,
    weights: Scores | Float[Tensor, "edge"] | None = None,
    edges: int = 500,
) -> Drawing:
    """Draw a circuit: embeddings at the bottom, layers upwards, logits at the top.

    Only nodes with kept edges appear, beside the embeddings and the logits. An effective edge is a solid curve in the
    colour of the part that it enters; a kept edge on no path from an embedding to the logits is grey and dashed.
    Above 400 curves strokes are thin and translucent; above 2,000 edges one curve stands for all edges from one node
    to another. A drawing is read best below some 200 edges.

    The page (``.html``) tells names and weights under the pointer. A click on a node shows all that lies upstream and
    downstream of it; the legend hides and shows a colour; with weights a slider hides the edges of small ones.

    By span each span with a kept edge has a column of its own, with the same rows; a dotted curve goes from where a key
    or value is read to the span where its head writes. Such boxes and edges end in the span: ``a5.h3@s2``.

    Args:
        shown: a circuit; or scores, of which the edges of largest absolute value are drawn that are on paths together
            (:class:`~tlprune.TopConnected`), with the scores as weights.
        path: where to save it as well, ending in ``.html``, ``.svg``, ``.png`` or ``.dot``.
        title: above the figure.
        weights: of a circuit: a number for every edge of the graph, or at every span, such as scores; strokes are as
            wide as it is large. A bundle has the sum of the absolute weights of its edges.
        edges: of scores: how many to draw.

    Raises:
        ValueError: the weights do not fit the graph or are not finite, or the file cannot be written.
        ModuleNotFoundError: it is to be a ``.png`` and resvg_py is not installed.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> graph = Graph(Architecture(n_layers=1, n_heads=2, n_kv_heads=2))
        >>> drawing = draw(Circuit.from_edges(graph, ["input->a0.h1<v>", "a0.h1->logits"]), title="Copying")
        >>> drawing.svg.count("data-edge"), "2 of 13 edges, 2 effective" in drawing.svg
        (2, True)
    """
    if path is not None:
        suffix_of(path)
    circuit, weights = _thinned(shown, edges) if isinstance(shown, Scores) else (shown, _edges_of(weights))
    contents = Contents.of(circuit, None if weights is None else checked_weights(weights, circuit))
    return _saved(_figure(contents, title, _caption(contents)), path)


def draw_overlay(
    first: Circuit,
    second: Circuit,
    path: str | Path | None = None,
    *,
    names: tuple[str, str] = ("A", "B"),
    title: str | None = None,
) -> Drawing:
    """Draw two circuits on each other: edges of the first alone, of the second alone, and of both, in three colours.

    A dashed edge lies on no path from an embedding to the logits in any of the two that has it. A box has the colour of
    a circuit that alone uses it. The weights of their models may differ: before and after fine-tuning, say.

    Args:
        first: with edges.
        second: with edges of the same graph.
        path: where to save it as well, ending in ``.html``, ``.svg``, ``.png`` or ``.dot``.
        names: what the legend calls them.
        title: above the figure.

    Raises:
        ValueError: the circuits are over different edges, or the file cannot be written.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> graph = Graph(Architecture(n_layers=1, n_heads=2, n_kv_heads=2))
        >>> circuits = [Circuit.from_edges(graph, ["input->m0", edge]) for edge in ("m0->logits", "input->logits")]
        >>> "only Alice (1)" in draw_overlay(*circuits, names=("Alice", "Bob")).svg
        True
    """
    if path is not None:
        suffix_of(path)
    contents = Contents.overlaid(first, second)
    counts = [contents.owned(owner) for owner in OWNERS]
    told = (f"only {names[0]}", "both", f"only {names[1]}")
    legend: dict[str, str] = dict(zip(OWNERS, told, strict=True))
    sizes = ", ".join(f"{name}: {counts[which] + counts[1]:,}" for name, which in zip(names, (0, 2), strict=True))
    notes = [f"{edges_text(len(contents), len(contents.edges))} ({sizes})"]
    notes += [f"intersection over union {counts[1] / sum(counts):.2f}"] if sum(counts) else []
    notes += ["dashed: not effective"] if bool((contents.kept & ~contents.effective).any()) else []
    caption = "; ".join([*notes, str(contents.graph.convention)])
    return _saved(_figure(contents, title, caption, names=legend), path)


def _saved(figure: Figure, path: str | Path | None) -> Drawing:
    svg = figure.svg()
    drawing = Drawing(svg, circuit_page(svg, title=figure.title or "Circuit", weighted=figure.weighted), dot(figure))
    if path is not None:
        drawing.save(path)
    return drawing


def _thinned(scores: Scores, edges: int) -> tuple[Circuit, Tensor]:
    """The edges of largest score, and the scores of all."""
    own = scores.of("edges") if len(scores.sites.kinds) > 1 else scores
    return TopConnected(by="absolute").select(own, min(edges, len(own.sites))), own.values


def _edges_of(weights: Scores | Tensor | None) -> Tensor | None:
    if not isinstance(weights, Scores):
        return weights
    return weights.values[weights.sites.part("edges")]


def _figure(contents: Contents, title: str | None, caption: str, *, names: dict[str, str] | None = None) -> Figure:
    top = 66.0 if title else 38.0
    by_span = isinstance(contents.edges, Spanned)
    panels, moves = lanes(contents, top=top) if by_span else (_whole(contents, top=top), ())
    weighted, bundled = contents.weights is not None, panels[0].scene.bundled
    width = "width by |weight|" if weighted else "width by number of parts" if bundled else ""
    notes = ", ".join(note for note in ("one curve per pair of nodes" * bundled, width) if note)
    caption = "; ".join(part for part in (caption, notes) if part)
    return Figure(panels, title, caption, weighted, moves, {**NAMES, **(names or {})})


def _whole(contents: Contents, *, top: float) -> tuple[Panel, ...]:
    """One panel for the whole prompt."""
    scene = Scene.of(contents)
    return (Panel(scene, Layout.of(scene, top=top)),)


def _caption(contents: Contents) -> str:
    edges = contents.edges
    counts = f"{edges_text(len(contents), len(edges))}, {int(contents.effective.sum()):,} effective"
    if isinstance(edges, Spanned):
        drawn = sum(len(own) > 0 for own in contents.by_span().values())
        bare = contents.without_spans()
        counts = f"{counts}, at {drawn} of {len(edges.all_spans)} spans; {len(bare):,} of {len(bare.edges):,} distinct"
    return f"{counts}; {contents.graph.convention}"
