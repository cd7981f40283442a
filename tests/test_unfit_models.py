"""Models that do not fit a task are refused in one line, before any example is encoded or any mask trained."""

from __future__ import annotations

from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import hf_model_of
from hooked import NEEDS_HOOKED_TRANSFORMER

import tlprune as tp
from tlprune.cli import main
from tlprune.tasks import Labelled, classification

CLASSES = {1: (), 2: ("negative", "positive"), 3: ("entailment", "neutral", "contradiction")}
FEW = {"train_count": 8, "validation_count": 4}
WORDS = ("John", "Mary", "Paul", "kind", "brave", "is", "and", "so", "now", "not")


def data(outputs: int, count: int = 36) -> Labelled:
    texts = tuple(map(" ".join, islice(product(WORDS, repeat=3), count)))
    labels = tuple(float(row) if outputs == 1 else row % outputs for row in range(len(texts)))
    return Labelled("mine", texts, None, labels, CLASSES[outputs])


def model_of(outputs: int, tokenizer: Any, load: Any = tp.bridge, name: str = "bert classes") -> Any:
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    model = load(hf_model_of(name, torch.float32, **sizes, **({"num_labels": outputs} if outputs else {})))
    model.tokenizer = tokenizer
    return model


@pytest.mark.parametrize("load", [tp.bridge, pytest.param(tp.from_huggingface, marks=NEEDS_HOOKED_TRANSFORMER)])
@pytest.mark.parametrize("given", CLASSES)
def test_a_task_needs_as_many_outputs_as_it_has_classes(given: int, load: Any, testbed: Any) -> None:
    model = model_of(given, testbed, load)
    for needed, names in CLASSES.items():
        if needed == given:
            assert len(classification(model, {"train": data(needed)}, **FEW).test) == 24
            continue
        with pytest.raises(ValueError, match=f"mine needs a model with {needed} output.*has {given} output") as found:
            classification(model, {"train": data(needed)}, **FEW)
        assert (", ".join(names) or "a regression") in str(found.value)
        assert "tlprune finetune" in str(found.value)


def test_outputs_are_those_that_are_named(testbed: Any) -> None:
    """Three outputs count as two classes, as in HANS, where it is said how."""
    options: dict[str, Any] = {"classes": CLASSES[3], "merge": {"entailment": "positive", "neutral": "negative"}}
    options["merge"]["contradiction"] = "negative"
    assert classification(model_of(3, testbed), {"train": data(2)}, **FEW, **options).test.accepted is not None
    with pytest.raises(ValueError, match=r"needs a model with 3 outputs \(entailment.*has 2 outputs"):
        classification(model_of(2, testbed), {"train": data(2)}, **FEW, **options)


def test_a_pooled_vector_is_no_class(testbed: Any) -> None:
    with pytest.raises(ValueError, match=r"needs a model with 2 outputs .* has 24 outputs"):
        classification(model_of(0, testbed, name="bert"), {"train": data(2)}, **FEW)


def test_tasks_of_words_need_a_model_that_predicts_them(testbed: Any) -> None:
    model = model_of(2, testbed)
    for task in (tp.tasks.ioi, tp.tasks.induction):
        with pytest.raises(ValueError, match=r"predicts tokens, but this .* gives a class or a number per prompt"):
            task(model)
    with pytest.raises(ValueError, match=r"gives a class or a number per prompt, but this .* predicts tokens"):
        classification(model_of(0, testbed, name="bert words"), {"train": data(2)}, **FEW)


def test_the_heuristic_core_of_a_regression_is_refused_before_training(testbed: Any, tmp_path: Path) -> None:
    model = model_of(1, testbed)
    task = classification(model, {"train": data(1)}, **FEW)
    metrics = tmp_path / "metrics.jsonl"
    with pytest.raises(ValueError, match=r"needs classes or tokens but 'mine' is a regression.*SquaredError"):
        tp.HeuristicCore(recipe="short").find(model, task, metrics=metrics)
    assert not metrics.exists()


# ---- on the command line


@pytest.fixture
def folder(tmp_path: Path, testbed: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A classifier of two classes, and data of two classes, of three and with a column of another name."""
    model = hf_model_of("bert classes", torch.float32, vocab_size=len(testbed), num_labels=2)
    model.save_pretrained(tmp_path / "model")
    testbed.save_pretrained(tmp_path / "model")
    tables = {
        "sst2": (("sentence", "label"), [(text, row % 2) for row, text in enumerate(data(2, 560).texts)]),
        "qqp": (
            ("question1", "other", "is_duplicate"),
            [(text, "now", row % 2) for row, text in enumerate(data(2, 560).texts)],
        ),
        "mnli": (
            ("sentence1", "sentence2", "gold_label"),
            [(text, "now", CLASSES[3][row % 3]) for row, text in enumerate(data(3, 560).texts)],
        ),
    }
    for name, (columns, rows) in tables.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        dev = "dev_matched.tsv" if name == "mnli" else "dev.tsv"
        for file, part in (("train.tsv", rows[:540]), (dev, rows[540:])):
            lines = ["\t".join(map(str, row)) for row in (columns, *part)]
            (tmp_path / "data" / name / file).write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("TLPRUNE_DATA", str(tmp_path))
    return tmp_path


CASES: dict[str, tuple[list[str], str]] = {
    "another number of classes": (["--task", "mnli"], "mnli needs a model with 3 outputs"),
    "a column of another name": (["--task", "qqp"], "question2, is_duplicate but there are question1, other"),
    "no such data": (["--task", "cola"], "cola"),
    "a task of words": (["--task", "ioi"], "needs a model that predicts tokens"),
    "no examples": (["--task", "sst2", "--train-count", "0"], "Ask for between 1 and"),
    "percent": (["--task", "sst2", "--sparsities", "50"], "between 0 and 1 but is 50.0. For 50% removed give 0.5."),
    "no seeds": (["--task", "sst2", "--seeds"], "Give some of each"),
    "no such sites": (["--task", "sst2", "--pattern", "x*"], "matches none of this model's nodes"),
    "no steps": (["--task", "sst2", "--steps", "0"], "steps must be at least 1 but is 0"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_command_refuses_in_one_line(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = CASES[case]
    few = [] if "--train-count" in words or "ioi" in words else ["--train-count", "8"]
    shared = ["--model", str(folder / "model"), "--out", str(folder / "study"), "--recipe", "short", "--device", "cpu"]
    assert main(["core", "prune", *shared, *words, *few]) == 2
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    assert found.startswith("tlprune: error: ")
    assert message in found
    if case in ("percent", "no seeds"):
        assert not list(folder.glob("study/means*")), "nothing was measured before"


def test_discover_refuses_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["--model", str(folder / "model"), "--method", "heuristic-core", "--out", str(folder / "run")]
    for words, message in ((["--task", "mnli"], "mnli needs a model with 3"), (["--task", "ioi"], "predicts tokens")):
        assert main(["discover", *shared, *words, "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err
        assert not (folder / "run").exists()
    assert main(["discover", *shared, "--task", "sst2", "--sparsity", "50"]) == 2
    assert "For 50% removed give 0.5." in capsys.readouterr().err
