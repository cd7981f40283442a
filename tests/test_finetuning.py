"""Fine-tuning of a tiny random BERT: it learns, keeps its best weights, goes on bit for bit, and saves what loads."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tlprune.cli import main
from tlprune.finetuning import FineTune, finetune
from tlprune.finetuning import training as measured
from tlprune.finetuning.command import METRICS, PROVENANCE, splits_of
from tlprune.finetuning.measuring import figures_of, inputs_of, loss_of, outputs_on
from tlprune.finetuning.plan import batches
from tlprune.finetuning.training import CHECKPOINT, Training
from tlprune.tasks import Labelled
from tlprune.tasks.labelled.encoding import encode

FILLERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
VERDICTS = ["bad", "fine", "great"]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT without a classifier, and its tokenizer, as someone would have them on a disk."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLERS, *VERDICTS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **shape)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of numbers with one verdict among them, which decides."""
    folder, rng, seen = tmp_path_factory.mktemp("data"), Random(0), set[str]()
    for name, count in (("train.tsv", 400), ("dev.tsv", 60)):
        rows = {}
        while len(rows) < count:
            words, verdict = rng.choices(FILLERS, k=rng.randint(2, 9)), rng.choice([0, 2])
            words.insert(rng.randint(0, len(words)), VERDICTS[verdict])
            if (text := " ".join(words)) not in seen:
                rows[text] = verdict // 2
        seen |= {*rows}
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows.items())]
        (folder / name).write_text("\n".join(lines))
    return folder


@pytest.fixture
def plan(bert_folder: Path, data_folder: Path, tmp_path: Path) -> FineTune:
    return FineTune(
        model=str(bert_folder), out=tmp_path / "run", data_dir=data_folder, dev_count=60, rate=3e-3, epochs=4,
        batch_size=16, device="cpu", checkpoint_every=7,
    )  # fmt: skip


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def test_it_learns_and_saves_a_model_that_loads(plan: FineTune, bert_folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    state = torch.random.get_rng_state()
    facts = finetune(plan)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert facts["test"]["accuracy"] >= 0.95
    assert facts["test_intervals"].keys() == facts["test"].keys()
    low, high = facts["test_intervals"]["loss"]
    assert low < facts["test"]["loss"] < high
    assert facts == json.loads((plan.out / PROVENANCE).read_text())
    assert facts["data"]["counts"] == {"train": 340, "validation": 60, "test": 60}
    assert facts["settings"]["seed"] == 0
    assert facts["circuit"] is None
    assert facts["versions"]["accelerate"]
    model = AutoModelForSequenceClassification.from_pretrained(plan.out)
    tokenizer = AutoTokenizer.from_pretrained(plan.out)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    test = splits_of(plan)["test"]
    rows = encode(tokenizer, test.prompts(), max_length=128)
    again = figures_of(outputs_on(model, rows, tokenizer, device=torch.device("cpu")), test)
    assert again == pytest.approx(facts["test"], abs=1e-6)
    assert sorted(path.name for path in plan.out.glob("*.safetensors")) == ["model.safetensors"]
    steps = records(plan.out)
    assert [record["step"] for record in steps] == [*range(1, 4 * 22 + 1)]
    assert [record["step"] for record in steps if "dev" in record] == [*range(11, 89, 11)]
    assert steps[-1]["loss"] < 0.2 < steps[0]["loss"]
    measured = {record["step"]: record["dev"]["accuracy"] for record in steps if "dev" in record}
    assert facts["dev"]["accuracy"] == max(measured.values()) == measured[facts["best_step"]]
    assert facts["best_step"] == min(step for step, value in measured.items() if value == max(measured.values()))


def test_the_weights_saved_are_those_of_the_best_step(plan: FineTune, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first measurement is made the best; the weights are those of a run that stops there."""
    measured = iter([0.9, 0.5, 0.9, 0.1])
    real = Training.figures

    def figures(self: Training, split: str) -> dict[str, float]:
        return {"accuracy": next(measured)} if split == "validation" else real(self, split)

    monkeypatch.setattr(Training, "figures", figures)
    seen: dict[int, dict[str, Tensor]] = {}
    step = Training.step

    def noted(self: Training) -> dict[str, Any]:
        record = step(self)
        seen[self.done] = {name: value.clone() for name, value in self.own.state_dict().items()}
        return record

    monkeypatch.setattr(Training, "step", noted)
    facts = finetune(dataclasses.replace(plan, epochs=2))
    assert facts["best_step"] == 11
    assert same(weights(plan.out), seen[11])
    assert not same(seen[11], seen[44])


def test_a_figure_that_is_not_known_is_null(
    plan: FineTune, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measured, "figures_of", lambda outputs, examples: {"accuracy": math.nan})
    assert main(command(plan)) == 0
    assert "dev (60): accuracy -" in capsys.readouterr().out
    text = (plan.out / PROVENANCE).read_text()
    facts = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert facts["test"] == {"accuracy": None}
    assert facts["best_step"] == 1


class KilledError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 10, 12, 30, 44])
def test_a_run_that_was_killed_goes_on_bit_for_bit(
    plan: FineTune, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it dies before the first checkpoint, between two, behind the best step, or at the end."""
    plan = dataclasses.replace(plan, epochs=2)
    whole = finetune(dataclasses.replace(plan, out=tmp_path / "whole"))
    step, save = Training.step, Training.save

    def dying(self: Training) -> dict[str, Any]:
        if self.done == stop:
            raise KilledError
        return step(self)

    def dying_at_the_end(self: Training, folder: Path, settings: Any) -> None:
        save(self, folder, settings)
        if self.done == stop:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", dying)
        patch.setattr(Training, "save", dying_at_the_end)
        with pytest.raises(KilledError):
            finetune(plan)
    assert (plan.out / CHECKPOINT).exists() == (stop >= 7)
    torch.manual_seed(stop)  # the state of the process does not matter
    assert finetune(plan) == whole
    assert same(weights(plan.out), weights(tmp_path / "whole"))
    assert records(plan.out) == records(tmp_path / "whole")


def test_models_under_way_stay_where_they_are_asked_for(plan: FineTune) -> None:
    """Those after so many steps, the same whatever is kept beside them."""
    plan = dataclasses.replace(plan, epochs=1, keep_every=11)
    finetune(plan)
    kept = sorted(int(path.name.removeprefix("step-")) for path in plan.out.glob("step-*"))
    assert kept == list(range(11, plan.steps(340) + 1, 11))
    assert not same(weights(plan.out / "step-11"), weights(plan.out / f"step-{kept[-1]}"))
    fewer = dataclasses.replace(plan, out=plan.out.parent / "fewer", keep_every=kept[-1])
    finetune(fewer)
    assert same(weights(plan.out / f"step-{kept[-1]}"), weights(fewer.out / f"step-{kept[-1]}"))
    with pytest.raises(ValueError, match="keep_every must be at least 1"):
        dataclasses.replace(plan, keep_every=0)


def test_seeds_differ_and_repeat(plan: FineTune, tmp_path: Path) -> None:
    plan = dataclasses.replace(plan, epochs=1, train_count=64)
    runs = [dataclasses.replace(plan, out=tmp_path / str(n), seed=seed) for n, seed in enumerate((0, 0, 1))]
    for run in runs:
        finetune(run)
    one, again, other = (weights(run.out) for run in runs)
    assert same(one, again)
    assert not same(one, other)


def test_padding_changes_no_output(bert_folder: Path) -> None:
    """In a batch with longer sentences each gives what it gives alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(bert_folder).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    rows = encode(tokenizer, [("one",), ("two three four bad",), ("five six seven eight nine ten",)], max_length=32)
    with torch.no_grad():
        together = model(**inputs_of(rows, tokenizer, torch.device("cpu"))).logits
        alone = [model(**inputs_of([row], tokenizer, torch.device("cpu"))).logits[0] for row in rows]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-9, rtol=1e-9)
    assert float((together[0] - together[2]).abs().max()) > 1e-4
    # Sorted by length within, but given back in the order asked for.
    turned = outputs_on(model, rows[::-1], tokenizer, device=torch.device("cpu"))
    torch.testing.assert_close(turned.flip(0), together.float())


def test_each_epoch_has_each_example_once_in_batches_of_about_one_length() -> None:
    rng = Random(0)
    lengths = [rng.randint(3, 60) for _ in range(1003)]
    first, second = (batches(lengths, 16, seed=5, epoch=epoch) for epoch in (0, 1))
    for found in (first, second):
        assert sorted(row for batch in found for row in batch) == [*range(1003)]
        assert sorted({len(batch) for batch in found}) == [11, 16]
        padding = sum(max(lengths[row] for row in batch) * len(batch) for batch in found) / sum(lengths)
        assert padding < 1.1
    assert first != second
    assert first == batches(lengths, 16, seed=5, epoch=0)
    means = [sum(lengths[row] for row in batch) / len(batch) for batch in first]
    assert means != sorted(means)


def test_a_regression_is_fine_tuned_on_its_numbers(bert_folder: Path, tmp_path: Path) -> None:
    """How many times a verdict stands in a pair, from 0 to 2."""
    from transformers import AutoModelForSequenceClassification

    rng, lines = Random(1), []
    for number in range(300):
        sides = [" ".join([*rng.choices(FILLERS, k=3), *["great"] * rng.randint(0, 1)]) for _ in range(2)]
        lines.append(f"g\tf\ty\t{number}\t{sum(side.count('great') for side in sides)}\t{sides[0]}\t{sides[1]}")
    (tmp_path / "sts-train.csv").write_text("\n".join(lines[:240]))
    (tmp_path / "sts-dev.csv").write_text("\n".join(lines[240:]))
    plan = FineTune(
        model=str(bert_folder), out=tmp_path / "run", task="stsb", data_dir=tmp_path, dev_count=40, rate=3e-3,
        epochs=12, batch_size=16, device="cpu",
    )  # fmt: skip
    facts = finetune(plan)
    assert facts["best_by"] == "pearson"
    assert facts["test"]["pearson"] > 0.9
    assert facts["test"].keys() == {"loss", "pearson", "spearman"}
    assert AutoModelForSequenceClassification.from_pretrained(plan.out).config.num_labels == 1


def test_losses_and_figures_by_hand() -> None:
    from scipy import stats

    outputs = torch.randn(12, 1, generator=torch.Generator().manual_seed(0))
    numbers = Labelled("n", ("x",) * 12, None, tuple(float(n % 5) for n in range(12)), ())
    targets = torch.tensor(numbers.labels)
    found = figures_of(outputs, numbers)
    assert found["loss"] == pytest.approx(float((outputs[:, 0] - targets).square().mean()))
    assert found["spearman"] == pytest.approx(float(stats.spearmanr(outputs[:, 0], targets).statistic))
    two = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    pair = Labelled("p", ("x", "y"), None, (1, 1), ("n", "p"))
    expected = torch.log(torch.tensor([1 + torch.e**-1, 1 + torch.e**2])).mean()
    assert float(loss_of(two, pair)) == pytest.approx(float(expected))
    assert figures_of(two, pair)["accuracy"] == 0.5


def test_biases_and_norms_do_not_decay(plan: FineTune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no gradient, decay alone moves weights: by 1 - rate * decay in each step."""
    monkeypatch.setattr("tlprune.finetuning.training.loss_of", lambda outputs, examples: 0 * outputs.float().sum())
    changed = dataclasses.replace(plan, epochs=1, train_count=16, weight_decay=0.5, warmup=0.0)
    finetune(changed)
    from transformers import AutoModel

    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (plan.model, plan.out))
    for name, value in before.items():
        if value.is_floating_point():
            factor = 1 - 3e-3 * 0.5 if value.dim() > 1 else 1
            torch.testing.assert_close(after[name], factor * value)


# ---- the command, and what it refuses


def command(plan: FineTune, *words: str) -> list[str]:
    return [
        *("finetune", "--model", plan.model, "--data-dir", str(plan.data_dir), "--out", str(plan.out)),
        *("--device", "cpu", "--dev-count", "60", "--train-count", "32", "--epochs", "1", *words),
    ]


def test_the_command(plan: FineTune, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(plan)) == 0
    printed = capsys.readouterr().out
    assert "sst2: 32 training examples" in printed
    assert "test (60): loss" in printed
    assert main(command(plan)) == 2
    assert "already holds a fine-tuned model" in capsys.readouterr().err


BAD = {
    "unknown task": (["--task", "sst3"], "There is no data set 'sst3'"),
    "no such model": (["--model", "nowhere/to-be-found"], "cannot be read from 'nowhere/to-be-found'"),
    "a folder of other things": (
        ["--model", str(Path(__file__).parent / "golden")],
        "A model and its tokenizer are needed",
    ),
    "too many": (["--train-count", "341"], "has 340 examples left for training but 341"),
    "other data": (["--task", "hans"], "hans train needs one of hans_train.tsv"),
    "no epochs": (["--epochs", "0"], "epochs must be at least 1 but is 0"),
    "rate": (["--rate", "5"], "rate must lie between 0 and 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(case: str, plan: FineTune, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    words, message = BAD[case]
    assert main(command(plan, *words)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("tlprune: error: ")
    assert re.search(message, errors[-1])
    assert not (plan.out / PROVENANCE).exists()


def killed() -> None:
    raise KilledError


def test_a_checkpoint_of_another_run_is_refused(plan: FineTune, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Training.step
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", lambda self: step(self) if self.done < 9 else killed())
        with pytest.raises(KilledError):
            finetune(plan)
    for change, named in (({"rate": 1e-3}, "rate"), ({"train_count": 64}, "train"), ({"seed": 4}, "seed")):
        with pytest.raises(ValueError, match=f"was written with another .*{named}"):
            finetune(dataclasses.replace(plan, **change))
    checkpoint = plan.out / CHECKPOINT
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="is not a checkpoint of a fine-tuning"):
        finetune(plan)
    checkpoint.write_bytes(content)
    (plan.out / METRICS).write_text("")
    with pytest.raises(ValueError, match="needs the records of these steps"):
        finetune(plan)


def test_a_loss_that_is_not_finite_is_an_error(plan: FineTune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlprune.finetuning.training.loss_of", lambda outputs, examples: outputs.sum() * torch.nan)
    with pytest.raises(FloatingPointError, match="step 1 has a loss of nan"):
        finetune(plan)
