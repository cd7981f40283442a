"""Draws docs/figures/edges.svg, gates.svg and ablations.svg from the library itself: its graph, gates and ablations.

python scripts/draw_figures.py [folder]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap

import torch
from page import BLUE, GREEN, INK, ORANGE, PALE, Page, Point

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.activations import Wanted
from tlprune.graph import Architecture, Graph, Readers
from tlprune.masking.ablation import Ablation
from tlprune.task import Batch

FOLDER = Path(__file__).parents[1] / "docs" / "figures"


# ---- edges: every writer a column, every reader a row, an edge wherever they meet

LEFT, STEP, ROW, GAP, NODE = 60, 66, 19, 9, 58
ABLATED = ("a0.h0", "a1.h0<k>")


def edges_figure() -> Page:
    graph = Graph(Architecture(n_layers=2, n_heads=2, n_kv_heads=2))
    page = Page(880, 410, "The edges of a model with two layers of two heads and an MLP")
    boxes = _rows_of_nodes(graph)
    bottom = max(y for rows in boxes.values() for y in rows.values())
    for place, name in enumerate(graph.writers):
        top = 40 if name == "input" else max(boxes[name].values())
        page.line([(_column(place), top), (_column(place), bottom)], PALE)
    for readers in graph.readers:
        for name in readers.names:
            _reader_row(page, graph, readers, name, boxes)
    page.box(_column(0) - NODE / 2, 20, NODE, 22)
    page.text(_column(0), 35, "input", at="middle")
    _explanation(page, graph, boxes["a1.h0"]["a1.h0<k>"])
    return page


def _column(place: int) -> float:
    return LEFT + STEP * place


def _rows_of_nodes(graph: Graph) -> dict[str, dict[str, float]]:
    """For each node, in the order of the model, the height of each of its readers."""
    found: dict[str, dict[str, float]] = {}
    y = 62.0
    readers_of = {node: [] for node in (*graph.writers[1:], "logits")}
    for name in (name for readers in graph.readers for name in readers.names):
        readers_of[name.partition("<")[0]].append(name)
    for node, names in readers_of.items():
        found[node] = {name: y + ROW * place for place, name in enumerate(names)}
        y += ROW * len(names) + GAP
    return found


def _reader_row(page: Page, graph: Graph, readers: Readers, name: str, boxes: dict[str, dict[str, float]]) -> None:
    node, _, part = name.partition("<")
    y, end = boxes[node][name], _column([*graph.writers, "logits"].index(node)) - NODE / 2
    page.line([(_column(0), y), (end, y)], ORANGE if name == ABLATED[1] else PALE, 1.6 if name == ABLATED[1] else 1.2)
    for place in range(readers.width):
        gone = (graph.writers[place], name) == ABLATED
        page.dot(_column(place), y, ORANGE if gone else BLUE, 5 if gone else 3.5, hollow=gone)
    if y == min(boxes[node].values()):
        page.box(end, y - 9, NODE, max(boxes[node].values()) - y + 18)
        page.text(end + (36 if part else NODE / 2), max(boxes[node].values()) / 2 + y / 2 + 4, node, at="middle")
    page.text(end + 5, y + 4, part.rstrip(">"), BLUE, size=11)


def _explanation(page: Page, graph: Graph, y: float) -> None:
    x = 368
    page.text(x, 34, f"Column: a writer. Row: a reader. Dot: one of {len(graph)} edges, with a mask value m.")
    page.text(x, 54, "No dot, no edge: heads of one layer do not read each other.")
    page.text(x, 90, "x_{r}  =  c_{r}  +  Σ_{w}  ( x̃_{wr}  +  m_{wr} ( x_{w} - x̃_{wr} ) )", size=17)
    page.text(x, 118, "x_{w}   what writer w writes in this run")
    page.text(x, 138, "x̃_{wr}   what replaces it: the ablation's choice")
    page.text(x, 158, "c_{r}   what no edge carries: output biases of attention before r")
    page.dot(x + 5, 178, BLUE, 3.5)
    page.text(x + 18, 182, "m = 1, kept: the reader sees x")
    page.dot(x + 5, 198, ORANGE, 5, hollow=True)
    page.text(x + 18, 202, "m = 0, ablated: this reader alone sees x̃", ORANGE)
    names = {w: "x̃" if w == ABLATED[0] else "x" for w in graph.writers[: 1 + graph.architecture.n_heads + 1]}
    mixed = " + ".join(f"{what}_{{{writer}}}" for writer, what in names.items())
    page.text(_column(4) + 40, y + 4, f"k of a1.h0 reads  c + {mixed}", ORANGE)


# ---- gates: values against log_alpha, and the distribution of one

PANEL, HIGH = 176, 132
GATES: dict[str, tp.Gate] = {
    "HardConcrete": tp.HardConcrete(),
    "StraightThrough": tp.StraightThrough(),
    "Sigmoid": tp.Sigmoid(),
    "Heaviside": tp.Heaviside(),
}
SHOWN = 1.0  # the log_alpha of the second row
RANGE = 6.0


def gates_figure() -> Page:
    page = Page(880, 480, "The four gates: mask values against log_alpha, and their distribution at one value of it")
    for place, (name, gate) in enumerate(GATES.items()):
        left = 56 + 208 * place
        page.text(left + PANEL / 2, 24, name, at="middle", size=14)
        _frame(page, left, 36, ("-6", "0", "6"), "log_alpha")
        _values(page, gate, left)
        _frame(page, left, 272, ("0", "0.5", "1"), f"mask value at log_alpha = {SHOWN:g}")
        DISTRIBUTIONS[name](page, gate, left)
    for top, words in ((36, "mask value"), (272, "probability, density")):
        page.parts.append(
            f'<text transform="translate(22 {top + HIGH / 2:.0f}) rotate(-90)" text-anchor="middle" '
            f'font-size="12" fill="{INK}">{words}</text>'
        )
    _gates_legend(page, 232)
    page.text(
        56, 466, "A bar is the probability of one value; the curve of HardConcrete is half the density between 0 and 1."
    )
    return page


def _frame(page: Page, left: float, top: float, ticks: Sequence[str], below: str) -> None:
    page.line([(left, top), (left, top + HIGH), (left + PANEL, top + HIGH)])
    page.line([(left, top + HIGH / 2), (left + PANEL, top + HIGH / 2)], "#e4e4e4")
    for place, words in enumerate(ticks):
        page.text(left + PANEL * place / 2, top + HIGH + 15, words, at="middle", size=11)
    for place, words in enumerate(("1", "0.5", "0")):
        page.text(left - 5, top + HIGH * place / 2 + 4, words, at="end", size=11)
    page.text(left + PANEL / 2, top + HIGH + 31, below, at="middle", size=11)


def _values(page: Page, gate: tp.Gate, left: float) -> None:
    """Draws as dots; the expected value and the value without noise as curves."""
    alphas = torch.linspace(-RANGE, RANGE, 97, dtype=torch.float64)

    def at(alpha: float, value: float) -> Point:
        return left + PANEL * (alpha + RANGE) / (2 * RANGE), 36 + HIGH * (1 - value)

    generator = torch.Generator().manual_seed(0)
    drawn = gate.sample(alphas, generator)
    for alpha, value in zip(alphas.tolist(), drawn.tolist(), strict=True):
        page.dot(*at(alpha, value), PALE, 2)
    if isinstance(gate, tp.Sigmoid):
        cold = tp.Sigmoid(temperature=0.2).soft(alphas)
        page.line([at(a, v) for a, v in zip(alphas.tolist(), cold.tolist(), strict=True)], GREEN, 1.6, dash="2 2")
        page.text(left + 112, 36 + 108, "temperature", GREEN, size=11)
        page.text(left + 112, 36 + 121, "falls to 0.2", GREEN, size=11)
    for values, colour, dash in ((gate.expected_kept(alphas), BLUE, ""), (gate.soft(alphas), ORANGE, "5 3")):
        page.line([at(a, v) for a, v in zip(alphas.tolist(), values.tolist(), strict=True)], colour, 1.8, dash=dash)


def _gates_legend(page: Page, y: float) -> None:
    page.dot(62, y - 4, PALE, 3)
    page.text(74, y, "samples")
    page.line([(160, y - 4), (188, y - 4)], BLUE, 1.8)
    page.text(196, y, "expected_kept, what budgets count")
    page.line([(432, y - 4), (460, y - 4)], ORANGE, 1.8, dash="5 3")
    page.text(468, y, "soft, the value without noise")


def _bar(page: Page, left: float, value: float, probability: float) -> None:
    x, high = left + PANEL * value, HIGH * probability
    page.box(x - 5, 272 + HIGH - high, 10, high, fill=BLUE, edge=BLUE)
    side, at = {0.0: (8, "start"), 1.0: (5, "end")}.get(value, (0, "middle"))
    page.text(x + side, 272 + HIGH - high - 5, f"{probability:.2f}", BLUE, at=at, size=11)


def _hard_concrete(page: Page, gate: tp.HardConcrete, left: float) -> None:
    """The closed form: P(z <= v) = sigmoid(temperature logit(s) - log_alpha) at s = (v - low) / (high - low)."""
    span = gate.high - gate.low

    def below(value: float) -> float:
        s = (value - gate.low) / span
        return 1 / (1 + math.exp(SHOWN - gate.temperature * math.log(s / (1 - s))))

    def density(value: float) -> float:
        s = (value - gate.low) / span
        return below(value) * (1 - below(value)) * gate.temperature / (s * (1 - s) * span)

    points = [index / 60 for index in range(61)]
    page.line([(left + PANEL * v, 272 + HIGH * (1 - density(v) / 2)) for v in points], BLUE, 1.8)
    assert abs(1 - below(0) - float(gate.expected_kept(torch.tensor(SHOWN)))) < 1e-6
    _bar(page, left, 0, below(0))
    _bar(page, left, 1, 1 - below(1))


def _two_values(page: Page, gate: tp.Gate, left: float) -> None:
    kept = float(gate.expected_kept(torch.tensor(SHOWN)))
    _bar(page, left, 0, 1 - kept)
    _bar(page, left, 1, kept)


def _one_value(page: Page, gate: tp.Gate, left: float) -> None:
    _bar(page, left, float(gate.sample(torch.tensor(SHOWN))), 1.0)


DISTRIBUTIONS: dict[str, Callable[..., None]] = {
    "HardConcrete": _hard_concrete,
    "StraightThrough": _two_values,
    "Sigmoid": _one_value,
    "Heaviside": _one_value,
}


# ---- ablations: one number that one writer writes, and what is in its place when it is ablated

LAYER, NUMBER, EXAMPLE = 1, 121, 4
STRIP, ACROSS, AXIS = 78, 46, 226


def ablations_figure() -> Page:
    model = tp.load("testbed", device="cpu")
    task = tp.tasks.ioi(model)
    batch = task.discovery.train().rows(torch.tensor([EXAMPLE]))
    mean = tp.Mean(task.discovery.train().corrupt)
    found: dict[str, tuple[str, Ablation]] = {
        "Resample": ("the value on the corrupted twin, position by position", tp.Resample()),
        "Zero": ("nothing", tp.Zero()),
        "Mean": ("the mean over reference prompts and their positions", mean),
        "GaussianNoise": ("its own value with noise on top, one draw per prompt", tp.GaussianNoise(scale=0.3)),
        "Constant": ("a number that is trained with the masks, from the mean on", _trained_constant(model, task, mean)),
    }
    return _strips(model, batch, found)


def _trained_constant(model: object, task: tp.Task, mean: tp.Mean) -> tp.Constant:
    constant = tp.Constant(model, mean)
    masked = tp.Masked(model, tp.Masks(tp.mlps(model)), constant)
    tp.fit(masked, task.discovery, budget=tp.Lagrangian(0.75), steps=20, optimiser=tp.Optimiser(ablation_rate=0.05))
    return constant


def _strips(model: object, batch: Batch, found: dict[str, tuple[str, Ablation]]) -> Page:
    backend = backend_of(model)
    clean, twin = (
        backend.observe(tokens, Wanted(streams=False)).mlps[LAYER][0, :, NUMBER]
        for tokens in (batch.clean, batch.corrupt)
    )
    count = int(batch.positions[0, 0]) + 1
    page = Page(880, 30 + STRIP * len(found) + 66, f"One number of what m{LAYER} writes, and what replaces it")
    received: dict[str, torch.Tensor] = {}
    for name, (_, ablation) in found.items():
        instead = ablation.replaced(backend, batch.clean, batch.corrupt, Wanted(streams=False))
        value = instead.mlps[LAYER].detach()[0, :, NUMBER].expand(len(clean))
        received[name] = clean + value if instead.relative else value
    assert torch.equal(received["Resample"], twin)
    most = max(float(values[:count].abs().max()) for values in (clean, *received.values()))
    for place, (name, (words, _)) in enumerate(found.items()):
        middle = 30 + STRIP * (place + 0.72)
        page.text(16, middle - 18, name, BLUE, size=14)
        for row, part in enumerate(wrap(words, 30)):
            page.text(16, middle - 1 + 14 * row, part, size=11)
        page.line([(AXIS - 14, middle), (AXIS + ACROSS * (count - 1) + 14, middle)], "#d8d8d8")
        page.text(AXIS - 20, middle + 4, "0", at="end", size=11)
        _strip(page, middle, (clean / most).tolist()[:count], (received[name] / most).tolist()[:count])
    _tokens_below(page, model, batch, count, 30 + STRIP * len(found) + 14)
    page.dot(AXIS, 16, PALE, 4)
    page.text(AXIS + 10, 20, f"number {NUMBER} of what m{LAYER} writes in this run, seen where m = 1")
    page.dot(AXIS + 412, 16, BLUE, 4)
    page.text(AXIS + 422, 20, "what a reader sees where m = 0")
    return page


def _strip(page: Page, middle: float, clean: Sequence[float], received: Sequence[float]) -> None:
    high = 0.66 * STRIP
    for place, (own, other) in enumerate(zip(clean, received, strict=True)):
        x = AXIS + ACROSS * place
        page.line([(x, middle - high * own), (x, middle - high * other)], PALE)
        page.dot(x, middle - high * own, PALE, 4)
        page.dot(x, middle - high * other, BLUE, 3.2)


def _tokens_below(page: Page, model: object, batch: Batch, count: int, y: float) -> None:
    decode = model.tokenizer.decode  # pyright: ignore[reportAttributeAccessIssue]
    for row, (label, tokens) in enumerate((("prompt", batch.clean), ("twin", batch.corrupt))):
        page.text(AXIS - 40, y + 18 * row, label, PALE if row else INK, at="end", size=11)
        for place in range(count):
            own, other = (decode([int(one.ids[0, place])]) for one in (tokens, batch.clean))
            if not row or own != other:
                page.text(AXIS + ACROSS * place, y + 18 * row, own, at="middle", size=11)


FIGURES = {"edges": edges_figure, "gates": gates_figure, "ablations": ablations_figure}


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in FIGURES.items():
        figure().write(folder / f"{name}.svg")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
