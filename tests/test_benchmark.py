"""Comparisons: equal effective edges, figures of test examples, nothing lost when stopped, nothing hidden."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import tlprune as tp
from tlprune.benchmarking.comparing import compared
from tlprune.benchmarking.cost import measured
from tlprune.benchmarking.entries import entries_of
from tlprune.benchmarking.report import write_report
from tlprune.benchmarking.rows import COLUMNS, Store
from tlprune.benchmarking.sizes import Size, sizes_of
from tlprune.methods.scoring import EdgeScoring

PLANTED = tp.planted("copy")
QUICK = {"random": tp.Random(), "pruning": tp.EdgePruning(edges=2, steps=10)}


def run(out: Path, methods: Any = None, **options: Any) -> list[dict[str, Any]]:
    options = {"sizes": ["true", 8], "truth": PLANTED.circuit, **options}
    return tp.benchmark(PLANTED.model, PLANTED.task, methods or QUICK, out=out, **options)


@dataclass(frozen=True, kw_only=True)
class Known(EdgeScoring):
    """Scores that are the truth; counts how often it is asked."""

    calls: ClassVar[list[int]] = []

    def values(self, model: Any, discovery: Any, sites: Any, ablation: Any, *, progress: bool) -> torch.Tensor:
        self.calls.append(1)
        return PLANTED.circuit.kept.float()


# ---- figures


def test_rows_are_of_the_circuits_that_they_name(tmp_path: Path) -> None:
    """Every figure of a row is that of tp.evaluate on the saved circuit."""
    rows = [row for row in run(tmp_path) if row["mode"] != "reference"]
    assert len(rows) == 2 + 2 + 2
    places: dict[str, int] = {}
    for row in rows:
        place = places[row["cell"]] = places.get(row["cell"], -1) + 1
        circuit = tp.Circuit.load(tmp_path / "circuits" / f"{row['cell']}-{place}.safetensors")
        found = tp.evaluate(PLANTED.model, circuit, PLANTED.task, ablation=tp.Resample())
        means = found["circuit"].means()
        assert (row["nominal"], row["effective"]) == (len(circuit), circuit.n_effective)
        assert row["kl"] == pytest.approx(means["kl"])
        assert row["faithfulness"] == pytest.approx(means["faithfulness"])
        assert row["complement_kl"] == pytest.approx(found["complement"].means()["kl"])
        both = len(circuit & PLANTED.circuit)
        assert (row["precision"], row["recall"]) == (both / len(circuit), both / 2)
        assert row["kl_low"] <= row["kl"] <= row["kl_high"]
        assert row["seconds"] > 0 and row["status"] == "measured" and row["error"] is None if "error" in row else True


def test_every_method_has_just_as_many_effective_edges(tmp_path: Path) -> None:
    rows = [row for row in run(tmp_path, sizes=[2, 8, 20]) if row["mode"] != "reference"]
    assert [row["effective"] for row in rows if row["mode"] != "one run per size"] == [2, 8, 20, 2, 8, 20]
    assert all(row["effective"] == row["target"] for row in rows)


def test_the_true_circuit_is_best_and_chance_is_told_from_it(tmp_path: Path) -> None:
    rows = run(tmp_path, {"random": tp.Random(), "known": Known()}, sizes=["true"])
    cells = compared(Store(tmp_path), rows)[2]
    assert cells["known", "ranked"].kl.value < 1e-6 and cells["known", "ranked"].tied
    assert not cells["random", "ranked"].tied


def test_seeds_are_averaged_example_by_example(tmp_path: Path) -> None:
    rows = run(tmp_path, {"random": tp.Random(shape="free")}, sizes=[40], seeds=(0, 1, 2))
    cell = compared(Store(tmp_path), rows)[40]["random", "ranked"]
    own = [row["kl"] for row in rows if row["mode"] == "ranked"]
    assert cell.by_seed == pytest.approx(tuple(own))
    assert cell.kl.value == pytest.approx(sum(own) / 3)


def test_costs_count_what_a_search_runs(tmp_path: Path) -> None:
    rows = run(tmp_path)
    by_method = {(row["method"], row["mode"]): row for row in rows if row["mode"] != "reference"}
    assert by_method["random", "ranked"]["forward_equivalents"] == 0
    trained = by_method["pruning", "one run per size"]["forward_equivalents"]
    steps, batch, train = 10, 32, len(PLANTED.task.discovery.train())
    # Every step forward and backward; each training prompt once as it is and once corrupted.
    assert trained == steps * batch * 2 + train * 2
    assert {row["cost_covers"] for row in rows if row["mode"] == "one run per size"} == {"this size"}


def test_an_error_while_measuring_costs_leaves_no_hook() -> None:
    with pytest.raises(ZeroDivisionError), measured(PLANTED.model):
        raise ZeroDivisionError
    assert not any(point._forward_pre_hooks for point in PLANTED.model.hook_dict.values())


# ---- stopping and going on


def test_a_second_call_runs_only_what_is_missing(tmp_path: Path) -> None:
    Known.calls.clear()
    first = run(tmp_path, {"known": Known()})
    again = run(tmp_path, {"known": Known(), "random": tp.Random()})
    assert len(Known.calls) == 1
    assert again[: len(first)] == first
    assert {row["method"] for row in again} == {"full model", "empty circuit", "known", "random"}
    run(tmp_path, {"known": Known()}, sizes=[3])  # another size is another search
    assert len(Known.calls) == 2


def test_a_line_that_a_stop_has_cut_is_run_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text()[:-40])
    assert [_figures(row) for row in run(tmp_path)] == [_figures(row) for row in first]


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if "seconds" not in name and name != "peak_bytes"}


def test_a_broken_line_is_refused(tmp_path: Path) -> None:
    run(tmp_path, {"random": tp.Random()})
    path = tmp_path / "rows.jsonl"
    path.write_text("[]\nnothing\n" + path.read_text())
    with pytest.raises(ValueError, match="line 2 is not one"):
        Store(tmp_path)


def test_a_method_that_fails_is_told_of_and_tried_again(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Failing(Known):
        def values(self, *args: Any, **options: Any) -> torch.Tensor:
            raise ValueError("no such luck")

    told: list[str] = []
    rows = run(tmp_path, {"failing": Failing(), "random": tp.Random()}, tell=told.append)
    assert [row["error"] for row in rows if row["status"] == "failed"] == ["no such luck"]
    assert "failing, ranked: failed: no such luck" in told[0]
    assert sum(row["method"] == "random" for row in rows) == 2
    report = write_report(Store(tmp_path), device="CPU").read_text()
    assert "- failing (ranked): no such luck" in report
    told.clear()
    again = run(tmp_path, {"failing": Failing(), "random": tp.Random()}, tell=told.append)
    assert "failing, ranked: failed: no such luck" in told[0] and again == rows
    assert sum(row["status"] == "failed" for row in Store(tmp_path).rows) == 1


# ---- files


def test_tables_hold_every_row_and_no_number_that_is_none(tmp_path: Path) -> None:
    from pyarrow import parquet

    rows = run(tmp_path)
    with (tmp_path / "rows.csv").open() as file:
        lines = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len(lines) == len(table) == len(rows)
    assert tuple(lines[0])[: len(COLUMNS)] == COLUMNS
    assert table[2]["kl"] == rows[2]["kl"]
    assert "nan" not in (tmp_path / "rows.csv").read_text().lower()
    assert "NaN" not in (tmp_path / "rows.jsonl").read_text()


def test_the_report_states_totals_ablation_intervals_and_what_made_it(tmp_path: Path) -> None:
    run(tmp_path)
    text = write_report(Store(tmp_path), device="a machine", command="tlprune bench").read_text()
    for words in ("110 edges (embeddings merged, kv shared)", "resample ablation", "on a machine", "torch 2", "95%"):
        assert words in text
    assert "| random | ranked |" in text and "| pruning | one run per size |" in text
    assert "nan" not in text.lower().replace("nance", "")


def test_an_undefined_f_is_a_word_and_not_a_number(tmp_path: Path) -> None:
    """Without a difference between the full model and the empty circuit there is nothing to be faithful to."""
    task = PLANTED.task
    same = tp.Batch(**{**vars(task.test), "corrupt": task.test.clean})
    stream = task.streams["main"]
    alike = tp.Task("alike", {"main": type(stream)(stream.train, stream.validation, same)}, task.tokenisation)
    rows = tp.benchmark(PLANTED.model, alike, {"random": tp.Random()}, sizes=[2], out=tmp_path)
    assert all(row.get("faithfulness") is None for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    assert "undefined" in write_report(Store(tmp_path), device="CPU").read_text()


# ---- words


def test_sizes_are_sorted_and_each_count_comes_once() -> None:
    assert sizes_of(["10%", "5", 5, "1%"], 100) == [Size("1%", 1), Size("5", 5), Size("10%", 10)]
    assert sizes_of(["0.1%"], 110) == [Size("0.1%", 1)]  # never none at all
    assert sizes_of(["true", "50%"], 110, PLANTED.circuit) == [Size("true", 2), Size("50%", 55)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "none is given"),
        (["many"], "a part such as '1%'"),
        (["0"], "between 1 and 110"),
        (["111"], "'111' is 111"),
        (["200%"], "is 220"),
        (["x%"], "'x%' was given"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sizes_of(sizes, 110)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "at least one method"),
        (["randon"], "Did you mean random"),
        (["random", "random"], "comes twice"),
        (["random:steps=3"], "has no setting steps"),
        (["random:seed"], "written name=value"),
        (["edge-pruning:steps=0"], "steps must be at least 1"),
    ],
)
def test_methods_that_cannot_be_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entries_of(words)


def test_settings_of_methods_are_read_as_what_they_are() -> None:
    (entry,) = entries_of(["edge-pruning:steps=20,recipe=paper,keep_embeddings=True"])
    assert entry.method == tp.EdgePruning(steps=20, recipe="paper", keep_embeddings=True)
    assert entry.label == "edge-pruning:steps=20,recipe=paper,keep_embeddings=True"


# ---- nodes


def test_nodes_share_the_axis_as_all_edges_between_them(tmp_path: Path) -> None:
    rows = run(tmp_path, {"nodes": tp.NodePatching()}, sizes=[1, 5, 100])
    sized = [row for row in rows if row["mode"] == "ranked"]
    assert all(row["effective"] == row["nominal"] <= row["target"] for row in sized)
    cell = sized[0]["cell"]
    for place, row in enumerate(sized):
        circuit = tp.Circuit.load(tmp_path / "circuits" / f"{cell}-{place}.safetensors")
        nodes = tp.Circuit.from_nodes(PLANTED.model, circuit.nodes)
        assert tp.induced(nodes, PLANTED.model).n_effective == len(circuit) == row["nominal"]
    assert sized[0]["roc_auc_nodes"] == 1 and "roc_auc_edges" not in sized[0]


def test_heads_alone_have_no_circuits_smaller_than_all_mlps(tmp_path: Path) -> None:
    """Of two MLPs after each other, the embedding and the logits these are the six edges without any head."""
    rows = run(tmp_path, {"heads": tp.HISP()}, sizes=[2, 6, 30])
    assert [row["target"] for row in rows if row["mode"] == "ranked"] == [6, 30]
    (row,) = [row for row in run(tmp_path, {"heads": tp.HISP()}, sizes=[5]) if row["mode"] != "reference"]
    assert row["status"] == "failed" and "at least 6 effective edges" in row["error"]


def test_one_method_of_each_mode_is_told_apart() -> None:
    modes = {entry.label: entry.modes for entry in entries_of(["eap", "edge-pruning", "acdc", "ugs"])}
    assert modes == {
        "eap": ("ranked",),
        "edge-pruning": ("one run per size", "one run, ranked"),
        "acdc": ("own size", "ranked"),
        "ugs": ("ranked",),
    }
