"""Accuracy in and out of domain: against loops over examples and bootstraps, in tables, plots and the command."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from encoders import encoder_of, hf_model_of
from quizzes import plain_answer, subnetworks_of, task_of

import tlprune as tp
from tlprune.cli import main
from tlprune.learning.bootstrap import interval
from tlprune.studies.collection import Run
from tlprune.studies.domains import Domains
from tlprune.studies.parts import classes_of, parts_of, subcases_of
from tlprune.studies.seed_spread import seed_spread

NAMED = {"classes": ["entailment", "neutral", "contradiction"]}
MERGED = NAMED | {"merge": {"neutral": "non-entailment", "contradiction": "non-entailment"}}
RUNS = [Run(sparsity, seed) for sparsity in (0.25, 0.5) for seed in (0, 1)]


def tasks() -> dict[str, tp.Task]:
    """One of three classes; one of two, into which the model's three are merged, with sub-cases."""
    other = task_of(seed=7, examples=12, accepted=True, kinds=("swap", "embedded", "none of these"))
    kinds = other.test.labels
    assert kinds is not None
    labels = dataclasses.replace(other.test, labels=kinds.clamp(max=1))
    streams = {"main": dataclasses.replace(other.streams["main"], test=labels)}
    other = dataclasses.replace(other, name="hans", options=MERGED, streams=streams)
    return {"home": dataclasses.replace(task_of(), options=NAMED), "away": other}


@pytest.fixture(scope="module")
def found() -> Domains:
    model = encoder_of("bert classes", torch.float32)
    return tp.domains(model, subnetworks_of(model), tasks(), ablation=tp.Zero(), batch_size=8)


def answers(task: tp.Task, run: Run | None) -> list[float]:
    """1 for each example that the plain model gets right, one after the other."""
    model, batch = hf_model_of("bert classes", torch.float32), task.test
    circuit = subnetworks_of(encoder_of("bert classes", torch.float32))[run or RUNS[0]]
    kept = {circuit.sites.name(place) for place in range(len(circuit.sites))} if run is None else {*circuit.names}
    best = [int(plain_answer(model, batch.clean, row, kept).argmax()) for row in range(len(batch))]
    if batch.accepted is None:
        return [float(one == int(batch.answers[row, 0])) for row, one in enumerate(best)]
    return [float(batch.accepted[row, one]) for row, one in enumerate(best)]


def test_accuracies_are_those_of_a_loop_over_examples(found: Domains) -> None:
    away = tasks()["away"]
    assert away.test.labels is not None
    entailed = away.test.answers[:, 0] == 0
    rows = {
        "home": torch.ones(13, dtype=torch.bool),
        "away": torch.ones(12, dtype=torch.bool),
        "away: entailment": entailed,
        "away: non-entailment": ~entailed,
        "away: swap": away.test.labels == 0,
        "away: embedded": away.test.labels == 1,
    }
    assert [*found.domains] == [*rows]
    assert found.main == [*rows][:4]
    for run in (None, *RUNS):
        right = {name: torch.tensor(answers(task, run)) for name, task in tasks().items()}
        for name, own in rows.items():
            values = right[found[name].task][own]
            one = found[name].full if run is None else found[name].subnetworks[run]
            assert one == interval(lambda mean: mean, values), (name, run)
            assert found[name].examples == int(own.sum())
    for name, own in rows.items():
        for sparsity in (0.25, 0.5):
            task = tasks()[found[name].task]
            columns = [torch.tensor(answers(task, Run(sparsity, seed)))[own] for seed in (0, 1)]
            wanted = seed_spread(torch.stack(columns, 1)).as_dict()
            assert found[name].spreads[sparsity].as_dict() == pytest.approx(wanted)


def test_tables_have_the_figures(found: Domains) -> None:
    text = str(found)
    home, spread = found["home"], found["home"].spreads[0.5]
    first = next(line for line in text.splitlines() if line.startswith("home"))
    mean = f"{100 * spread.mean:.1f} [{100 * spread.low:.1f} - {100 * spread.high:.1f}]"
    assert first.split()[:3] == ["home", "13", f"{100 * home.full.value:.1f}"]
    assert first.endswith(mean)
    widest = max((found[name] for name in found.domains if name != "home"), key=lambda one: one.spreads[0.5].range)
    assert text.splitlines()[-1] == (
        f"50% removed: 2 seeds differ by {100 * spread.range:.1f} points (by chance {100 * spread.sampling_range:.1f}) "
        f"on home, and by up to {100 * widest.spreads[0.5].range:.1f} points (by chance "
        f"{100 * widest.spreads[0.5].sampling_range:.1f}) out of domain, on {widest.name}."
    )
    middle = sum(one.spreads[0.25].range for one in found.subcases("away")) / 2
    line = next(line for line in text.splitlines() if line.startswith("away: median of 2 sub-cases"))
    assert line.removeprefix("away: median of 2 sub-cases").split()[0] == f"{100 * middle:.1f}"


def test_a_single_seed_has_no_spread() -> None:
    model = encoder_of("bert classes", torch.float32)
    one = {Run(0.5, None): subnetworks_of(model)[0.5, 0]}
    found = tp.domains(model, one, tasks(), ablation=tp.Zero(), resamples=20)
    assert "one seed, which says nothing of the spread" in str(found)
    assert found["home"].spreads[0.5].deviation is None
    json.dumps(found.as_dict(), allow_nan=False)
    assert len(found.plot_seeds(0.5).data) == 2


def test_plain_data_is_json(found: Domains) -> None:
    data = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    own = data["domains"]["away: swap"]
    assert (own["task"], own["part"], own["subcase"], own["examples"]) == ("away", "swap", True, 4)
    assert [(one["sparsity"], one["seed"], one["value"]) for one in own["subnetworks"]] == [
        (*run, found["away: swap"].subnetworks[run].value) for run in RUNS
    ]
    assert own["by_sparsity"][1]["range"] == found["away: swap"].spreads[0.5].range
    assert data["within"] == "home"
    assert data["ablation"] == {"name": "zero"}


def test_plots_show_the_figures(found: Domains) -> None:
    lines = {one.name: one for one in found.plot().data if one.name}
    assert [*lines] == found.main
    spreads = found["away"].spreads
    points = [found["away"].full.value, spreads[0.25].mean, spreads[0.5].mean]
    assert [*lines["away"].x] == [0, 25, 50]
    assert [*lines["away"].y] == pytest.approx([100 * point for point in points])
    assert lines["home"].line.dash != lines["away"].line.dash
    violins = found.plot_spread(["away"]).data
    assert [[*one.y] for one in violins] == [
        pytest.approx([100 * one.value for one in found["away"].at(sparsity).values()]) for sparsity in (0.25, 0.5)
    ] + [[100 * found["away"].full.value]]
    full, *bars = found.plot_seeds(0.5).data
    assert [one.name for one in bars] == ["seed 0", "seed 1"]
    place = found.main.index("away")
    own = found["away"].subnetworks[Run(0.5, 1)]
    assert bars[1].y[place] + bars[1].error_y.array[place] == pytest.approx(100 * own.high)
    assert bars[1].y[place] - bars[1].error_y.arrayminus[place] == pytest.approx(100 * own.low)
    assert full.y[place] == pytest.approx(100 * found["away"].full.value)


# ---- parts


def test_parts_are_named_by_class() -> None:
    named = tasks()
    assert Counter(classes_of(named["away"])).keys() == {"entailment", "non-entailment"}
    home = named["home"]
    parts = parts_of(home, {"unclear": ["neutral", "contradiction"], "clear": "entailment"})
    assert torch.equal(parts["unclear"], home.test.answers[:, 0] > 0)
    assert torch.equal(parts["clear"], ~parts["unclear"])
    assert parts_of(home) == {}
    assert [*parts_of(named["away"])] == ["entailment", "non-entailment"]
    bare = dataclasses.replace(named["away"], options={})
    assert classes_of(bare) == [str(int(answer)) for answer in bare.test.answers[:, 0]]
    assert parts_of(bare) == {}, "what its authors name is not known here"
    assert [*subcases_of(named["away"])] == ["swap", "embedded"], "the third has no examples"


def test_the_adversarial_part_of_paws_qqp_are_pairs_that_are_no_duplicates() -> None:
    task = task_of("roberta classes")
    task = dataclasses.replace(task, name="paws-qqp", options={"classes": ["not_duplicate", "duplicate"]})
    assert parts_of(task)["adversarial"].tolist() == (task.test.answers[:, 0] == 0).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {}}, "need at least one task but got none"),
        ({"within": "elsewhere"}, "tasks are home, away but elsewhere was named"),
        ({"parts": {"far": {}}}, "tasks are home, away but far was named"),
        ({"parts": {"home": {"odd": "paraphrase"}}}, "classes contradiction, entailment, neutral, but a part"),
        ({"parts": {"away": {"swap": "entailment"}}}, "has sub-cases swap already"),
    ],
)
def test_what_is_not_there_gets_one_error(options: dict[str, Any], message: str) -> None:
    settings = {"tasks": tasks(), "ablation": tp.Zero(), **options}
    model = encoder_of("bert classes", torch.float32)
    with pytest.raises(ValueError, match=message):
        tp.domains(model, subnetworks_of(model), **settings)


def test_what_was_not_measured_gets_one_error(found: Domains) -> None:
    with pytest.raises(ValueError, match="but 'mars' was asked for"):
        found["mars"]
    with pytest.raises(ValueError, match=r"sparsities 0.25, 0.5 but 0.75 was asked for"):
        found.plot_seeds(0.75)
    planted = tp.planted("copy")
    with pytest.raises(ValueError, match="Parts by class need a task with a class"):
        tp.domains(planted.model, {Run(0.5, 0): planted.circuit}, {"it": planted.task}, parts={"it": {"a": "b"}})


# ---- the command

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
LABELS = ["entailment", "neutral", "contradiction"]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of three classes with its tokenizer, as tlprune finetune would have left it."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=5 + len(WORDS), max_position_embeddings=32, num_labels=3, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs of three classes, and pairs of two with sub-cases, where all data are looked for."""
    rng, root, seen = Random(0), tmp_path / "data", set[str]()

    def sentence() -> str:
        while (text := " ".join(rng.choices(WORDS, k=rng.randint(2, 7)))) in seen:
            pass
        seen.add(text)
        return text

    (root / "mnli-subset").mkdir(parents=True)
    for name, count in (("subset_train.json", 600), ("subset_dev.json", 40)):
        rows = [{"text_a": sentence(), "text_b": sentence(), "label": rng.choice(LABELS)} for _ in range(count)]
        (root / "mnli-subset" / name).write_text(json.dumps({str(row): one for row, one in enumerate(rows)}))
    (root / "hans").mkdir()
    lines = ["premise\thypothesis\tlabel\tsubcase"]
    lines += [f"{sentence()}\t{sentence()}\t{row % 2}\tkind{row % 4}" for row in range(60)]
    (root / "hans" / "hans_validation.tsv").write_text("\n".join(lines))
    monkeypatch.setenv("TLPRUNE_DATA", str(tmp_path))
    return root


def prune(bert_folder: Path, out: Path) -> None:
    words = ["core", "prune", "--model", str(bert_folder), "--task", "mnli-subset", "--out", str(out), "--seeds", "1"]
    words += ["2", "--recipe", "short", "--steps", "2", "--batch-size", "8", "--train-count", "30", "--device", "cpu"]
    assert main(words) == 0


def test_the_command(bert_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    prune(bert_folder, out)
    words = ["core", "accuracy", str(out), "--tasks", "hans", "--test-count", "24", "--device", "cpu"]
    capsys.readouterr()
    assert main(words) == 0
    printed = capsys.readouterr().out
    data = json.loads((out / "accuracy.json").read_text())
    names = ["entailment", "non-entailment", "kind0", "kind1", "kind2", "kind3"]
    assert [*data["domains"]] == ["mnli-subset", "hans", *(f"hans: {name}" for name in names)]
    assert [one["examples"] for one in data["domains"].values()] == [24, 24, 12, 12, 6, 6, 6, 6]
    assert data["ablation"]["name"] == "mean"
    assert "among those that the subnetworks were found on" not in printed
    assert "hans: median of 4 sub-cases" in printed
    page = (out / "accuracy.html").read_text()
    assert page.count('class="plotly-graph-div"') == 4
    files = sorted((out / "predictions").rglob("*.safetensors"))
    assert len(files) == 2 * 3
    before = {path: path.stat().st_mtime_ns for path in files}
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == before
    found = tp.Subnetworks.load(out)
    task = tp.tasks.mnli_subset(tp.load(str(bert_folder), device="cpu"), train_count=30, test_count=24)
    mean = tp.Mean(task.discovery.train().clean)
    own = tp.evaluate(tp.load(str(bert_folder), device="cpu"), found[0.5, 1], task, ablation=mean)
    rows = {row.name: float(row.performance.figure("accuracy").mean()) for row in own.rows}
    assert data["domains"]["mnli-subset"]["subnetworks"][0]["value"] == pytest.approx(rows["circuit"])


def test_what_the_command_refuses_and_what_it_notes(
    bert_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert main(["core", "accuracy", str(tmp_path)]) == 2
    assert "holds no study" in capsys.readouterr().err
    prune(bert_folder, out)
    assert main(["core", "accuracy", str(out), "--tasks", "hanz", "--device", "cpu"]) == 2
    assert "hans" in capsys.readouterr().err
    (data_folder / "sst2").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        rows = "\n".join(f"{name.removesuffix('.tsv')} {word}\t1" for word in WORDS)
        (data_folder / "sst2" / name).write_text(f"sentence\tlabel\n{rows}")
    assert main(["core", "accuracy", str(out), "--tasks", "sst2", "--test-count", "6", "--device", "cpu"]) == 2
    assert "sst2 needs a model with 2 outputs (negative, positive)" in capsys.readouterr().err
    train = (data_folder / "mnli-subset" / "subset_train.json").read_text()
    dev = json.loads(train)
    part = {"premise": "text_a", "hypothesis": "text_b", "label": "label"}
    (data_folder / "mnli").mkdir()
    lines = ["\t".join(part), *("\t".join(one[name] for name in part.values()) for one in dev.values())]
    for name in ("dev_matched.tsv", "train.tsv"):
        own = lines if name != "train.tsv" else [lines[0], *(line.replace("\t", " one\t", 1) for line in lines[1:])]
        (data_folder / "mnli" / name).write_text("\n".join(own))
    assert main(["core", "accuracy", str(out), "--tasks", "mnli", "--device", "cpu"]) == 0
    assert "note: 530 test examples of mnli are among those" in capsys.readouterr().out
    (data_folder / "mnli-subset" / "subset_train.json").write_text(train.replace("one two", "two one"))
    assert main(["core", "accuracy", str(out), "--device", "cpu"]) == 2
    assert "test examples may be ones that they were found on" in capsys.readouterr().err
