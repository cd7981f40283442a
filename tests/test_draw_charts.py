"""Charts: every number at its place, whatever is drawn; and nothing asked for from outside."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from test_draw import GRAPHS, NAMESPACE, sample
from test_draw_spans import sample as sample_by_span

import tlprune as tp
from tlprune.drawing.axis import Axis, number_text
from tlprune.drawing.plane import HUES, MOST_MARKS, Line, Plane, plane_chart
from tlprune.graph import Architecture, Graph
from tlprune.sites import Matrix, Neurons, Nodes, Sites, Weights


def notes(drawing: Any) -> list[str]:
    return [str(title.text) for title in ElementTree.fromstring(drawing.svg).iter(f"{{{NAMESPACE}}}title")]


def texts(drawing: Any) -> list[str]:
    return [str(text.text) for text in ElementTree.fromstring(drawing.svg).iter(f"{{{NAMESPACE}}}text")]


# ---- axes


@pytest.mark.parametrize("low", [0.0, -3.7, 0.02, 1.0, 950.0, 1e-9])
@pytest.mark.parametrize("length", [1e-6, 0.3, 1.0, 7.0, 32_491.0])
@pytest.mark.parametrize("log", [False, True])
def test_an_axis_holds_its_numbers_and_has_a_few_round_ticks(low: float, length: float, log: bool) -> None:
    if log and low <= 0:
        low = 0.5
    axis = Axis.over([low, low + length], start=100, end=20, log=log)
    slack = 1e-6 * length
    assert axis.low <= low + slack and axis.high >= low + length - slack
    assert [axis.place(axis.low), axis.place(axis.high)] == pytest.approx([100, 20])
    assert axis.place(low) - axis.place(low + length) > 40
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8 and ticks == sorted(set(ticks))
    assert all(20 - 1e-6 <= axis.place(tick) <= 100 + 1e-6 for tick in ticks)
    if not log:
        steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
        assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3)
        digits = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
        assert any(digits == pytest.approx(round_one, rel=1e-3) for round_one in (1, 2, 5))


def test_equal_ratios_have_equal_lengths_on_a_logarithmic_axis() -> None:
    axis = Axis(2, 2000, start=0, end=300, log=True)
    assert [axis.place(value) for value in (2, 20, 200, 2000)] == pytest.approx([0, 100, 200, 300])


def test_one_number_alone_has_an_axis() -> None:
    for log in (False, True):
        axis = Axis.over([5.0], start=0, end=1, log=log)
        assert axis.low < 5 < axis.high
    assert Axis.over([], start=0, end=1).ticks()


# ---- lines


def test_points_stand_where_their_numbers_are() -> None:
    """A straight line over both axes is one in the picture: equal steps between its marks."""
    line = Line("rise", tuple((x, 3.0 * x) for x in range(5)), tuple((3.0 * x - 1, 3.0 * x + 2) for x in range(5)))
    svg = plane_chart([Plane((line,), "x", "y")], title="Rise", caption="a line")
    figure = ElementTree.fromstring(svg)
    circles = [e for group in figure.iter(f"{{{NAMESPACE}}}g") for e in group.iter(f"{{{NAMESPACE}}}circle")]
    places = [(float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in circles]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(places, places[1:], strict=False)]
    assert len(places) == 5 and steps[0][0] > 0 > steps[0][1]
    assert all(step == pytest.approx(steps[0], abs=0.15) for step in steps)
    (path,) = (e.attrib["d"] for e in figure.iter(f"{{{NAMESPACE}}}path") if e.attrib.get("data-line") == "rise")
    assert [float(number) for number in re.findall(r"-?[\d.]+", path)] == [
        number for place in places for number in place
    ]
    (band,) = (e.attrib["d"] for e in figure.iter(f"{{{NAMESPACE}}}path") if e.attrib.get("data-bounds") == "rise")
    corners = [float(number) for number in re.findall(r"-?[\d.]+", band)]
    heights = corners[1::2]
    scale = -steps[0][1] / 3  # pixels of one unit
    assert heights[0] - places[0][1] == pytest.approx(scale, abs=0.15)
    assert places[0][1] - heights[-1] == pytest.approx(2 * scale, abs=0.15)
    assert "rise\n2: 6 [5, 8]" in notes(type("Shown", (), {"svg": svg}))


def test_many_lines_are_told_apart_and_long_ones_have_fewer_marks() -> None:
    lines = tuple(Line(f"line {n}", ((0, n), (1, n + 1))) for n in range(2 * len(HUES)))
    svg = plane_chart([Plane(lines, "x", "y")], title=None, caption="")
    drawn = [e.attrib for e in ElementTree.fromstring(svg).iter() if "data-line" in e.attrib]
    assert len({(one["class"], "stroke-dasharray" in one) for one in drawn}) == len(lines)
    long = Line("long", tuple((x, 0.5) for x in range(5000)))
    assert (
        MOST_MARKS <= plane_chart([Plane((long,), "x", "y")], title=None, caption="").count("<circle") < 2 * MOST_MARKS
    )


# ---- training


def records(count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "step": n,
            "kl_sampled": 1 / n,
            "kl_hard": 0.5 if n % 4 == 0 else None,
            "expected_kept": 100.0 - n,
            "total": 100,
        }
        | {"target": n / 100, "seconds": float(n)}
        | more
        for n in range(1, count + 1)
    ]


def test_a_training_is_drawn_from_its_file_and_from_its_lines(tmp_path: Path) -> None:
    rows = records(8)
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawing = tp.draw_training(file, tmp_path / "training.html", title="Eight steps")
    assert drawing == tp.draw_training(rows, title="Eight steps")
    assert (tmp_path / "training.html").read_text() == drawing.html
    found = notes(drawing)
    assert [note for note in found if note.startswith("kl hard")] == ["kl hard\n4: 0.5", "kl hard\n8: 0.5"]
    assert {f"kl sampled\n{n}: {number_text(1 / n)}" for n in range(1, 9)} <= set(found)
    assert {f"expected kept\n{n}: {100 - n}" for n in range(1, 9)} <= set(found)
    assert {f"aimed at\n{n}: {100 - n}" for n in range(1, 9)} <= set(found)
    assert "8 steps; 92 of 100 sites expected at the end; 8 s" in texts(drawing)


def test_a_training_of_several_terms_and_kinds_has_a_line_for_each() -> None:
    more = {"objective_sampled": 2.0, "edges_expected_kept": 60.0, "heads_expected_kept": 30.0}
    found = {note.partition("\n")[0] for note in notes(tp.draw_training(records(3, **more)))}
    assert found == {"objective sampled", "kl sampled", "edges expected kept", "heads expected kept"}


def test_a_training_of_the_library_can_be_drawn(tmp_path: Path) -> None:
    planted = tp.planted("copy")
    tp.EdgePruning(sparsity=0.9, steps=4).find(planted.model, planted.task, metrics=tmp_path / "metrics.jsonl")
    assert "4 steps" in tp.draw_training(tmp_path / "metrics.jsonl").svg


@pytest.mark.parametrize(
    ("content", "message"), [("", "these 0 rows are none"), ('{"a": 1}\n', "these 1 rows are none"), ("{", "not JSON")]
)
def test_other_files_are_no_training(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        tp.draw_training(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="Cannot read the records"):
        tp.draw_training(tmp_path / "missing.jsonl")


# ---- faithfulness


def test_curves_areas_and_tables_are_drawn_as_they_say_of_themselves(tmp_path: Path) -> None:
    planted = tp.planted("copy")
    scores = tp.Scores(planted.circuit.sites, planted.circuit.kept.float())
    curve = tp.faithfulness_curve(planted.model, scores, planted.task, counts=[0, 2, 110])
    areas = tp.faithfulness_areas(planted.model, scores, planted.task, sizes=(0, 0.5, 1))
    drawing = tp.draw_faithfulness({"curve": curve, "areas": areas})
    expected = {
        f"curve\n{row['effective']}: {number_text(row['faithfulness'])} "
        f"[{', '.join(number_text(bound) for bound in row['intervals']['faithfulness'])}]"
        for row in curve.as_dict()["rows"]
        if row["effective"]
    }
    for name in ("CPR", "CMD"):
        pairs = zip(areas.counts[name], areas.faithfulness[name] or (), strict=True)
        expected |= {f"areas, {name}\n{count}: {number_text(share)}" for (_, count), share in pairs if count}
    assert set(notes(drawing)) == expected
    assert "bands are 95% intervals; 3 circuits without edges left out" in texts(drawing)
    kl = tp.draw_faithfulness(curve, figure="kl")
    assert "KL (nats)" in texts(kl) and notes(kl)[-1].startswith("kl\n110: ")


def test_rows_of_a_comparison_have_a_line_for_each_method_and_seed() -> None:
    rows = [
        {
            "task": "ioi",
            "method": method,
            "seed": seed,
            "effective": size,
            "kl": 1 / size,
            "kl_low": 0.0,
            "kl_high": 2.0,
        }
        for method in ("eap", "acdc")
        for seed in (0, 1)
        for size in (100, 10)
    ]
    found = notes(tp.draw_faithfulness(rows, figure="kl"))
    assert [note.partition("\n")[0] for note in found[::2]] == [
        "eap, seed 0",
        "eap, seed 1",
        "acdc, seed 0",
        "acdc, seed 1",
    ]
    assert found[:2] == ["eap, seed 0\n10: 0.1 [0, 2]", "eap, seed 0\n100: 0.01 [0, 2]"]
    with pytest.raises(ValueError, match="needs circuits with an edge and this figure"):
        tp.draw_faithfulness(rows)


# ---- what is kept


def test_keep_counts_are_of_heads_and_mlps_over_circuits() -> None:
    circuits = [sample(GRAPHS["plain"], 200, seed=seed) for seed in range(5)]
    drawing = tp.draw_keep_counts(circuits)
    writers = [name for name in circuits[0].graph.writers if name != "input"]
    kept = {name: sum(name in circuit.effective.nodes for circuit in circuits) for name in writers}
    assert sorted(notes(drawing)) == sorted(f"{name}: in {count} of 5" for name, count in kept.items())
    assert len(set(kept.values())) > 2
    heads = Sites((Nodes("heads", ("a0.h0", "a0.h1", "a1.h0")), Nodes("mlps", ("m1",))))
    pair = [tp.Circuit.from_names(heads, names) for names in (["a0.h1", "m1"], ["a0.h1"])]
    assert notes(tp.draw_keep_counts(pair)) == [
        "a1.h0: in 0 of 2", "m1: in 1 of 2", "a0.h0: in 0 of 2", "a0.h1: in 2 of 2"
    ]  # fmt: skip


def test_keep_counts_need_circuits_of_the_same_heads() -> None:
    with pytest.raises(ValueError, match="got 0, of nothing"):
        tp.draw_keep_counts([])
    with pytest.raises(ValueError, match="circuits of the same sites but got 2"):
        tp.draw_keep_counts([sample(GRAPHS["plain"], 3), sample(GRAPHS["separate"], 3)])
    neurons = tp.Circuit.from_names(Sites((Neurons((0, 1), 4),)), ["m1.n2"])
    with pytest.raises(ValueError, match="edges, heads or MLPs but"):
        tp.draw_keep_counts([neurons])


@pytest.mark.parametrize("name", GRAPHS)
def test_density_counts_every_edge_once_where_it_is_read(name: str) -> None:
    circuit = sample(GRAPHS[name], 80)
    cells = {}
    for note in notes(tp.draw_density(circuit)):
        found = re.fullmatch(r"(logits|layer \d+), (\w+): ([\d,]+) of ([\d,]+) kept", note)
        assert found
        cells[found[1], found[2]] = tuple(int(number.replace(",", "")) for number in found.groups()[2:])
    assert sum(kept for kept, _ in cells.values()) == 80
    assert sum(total for _, total in cells.values()) == len(GRAPHS[name])
    queries = [edge for edge in circuit.edges if re.search(r"->a1\.\w+<q>", edge)]
    assert cells["layer 1", "q"][0] == len(queries)
    assert cells["logits", "logits"][0] == sum(edge.endswith("->logits") for edge in circuit.edges)


def test_density_of_other_sites() -> None:
    by_span = sample_by_span(GRAPHS["plain"], 90)
    totals = [re.findall(r"[\d,]+(?= kept)", note)[0] for note in notes(tp.draw_density(by_span))]
    assert sum(int(total.replace(",", "")) for total in totals) == 3 * len(GRAPHS["plain"])
    neurons = tp.Circuit.from_names(Sites((Neurons((0, 1), 4),)), ["m1.n2", "m1.n3", "m0.n0"])
    assert notes(tp.draw_density(neurons)) == ["layer 1, neurons: 2 of 4 kept", "layer 0, neurons: 1 of 4 kept"]
    matrices = (Matrix("blocks.0.attn.W_Q", (1, 2, 3), (1,)), Matrix("embed.W_E", (2, 2), (0,)))
    weights = Sites((Weights(matrices),))
    kept = torch.tensor([True] * 4 + [False] * 6)
    assert notes(tp.draw_density(tp.Circuit(weights, kept))) == [
        "layer 0, attn.W_Q: 4 of 6 kept", "other, embed.W_E: 0 of 4 kept"
    ]  # fmt: skip


def test_a_chart_needs_nothing_from_outside_and_is_no_graph(tmp_path: Path) -> None:
    circuit = sample(Graph(Architecture(2, 2, 2)), 9)
    for drawing in (tp.draw_density(circuit, title="see https below & <b>"), tp.draw_training(records(3))):
        for text in (drawing.svg, drawing.html):
            assert set(re.findall(r"\w+://[^\"'\s<]*", text)) == {NAMESPACE}
            assert not re.search(r"\b(src|href)=|@import|url\(", text)
            assert text.isascii()
        with pytest.raises(ValueError, match="is of a circuit's graph but this drawing is a chart"):
            drawing.save(tmp_path / "chart.dot")
    assert not any(tmp_path.iterdir())
