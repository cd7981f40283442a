"""A subnetwork written as a smaller model: what it saves, and that it says what the masked model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoders import hf_model_of, prompts
from test_finetuning import bert_folder, data_folder  # noqa: F401

import tlprune as tp
from tlprune.cli import main
from tlprune.masking.means import MeasuredMean
from tlprune.studies import shrinkage as module
from tlprune.studies.collection import Run, Subnetworks
from tlprune.studies.searching import MEANS
from tlprune.studies.shrinkage import Size, SpeedUp, outputs, run, shrinkage, speed_up
from tlprune.task import Batch

NAMES = ("bert classes", "bert number", "bert words", "bert choices", "bert", "roberta classes", "roberta words")


def batch_of(name: str, padding: str = "right") -> Batch:
    tokens = prompts(name, padding=padding, examples=5)
    one = torch.zeros(5, 1, dtype=torch.long)
    return Batch(torch.arange(5), tokens, tokens, one, one, one)


def pruned(name: str) -> tp.Masked:
    model = tp.bridge(hf_model_of(name))
    sites = tp.heads(model) + tp.mlps(model)
    kept = torch.arange(len(sites)) % 3 != 0
    return tp.Masked(model, tp.Circuit(sites, kept), tp.Mean(prompts(name, seed=2, padding="right")).measure(model))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_masked_model(name: str) -> None:
    masked = pruned(name)
    small = tp.shrink(masked)
    found = shrinkage(masked, small, batch_of(name))
    assert found.difference < 1e-12
    assert found.examples == 5 and found.speed is None
    with torch.no_grad():
        next(parameter for parameter in small.parameters() if parameter.shape == (24,)).add_(0.5)
    assert shrinkage(masked, small, batch_of(name)).difference > 1e-3, "a model that differs is told"


@pytest.mark.parametrize("name", ["bert classes", "roberta words"])
def test_parameters_are_counted_once_and_embeddings_apart(name: str) -> None:
    masked = pruned(name)
    whole, found = hf_model_of(name), shrinkage(masked, tp.shrink(masked), batch_of(name))
    tables = 24 * (31 + 16 + (2 if name.startswith("bert") else 1))
    assert found.whole == Size(whole.num_parameters(), tables)
    assert found.small.embeddings == tables
    # Of 12 heads and 3 MLPs, every third is gone: 4 heads and MLP 0.
    assert found.whole.others - found.small.others == 4 * (4 * 24 * 6 + 3 * 6) + 20 * (2 * 24 + 1)


def test_left_padding_of_a_decoder() -> None:
    model = tp.load("testbed", device="cpu")
    masked = tp.Masked(model, tp.Circuit.from_names(tp.heads(model), ["a0.h1", "a2.h3"]), tp.Zero())
    ids, mask = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    tokens, last = tp.Tokens(ids, mask), torch.full((2, 2), 3)
    last[:, 0] = 2
    batch = Batch(torch.arange(2), tokens, tokens, last, last, last)
    assert shrinkage(masked, tp.shrink(masked), batch).difference < 1e-4
    assert outputs(tp.shrink(masked), batch, predicts="tokens").shape == (2, 2, model.cfg.d_vocab)


class Clock:
    """Runs of the whole model take 6 seconds, of the other 2, the first ones 100 more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, whole: Any) -> None:
        self.now, self.runs, self.whole = 0.0, list[str](), whole
        monkeypatch.setattr(module, "run", self.run)
        monkeypatch.setattr(module.time, "process_time", lambda: self.now)

    def run(self, model: Any, tokens: tp.Tokens, *, vectors: Any) -> None:
        assert vectors is None
        assert not torch.is_grad_enabled()
        self.now += (6.0 if model is self.whole else 2.0) + (100.0 if len(self.runs) < 2 else 0.0)
        self.runs.append("whole" if model is self.whole else "small")


def test_models_are_timed_in_turns_and_the_first_run_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, small = hf_model_of("bert classes"), hf_model_of("bert classes")
    clock = Clock(monkeypatch, whole)
    found = speed_up(whole, small, prompts("bert classes"), rounds=3)
    assert clock.runs == ["whole", "small"] * 4
    assert found == SpeedUp(((6.0, 2.0),) * 3, examples=3, tokens=7)
    assert found.ratio == 3.0
    assert SpeedUp(((6.0, 2.0), (60.0, 15.0), (8.0, 1.0)), 3, 7).ratio == 4.0, "of rounds, not of medians"
    with pytest.raises(ValueError, match="at least 1 round but got 0"):
        speed_up(whole, small, prompts("bert classes"), rounds=0)


def test_what_is_said_of_it() -> None:
    found = module.Shrinkage(Size(1000, 200), Size(600, 200), 3e-7, 12, SpeedUp(((0.6, 0.2),) * 9, 8, 32))
    assert str(found).splitlines() == [
        "parameters          whole  shrunk   left",
        "all                 1,000     600  60.0%",
        "without embeddings    800     400  50.0%",
        "largest difference of an output from the masked model's: 3.0e-07 (12 prompts)",
        "3.00 times as fast: 0.2000 s for 0.6000 s, 8 prompts of 32 tokens, medians of 9",
    ]
    data = json.loads(json.dumps(found.as_dict()))
    assert data["small"] == {"parameters": 600, "embeddings": 200} and data["speed"]["ratio"] == pytest.approx(3)
    figure = found.plot()
    assert [tuple(bar.y) for bar in figure.data] == [(1000, 800), (600, 400)]


# ---- the command


@pytest.fixture
def study(bert_folder: Path, data_folder: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A study of a random classifier on a disk, whose subnetworks keep every other head and MLP."""
    folder, place = tmp_path / "classifier", tmp_path / "study"
    config = transformers.BertConfig.from_pretrained(bert_folder, num_labels=2)
    transformers.BertForSequenceClassification.from_pretrained(bert_folder, config=config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(bert_folder).save_pretrained(folder)
    model = tp.load(folder, device="cpu")
    told = {"source": str(data_folder), "train_count": 40, "validation_count": 20}
    task = tp.tasks.sst2(model, **told)
    sites = tp.heads(model) + tp.mlps(model)
    circuits = {Run(0.5, seed): tp.Circuit(sites, torch.arange(len(sites)) % 2 == seed) for seed in (0, 1)}
    place.mkdir()
    Subnetworks(circuits).save(place)
    tp.Mean(task.discovery.train().clean).measure(model).save(place / MEANS)
    (place / "study.json").write_text(json.dumps({"model": str(folder), "task": "sst2", "task_options": told}))
    return place


def test_the_command_writes_a_model_that_can_be_used_at_once(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    words = ["core", "shrink", str(study), "--sparsity", "0.5", "--seed", "1", "--out", str(out), "--device", "cpu"]
    assert main([*words, "--measure"]) == 0
    printed = capsys.readouterr().out
    assert "without embeddings" in printed and "times as fast" in printed
    figures = json.loads((out / "shrinkage.json").read_text())
    assert figures["difference"] < 1e-5 and figures["examples"] == 60 and figures["speed"]["rounds"] == 9
    small = transformers.AutoModelForSequenceClassification.from_pretrained(out, trust_remote_code=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert small.num_parameters() == figures["small"]["parameters"] < figures["whole"]["parameters"]
    told = json.loads((study / "study.json").read_text())
    model = tp.load(told["model"], device="cpu")
    circuit = Subnetworks.load(study)[0.5, 1]
    masked = tp.Masked(model, circuit, MeasuredMean.load(study / MEANS))
    found = tokenizer(["one three five", "two"], padding=True, return_tensors="pt")
    tokens = tp.Tokens(found["input_ids"], found["attention_mask"], found["token_type_ids"])
    with torch.no_grad():
        assert float((run(small, tokens).logits - masked(tokens)[:, 0]).abs().max()) < 1e-5


def test_the_command_names_what_there_is(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["core", "shrink", str(study), "--out", str(tmp_path / "small"), "--device", "cpu"]
    assert main([*words, "--sparsity", "0.25"]) == 2
    assert "of sparsity 0.5 but 0.25 was asked for" in capsys.readouterr().err
    assert main([*words, "--seed", "7"]) == 2
    assert "seeds 0, 1 but 7 was asked for" in capsys.readouterr().err
    assert main(["core", "shrink", str(tmp_path), "--out", str(tmp_path / "small")]) == 2
    assert "holds no study" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
