"""``tlprune saliency`` on tiny BERTs: cells are the parts called by hand, grids go on, errors are rows."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned_classifiers import saved_classifier, zeros_where
from test_finetuning import KilledError, bert_folder, data_folder, same, weights  # noqa: F401

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.cli import main
from tlprune.finetuning import FineTune, finetune, prune
from tlprune.finetuning.removing import places_of
from tlprune.finetuning.training import Training
from tlprune.pruning import grid as cells
from tlprune.tasks.labelled.classifying import classification

STRATEGIES = ("LayerMagWeight", "GlobalGradCAM")
RATIOS = (1.25, 1.75)
FIGURES = ("accuracy", "matthews", "f1", "loss")


@pytest.fixture(scope="module")
def classifier(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return saved_classifier(tmp_path_factory.mktemp("classifier"), bert_folder)


@pytest.fixture
def grid(classifier: Path, data_folder: Path, tmp_path: Path) -> tp.SaliencyGrid:  # noqa: F811
    return tp.SaliencyGrid(
        model=str(classifier), out=tmp_path / "grid", strategies=STRATEGIES, ratios=RATIOS, data_dir=data_folder,
        train_count=48, dev_count=40, batches=2, device="cpu", rate=1e-3, max_length=16, checkpoint_every=1,
    )  # fmt: skip


def by_hand(grid: tp.SaliencyGrid, folder: Path, strategy: str, ratio: float) -> tp.Circuit:
    """The circuit of one cell, scored alone."""
    model = tp.load(folder, device="cpu")
    task = classification(
        model, "sst2", source=grid.data_dir, train_count=48, validation_count=40, max_length=16, seed=0
    )
    return tp.saliency_strategy(strategy, compression=ratio, batches=2).find(model, task)


def stage(grid: tp.SaliencyGrid, folder: Path, circuit: Path, out: Path) -> FineTune:
    return FineTune(
        model=str(folder), out=out, circuit=circuit, data_dir=grid.data_dir, train_count=48, dev_count=40,
        batch_size=16, epochs=1, rate=1e-3, betas=(0.9, 0.99), warmup=0.0, decay="none", weight_decay=0.0, clip=None,
        max_length=16, device="cpu",
    )  # fmt: skip


def rows_of(found: tp.GridResult, strategy: str) -> list[Any]:
    return [row for row in found.rows if row["strategy"] == strategy]


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_grid_is_its_parts_called_by_hand(
    grid: tp.SaliencyGrid, classifier: Path, epochs: int, tmp_path: Path
) -> None:
    found = tp.saliency_grid(dataclasses.replace(grid, epochs=epochs, models="kept"))
    model = tp.load(classifier, device="cpu")
    sites = tp.prunable(model)
    assert [row["strategy"] for row in found.rows] == ["whole", *(one for one in STRATEGIES for _ in RATIOS)]
    (whole,) = rows_of(found, "whole")
    assert (whole["removed"], whole["compression_ratio"]) == (0, tp.savings(model).compression_ratio)
    for strategy in STRATEGIES:
        for ratio, row in zip(RATIOS, rows_of(found, strategy), strict=True):
            circuit = by_hand(grid, classifier, strategy, ratio)
            path = tmp_path / f"{strategy}-{ratio}.safetensors"
            circuit.save(path)
            own = stage(grid, classifier, path, tmp_path / f"{strategy}-{ratio}")
            facts = (finetune if epochs else prune)(own)
            cell = grid.out / "sst2" / "seed-0" / strategy / f"compression-{ratio}"
            assert torch.equal(tp.Circuit.load(cell / "circuit.safetensors").kept, circuit.kept)
            assert same(weights(cell), weights(own.out))
            assert {name: row[f"test_{name}"] for name in FIGURES} == facts["test"]
            assert all(row[f"test_{name}_low"] <= row[f"test_{name}"] <= row[f"test_{name}_high"] for name in FIGURES)
            kept = round(tp.density_for(model, sites, ratio) * len(sites))
            assert (row["kept"], row["removed"], row["zero"]) == (kept, len(sites) - kept, len(sites) - kept)
            assert row["density"] == kept / len(sites)
            saved = tp.savings(model, circuit, length=16)
            assert (row["size_nz"], row["theoretical_speedup"]) == (saved.size_nz, saved.theoretical_speedup)
            assert row["steps"] == 3 * epochs
    expected = tp.mask_overlap({one: by_hand(grid, classifier, one, RATIOS[1]) for one in STRATEGIES})
    assert [one.target for one in found.overlaps] == ["compression-1.25", "compression-1.75"]
    assert found.overlaps[1].masks == expected
    assert found.overlaps[1].rows()[0]["chance"] == expected.pairs[0].chance


def test_tickets_begin_with_the_weights_before_the_dense_training(
    grid: tp.SaliencyGrid, bert_folder: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """They are scored after it; each task and seed has one pass for all strategies and sizes."""
    begins, passes, step, score = {}, [], Training.step, cells.saliency_scores

    def noted(self: Training) -> dict[str, Any]:
        if self.done == 0:
            begins[str(self.plan.out.relative_to(grid.out))] = {
                name: value.clone() for name, value in self.own.state_dict().items()
            }
        return step(self)

    def counted(model: Any, task: Any, methods: Any, **options: Any) -> Any:
        passes.append((backend_of(model).fingerprint(), len(methods), methods[0].seed))
        return score(model, task, methods, **options)

    monkeypatch.setattr(Training, "step", noted)
    monkeypatch.setattr(cells, "saliency_scores", counted)
    plan = dataclasses.replace(
        grid, model=str(bert_folder), dense_epochs=1, epochs=1, begin="rewound", seeds=(0, 3), densities=(0.4, 0.2),
        ratios=(),
    )  # fmt: skip
    found = tp.saliency_grid(plan)
    assert not found.failed and len(found.rows) == 10
    for seed, (scored, methods, own) in zip((0, 3), passes, strict=True):
        folder = plan.out / "sst2" / f"seed-{seed}"
        assert (methods, own) == (4, seed)
        assert scored == backend_of(tp.load(folder / "dense", device="cpu")).fingerprint()
        start = weights(folder / "start")
        for strategy in STRATEGIES:
            begun = begins[f"sst2/seed-{seed}/{strategy}/density-0.4"]
            assert all(torch.equal(value[value != 0], start[name][value != 0]) for name, value in begun.items())
            cell = folder / strategy / "density-0.4"
            assert not (cell / "model.safetensors").exists() and (cell / "tlprune.json").exists()
    assert {row["zero"] for row in found.rows if row["target"] == "density-0.2"} == {
        row["weights"] - round(0.2 * row["weights"]) for row in found.rows if row["weights"]
    }


@pytest.mark.parametrize("stop", ["GlobalGradCAM/compression-1.25", "LayerMagWeight/compression-1.75"])
def test_a_stopped_grid_goes_on(
    grid: tp.SaliencyGrid, stop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = dataclasses.replace(grid, epochs=1)
    whole = tp.saliency_grid(dataclasses.replace(grid, out=tmp_path / "whole"))
    step = Training.step

    def dying(self: Training) -> dict[str, Any]:
        if str(self.plan.out).endswith(stop) and self.done == 2:
            raise KilledError
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", dying)
        with pytest.raises(KilledError):
            tp.saliency_grid(grid)
    monkeypatch.setattr(cells, "saliency_scores", lambda *_, **__: pytest.fail("circuits are found once"))
    assert tp.saliency_grid(grid).rows == whole.rows
    monkeypatch.setattr(Training, "step", lambda self: pytest.fail("a finished cell trains nothing"))
    again = tp.saliency_grid(grid)
    assert again == whole
    assert [json.loads(line) for line in (grid.out / "rows.jsonl").read_text().splitlines()] == list(whole.rows)


def test_a_cell_that_fails_is_a_row_and_is_tried_again(grid: tp.SaliencyGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cells.prune

    def failing(plan: FineTune) -> dict[str, Any]:
        if plan.out.parts[-2:] == ("LayerMagWeight", "compression-1.75"):
            raise FloatingPointError("a number is none")
        return whole(plan)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "prune", failing)
        found = tp.saliency_grid(grid)
    assert [row["error"] for row in found.failed] == ["a number is none"] and len(found.rows) == 5
    assert "LayerMagWeight compression-1.75 seed 0: a number is none" in str(found)
    assert all(len(trace.x) == count for trace, count in zip(found.plot().data, (1, 2), strict=True))
    assert not tp.saliency_grid(grid).failed
    with monkeypatch.context() as patch:
        patch.setattr(cells, "saliency_scores", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no memory")))
        more = tp.saliency_grid(dataclasses.replace(grid, strategies=("LayerMagWeight", "RandomPruning")))
    assert len(more.failed) == 4


def test_more_strategies_sizes_and_seeds_are_added(grid: tp.SaliencyGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(grid, strategies=STRATEGIES[:1])
    before = tp.saliency_grid(small).rows
    seen: list[str] = []
    score = cells.saliency_scores

    def noted(model: Any, task: Any, methods: Any, **options: Any) -> Any:
        seen.extend(f"{type(one.criterion).__name__} {one.compression}" for one in methods)
        return score(model, task, methods, **options)

    monkeypatch.setattr(cells, "saliency_scores", noted)
    after = tp.saliency_grid(grid).rows
    assert seen == ["GradCAM 1.25", "GradCAM 1.75"] and after[: len(before)] == before
    with pytest.raises(ValueError, match=r"another .*batches \(2, now 3\)"):
        tp.saliency_grid(dataclasses.replace(grid, batches=3))
    with pytest.raises(ValueError, match=r"another .*train_count"):
        tp.saliency_grid(dataclasses.replace(grid, train_count=32))


def test_the_command_writes_tables_and_pages(grid: tp.SaliencyGrid, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["saliency", "--model", grid.model, "--out", str(grid.out), "--strategies", *STRATEGIES]
    words += ["--densities", "0.5", "0.25", "--data-dir", str(grid.data_dir), "--train-count", "48"]
    assert main([*words, "--dev-count", "40", "--batches", "2", "--device", "cpu", "--tasks", "sst2"]) == 0
    out = capsys.readouterr().out
    told = json.loads((grid.out / "grid.json").read_text())
    with open(grid.out / "table.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [int(row["kept"]) for row in table[1:]] == [row["kept"] for row in told["rows"][1:]]
    total = told["rows"][1]["weights"]
    assert [row["kept"] for row in told["rows"][1:]] == 2 * [round(0.5 * total), round(0.25 * total)]
    assert f"{round(0.25 * total):,}" in out and "GlobalGradCAM" in out
    assert [(one["first"], one["second"], one["target"]) for one in told["overlaps"]] == [
        (*STRATEGIES, "density-0.5"),
        (*STRATEGIES, "density-0.25"),
    ]
    assert "Mean overlap" in (grid.out / "grid.html").read_text()
    assert (grid.out / "overlaps.csv").read_text().count("\n") == 3


def test_regressions_are_told_by_correlations(
    grid: tp.SaliencyGrid, bert_folder: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    words = ("one two", "three four five", "six great", "great great one", "ten")
    rows = [f"g\tf\ty\t{n}\t{n % 6}.0\t{words[n % 5]} {words[n // 5 % 5]}\t{words[n // 25 % 5]}" for n in range(90)]
    data = tmp_path / "data" / "stsb"
    data.mkdir(parents=True)
    (data / "sts-train.csv").write_text("\n".join(rows[:60]))
    (data / "sts-dev.csv").write_text("\n".join(rows[60:]))
    plan = dataclasses.replace(
        grid, model=str(bert_folder), tasks=("stsb",), data_dir=data.parent, train_count=32, dev_count=20, epochs=1
    )
    found = tp.saliency_grid(plan)
    row = found.rows[-1]
    assert not found.failed and {"test_pearson", "test_spearman", "test_loss_low"} <= row.keys()
    trace = found.plot().data[0]
    assert list(trace.y) == [one["test_pearson"] for one in rows_of(found, STRATEGIES[0])]
    assert list(trace.x) == [one["compression_ratio"] for one in rows_of(found, STRATEGIES[0])]


def test_what_cannot_be_done_is_refused_before_any_training(
    grid: tp.SaliencyGrid, bert_folder: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(Training, "__init__", lambda *_, **__: pytest.fail("nothing is trained"))
    for change, said in (
        ({"strategies": ("LayerGradCam",)}, "Did you mean LayerGradCAM"),
        ({"ratios": (0.5,)}, "at least 1, but is 0.5"),
        ({"densities": (0.5,)}, "Leave one out"),
        ({"tasks": ("ioi",)}, "There is no data set 'ioi'"),
        ({"strategies": ()}, "strategies must be given"),
        ({"ratios": (1.5, 1.5)}, "sizes must be given, each once"),
        ({"begin": "rewound", "epochs": 2}, "dense_epochs is 0"),
        ({"batches": 0}, "batches must be at least 1"),
    ):
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(grid, **change)
    with pytest.raises(ValueError, match=r"lies between 1 and .* but is 40"):
        tp.saliency_grid(dataclasses.replace(grid, dense_epochs=1, epochs=1, ratios=(1.5, 40.0)))
    with pytest.raises(ValueError, match=r"has no classifier\.bias"):
        tp.saliency_grid(dataclasses.replace(grid, out=grid.out / "new", model=str(bert_folder)))
    with pytest.raises(ValueError, match="part"):
        tp.saliency_grid(dataclasses.replace(grid, out=grid.out / "other", test="none"))


@pytest.mark.parametrize(("field", "value"), [("rate", 0.5), ("batches", 1), ("train_count", 30), ("epochs", 1)])
def test_a_grid_goes_on_with_its_own_settings_only(grid: tp.SaliencyGrid, field: str, value: Any) -> None:
    tp.saliency_grid(dataclasses.replace(grid, strategies=("LayerMagWeight",)))
    rows = (grid.out / "rows.jsonl").read_text()
    with pytest.raises(ValueError, match=rf"another {field} \(.*, now {value}\)"):
        tp.saliency_grid(dataclasses.replace(grid, **{field: value}))
    assert (grid.out / "rows.jsonl").read_text() == rows


def test_the_shipped_zeros_are_zero(grid: tp.SaliencyGrid, classifier: Path) -> None:
    """What a circuit removes of Hugging Face's tensors is 0 in a model that was trained behind the cut."""
    tp.saliency_grid(dataclasses.replace(grid, epochs=1, models="kept"))
    cell = grid.out / "sst2" / "seed-0" / "GlobalGradCAM" / "compression-1.75"
    where = tp.Circuit.load(cell / "circuit.safetensors")
    assert zeros_where(weights(cell), places_of(tp.load(classifier, device="cpu"), where.complement))
