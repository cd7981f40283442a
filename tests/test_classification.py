"""Tasks of labelled sentences: tokens against the tokenizer's own, twins, splits, merged classes, evaluations."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from styles import fresh

import tlprune as tp
from tlprune.learning.figures import figures
from tlprune.task import MAIN, Batch, Stream, Task
from tlprune.tasks import TASKS, Labelled, classification
from tlprune.tasks.labelled.encoding import Encoded, encode, padded
from tlprune.tasks.labelled.known import ENTAILMENT
from tlprune.tasks.labelled.named import NOT_ENTAILED
from tlprune.tasks.labelled.splitting import divided, twins

WORDS = ["John", "Mary", "Paul", "Anna", "James", "kind", "brave", "is", "and", "so", "now", "not"]
SENTIMENT = ("negative", "positive")
FEW = {"train_count": 20, "validation_count": 10}


def sentences(count: int, *, classes: tuple[str, ...] = SENTIMENT, pairs: bool = False, seed: int = 0) -> Labelled:
    """Different random sentences; the label is the number of words of the first, by classes, or that number."""
    rng, texts = Random(seed), dict[str, int]()
    while len(texts) < count:
        length = rng.randint(2, 7)
        texts.setdefault(" ".join(rng.choices(WORDS, k=length)), length)
    labels = tuple(length % len(classes) for length in texts.values()) if classes else tuple(map(float, texts.values()))
    return Labelled("mine", tuple(texts), tuple(reversed(texts)) if pairs else None, labels, classes)


def task_of(tokenizer: Any, count: int = 50, *, classes: tuple[str, ...] = SENTIMENT, **options: Any) -> Task:
    pairs = options.pop("pairs", False)
    return classification(tokenizer, {"train": sentences(count, classes=classes, pairs=pairs)}, **FEW, **options)


# ---- tokens


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_each_row_is_what_the_tokenizer_gives_its_text(
    request: pytest.FixtureRequest, name: str, side: str, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = request.getfixturevalue(name)
    monkeypatch.setattr(tokenizer, "padding_side", side)
    data = sentences(30, pairs=pairs)
    rows = encode(tokenizer, data.prompts(), max_length=64)
    tokens = padded(rows, tokenizer)
    assert tokens.attention_mask is not None
    lengths = tokens.attention_mask.sum(1)
    assert len({*lengths.tolist()}) > 3
    for row, prompt in enumerate(data.prompts()):
        own, real = tokenizer(*prompt), tokens.attention_mask[row].bool()
        assert tokens.ids[row, real].tolist() == own["input_ids"]
        assert (tokens.ids[row, ~real] == tokenizer.pad_token_id).all()
        assert bool(real[-1 if side == "left" else 0])
        if name == "bert":
            assert tokens.token_types is not None
            assert tokens.token_types[row, real].tolist() == own["token_type_ids"]
            assert max(own["token_type_ids"]) == int(pairs)
    if name == "roberta":
        assert tokens.token_types is None


def test_long_pairs_are_cut_where_they_are_longest(bert: Any) -> None:
    (row,) = encode(bert, [("so " * 50, "not kind")], max_length=16)
    assert len(row) == 16
    assert bert.convert_ids_to_tokens(row.ids)[-4:] == ["[SEP]", "not", "kind", "[SEP]"]
    with pytest.raises(ValueError, match="need room for text but max_length is 4"):
        encode(bert, [("so", "not")], max_length=4)


def test_without_padding_there_is_no_mask(bert: Any) -> None:
    rows = [Encoded([1, 2], None), Encoded([3, 4], None)]
    assert padded(rows, bert).attention_mask is None
    wide = padded(rows, bert, width=3)
    assert wide.attention_mask is not None
    assert wide.attention_mask.tolist() == [[1, 1, 0], [1, 1, 0]]


def test_twins_keep_masks_and_sentences_of_their_own(bert: Any) -> None:
    batch = task_of(bert, pairs=True).discovery.train()
    clean, corrupt = batch.clean, batch.corrupt
    assert clean.attention_mask is not None
    assert corrupt.attention_mask is not None
    assert corrupt.token_types is not None
    known = {tuple(ids): row for row, ids in enumerate(clean.ids.tolist())}
    rows = torch.tensor([known[tuple(ids)] for ids in corrupt.ids.tolist()])
    assert torch.equal(corrupt.attention_mask, clean.attention_mask[rows])
    assert torch.equal(corrupt.token_types, clean.token_types[rows])
    assert (batch.answers[rows] != batch.answers).all() or 2 * int(batch.answers.sum()) != len(batch)


# ---- twins and splits


@pytest.mark.parametrize("classes", [[0, 1] * 5, [0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 1, 2, 3], [2, 1]])
def test_each_example_is_the_twin_of_one_of_another_class(classes: list[int]) -> None:
    for seed in range(20):
        found = twins(classes, len(classes), seed=seed)
        assert sorted(found) == [*range(len(classes))]
        assert all(classes[row] != classes[twin] for row, twin in enumerate(found))
        assert found == twins(classes, len(classes), seed=seed)
    assert len({tuple(twins(classes, len(classes), seed=seed)) for seed in range(20)}) > 1 or len(classes) == 2


def test_a_class_of_most_examples_shares_its_twins() -> None:
    classes = [0] * 7 + [1] * 3
    found = twins(classes, 10, seed=0)
    assert all(classes[row] != classes[twin] for row, twin in enumerate(found))
    assert max(found.count(twin) for twin in found) <= 3


@pytest.mark.parametrize("classes", [None, [1] * 6])
def test_without_classes_nobody_is_its_own_twin(classes: list[int] | None) -> None:
    for seed in range(20):
        found = twins(classes, 6, seed=seed)
        assert sorted(found) == [*range(6)]
        assert all(row != twin for row, twin in enumerate(found))
    with pytest.raises(ValueError, match="the split has 1"):
        twins(None, 1, seed=0)


def draws(train: Labelled, test: Labelled | None = None, **changes: Any) -> dict[str, Labelled]:
    options = {"train_count": 10, "validation_count": 5, "test_count": None, "seed": 0} | changes
    return divided(train, test, **options)


def test_no_text_is_in_two_splits() -> None:
    data = sentences(40)
    doubled = data.rows([*range(40), *range(20)])
    test = data.rows(range(12))
    for found in (draws(doubled, test, train_count=None), draws(doubled, train_count=20)):
        texts = [text for split in found.values() for text in split.texts]
        assert len(texts) == len({*texts}) == 40
    assert draws(doubled, test)["test"] == test


def test_draws_are_seeded_and_nested() -> None:
    data = sentences(60)
    few, many = (draws(data, data.rows(range(5)), train_count=count) for count in (10, 30))
    assert few["validation"] == many["validation"]
    assert many["train"].texts[:10] == few["train"].texts
    assert few["test"] == many["test"]
    other = draws(data, data.rows(range(5)), seed=1)
    assert other["train"] != few["train"]
    assert {*draws(data, data.rows(range(20)), test_count=7)["test"].texts} < {*data.texts[:20]}
    # A label stays with its text.
    assert all(
        len(text.split()) % 2 == label for text, label in zip(many["train"].texts, many["train"].labels, strict=True)
    )


def test_test_examples_are_drawn_evenly_over_subcases() -> None:
    data = dataclasses.replace(sentences(60), subcases=("rare",) * 4 + ("common",) * 36 + ("other",) * 20)
    few, many = (Counter(draws(sentences(20, seed=1), data, test_count=count)["test"].subcases) for count in (9, 30))
    assert few == {"rare": 3, "common": 3, "other": 3}
    assert many == {"rare": 4, "common": 13, "other": 13}


@pytest.mark.parametrize("changes", [{"train_count": 36}, {"validation_count": 0}, {"test_count": 6}])
def test_more_examples_than_there_are_is_an_error(changes: dict[str, int]) -> None:
    data = sentences(45)
    with pytest.raises(ValueError, match=r"mine has .* examples left for .* Ask for between 1 and"):
        draws(data, data.rows(range(5)), **changes)


# ---- tasks


def test_answers_foils_and_targets(testbed: Any) -> None:
    two, three, none = (task_of(testbed, classes=classes) for classes in (SENTIMENT, ENTAILMENT, ()))
    for task in (two, three, none):
        assert (task.test.positions == 0).all()
        assert task.test.accepted is None
        assert task.tokenisation.predicted == "prompt"
    assert torch.equal(two.test.foils, 1 - two.test.answers)
    assert {*three.test.answers[:, 0].tolist()} == {0, 1, 2}
    assert (three.test.foils == -100).all()
    assert (none.test.answers == -100).all()
    assert none.test.targets is not None
    assert none.test.clean.attention_mask is not None
    lengths = none.test.clean.attention_mask.sum(1) - testbed.num_special_tokens_to_add()
    assert none.test.targets.tolist() == lengths.tolist()
    assert [sorted(task.metrics) for task in (two, three, none)] == [
        ["f1", "matthews"],
        ["matthews"],
        ["pearson", "spearman"],
    ]
    assert len({task.fingerprint for task in (two, three, none)}) == 3


def test_a_changed_target_is_another_task(testbed: Any) -> None:
    task = task_of(testbed, classes=())
    stream = task.streams[MAIN]
    moved = dataclasses.replace(stream.test, targets=stream.test.targets + 1)
    other = dataclasses.replace(task, streams={MAIN: dataclasses.replace(stream, test=moved)})
    assert other.fingerprint != task.fingerprint
    assert tp.sealed(task).fingerprint == task.fingerprint


def test_outputs_in_another_order_are_found_by_name(testbed: Any) -> None:
    plain, turned = task_of(testbed), task_of(testbed, classes=SENTIMENT, merge=None)
    assert plain.fingerprint == turned.fingerprint
    data = {"train": sentences(50)}
    other = classification(testbed, data, classes=("positive", "negative"), **FEW)
    assert torch.equal(other.test.answers, plain.test.foils)
    for classes, merge, message in (
        (("positive", "bad"), {}, "but bad is none"),
        (("positive", "bad"), {"bad": "positive"}, "but negative has none"),
        (("positive",), {}, "but negative has none"),
    ):
        with pytest.raises(ValueError, match=message):
            classification(testbed, data, classes=classes, merge=merge, **FEW)


def test_examples_of_some_classes_are_a_task_of_them(testbed: Any) -> None:
    data = sentences(60, classes=ENTAILMENT)
    kept = ("contradiction", "entailment")
    found, same = (
        classification(testbed, {"train": one}, train_count=20, validation_count=5, **more)
        for one, more in ((data, {"only": kept}), (data.only(kept), {}))
    )
    assert found.fingerprint == same.fingerprint
    assert found.test.answers.unique().tolist() == [0, 1]
    assert torch.equal(found.test.foils, 1 - found.test.answers)
    texts = {tuple(testbed(text)["input_ids"]): label for text, label in zip(data.texts, data.labels, strict=True)}
    batch = found.test
    for ids, mask, answer in zip(batch.clean.ids, batch.clean.attention_mask, batch.answers, strict=True):
        assert ENTAILMENT[texts[tuple(ids[mask.bool()].tolist())]] == kept[int(answer)]


def test_examples_under_other_names_are_refused(testbed: Any) -> None:
    data = {"train": sentences(50), "validation": sentences(50)}
    with pytest.raises(ValueError, match="but are given under 'train', 'validation'"):
        classification(testbed, data, **FEW)


def test_a_model_that_predicts_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="predicts tokens"):
        task_of(tp.load("testbed"))


def hans_rows(count: int = 60) -> Labelled:
    """Three kinds of pairs, of which the middle one is entailed."""
    data, kinds = sentences(count, pairs=True), ("cn", "le", "sn")
    subcases = tuple(kinds[row % 3] for row in range(count))
    labels = tuple(int(kind != "le") for kind in subcases)
    return dataclasses.replace(
        data, name="hans", labels=labels, classes=("entailment", "non-entailment"), subcases=subcases
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_neutral_and_contradiction_both_count_as_non_entailment(testbed: Any, order: tuple[int, ...]) -> None:
    classes = tuple(ENTAILMENT[place] for place in order)
    task = classification(testbed, {"train": hans_rows()}, classes=classes, merge=NOT_ENTAILED, **FEW)
    batch = task.test
    logits = torch.randn(len(batch), 1, 3, generator=torch.Generator().manual_seed(0))
    found = figures(logits, batch, logits.log_softmax(-1))["correct"]
    assert batch.labels is not None
    for row, best in enumerate(logits[:, 0].argmax(-1).tolist()):
        entailed = task.label_names[int(batch.labels[row])] == "le"
        assert bool(found[row]) == ((classes[best] == "entailment") == entailed)
    assert 0 < float(found.mean()) < 1
    assert task.metrics == {}
    assert (batch.foils == -100).all()


def test_one_source_does_not_serve_two_parts(tmp_path: Path, testbed: Any) -> None:
    """The test would be the training set."""
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\n" + "\n".join(f"{text}\t1" for text in sentences(50).texts))
    for source in (path, [{"sentence": "x", "label": 1}]):
        with pytest.raises(ValueError, match="needs examples of train and dev but only one source"):
            tp.tasks.sst2(testbed, source)
    assert len(tp.tasks.sst2(testbed, path, test="train", **FEW).test) == 20
    rows = [{"sentence": text, "label": row % 2} for row, text in enumerate(sentences(60).texts)]
    found = tp.tasks.sst2(testbed, {"train": rows[:40], "validation": rows[40:]}, **FEW)
    assert len(found.test) == 20
    with pytest.raises(ValueError, match="'dev' is wanted but there are train"):
        tp.tasks.sst2(testbed, {"train": rows}, **FEW)


@pytest.mark.parametrize("name", ["sst2", "cola", "stsb", "mnli-subset", "hans"])
def test_published_data_as_tasks(data_dir: Path, bert: Any, name: str) -> None:
    task = TASKS[name](bert, data_dir / "data" / name, seed=3, test_count=60, **FEW)
    again = TASKS[name](bert, data_dir / "data" / name, seed=3, test_count=60, **FEW)
    assert task.fingerprint == again.fingerprint
    assert task.name == name
    assert [len(batch) for batch in vars(task.streams[MAIN]).values()] == [20, 10, 60]
    types = task.test.clean.token_types
    assert types is not None
    assert bool(types.any()) == (name not in ("sst2", "cola"))
    assert len(task.label_names) == (0 if name != "hans" else len({*task.label_names}))
    assert (task.test.accepted is not None) == (name == "hans")
    if task.test.labels is not None:
        assert task.test.labels.bincount().tolist() == [2] * 30


def test_all_of_hans_may_be_the_test(data_dir: Path, bert: Any) -> None:
    task = tp.tasks.hans(bert, data_dir / "data" / "hans", train_count=2, validation_count=2)
    assert len(task.test) == 29996
    assert len(task.label_names) == 30
    assert task.test.labels is not None
    assert task.test.labels.bincount().min() >= 996


# ---- whole evaluations, on a model whose last token gives a class


def model_and_task(outputs: int) -> tuple[Any, Task]:
    classes = {1: (), 2: SENTIMENT, 3: ENTAILMENT}[outputs]
    model = fresh("gpt2", torch.float32, d_vocab_out=outputs)
    generator = torch.Generator().manual_seed(outputs)

    def batch(count: int) -> Batch:
        from styles import random_batch

        plain, none = random_batch(count, seed=count), torch.full((count, 1), -100)
        if not classes:
            targets = torch.randn(count, generator=generator)
            return dataclasses.replace(plain, answers=none, foils=none, targets=targets)
        answers = torch.randint(outputs, (count, 1), generator=generator)
        kinds = torch.arange(count) % 2
        return dataclasses.replace(plain, answers=answers, foils=1 - answers if outputs == 2 else none, labels=kinds)

    own = task_of_classes(classes)
    stream = Stream(batch(12), batch(6), batch(10))
    return model, Task("mine", {MAIN: stream}, own.tokenisation, metrics=own.metrics, label_names=("even", "odd"))


def task_of_classes(classes: tuple[str, ...]) -> Task:
    from transformers import AutoTokenizer

    from tlprune.models.testbed_prompts import DIRECTORY

    return task_of(AutoTokenizer.from_pretrained(DIRECTORY), classes=classes)


OWN = {1: {"squared_error", "pearson", "spearman"}, 2: {"logit_difference", "f1"}, 3: {"matthews", "kl"}}
NOT = {1: {"kl", "accuracy", "perplexity"}, 2: {"squared_error"}, 3: {"logit_difference", "faithfulness", "f1"}}


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_evaluations_show_what_there_is(outputs: int) -> None:
    model, task = model_and_task(outputs)
    sites = tp.heads(model) + tp.mlps(model)
    circuit = tp.Circuit.from_names(sites, ["a0.h1", "m0", "a2.h3"])
    found = tp.evaluate(model, circuit, task)
    means = found["circuit"].means()
    assert means.keys() >= OWN[outputs]
    assert not means.keys() & NOT[outputs]
    table = str(found)
    assert ("faithfulness" in table) == (outputs == 2)
    assert ("squared error" in table) == (outputs == 1)
    assert "nan" not in table.split("\nempty", maxsplit=1)[0]
    assert set(found.as_dict()["rows"][1]["intervals"]) == {*means}
    assert str(tp.compare(model, circuit, circuit.complement, task)).count("\n") > 3
    if outputs == 1:
        assert found["full model"].means()["squared_error"] == pytest.approx(0, abs=1e-10)
        assert found["circuit"].means()["squared_error"] > 1e-4
        with pytest.raises(ValueError, match="a mean over examples but got 'kl'"):
            tp.minimality(model, circuit, task)
    else:
        kinds = tp.subcases(found, task)
        whole = found["circuit"].means()["accuracy"]
        parts = [kinds.intervals[kind]["circuit"].value * kinds.counts[kind] for kind in ("even", "odd")]
        assert sum(parts) / 10 == pytest.approx(whole)
        assert "odd" in str(kinds)
        assert kinds.as_dict()["kinds"]["odd"]["examples"] == 5


def test_kinds_need_a_task_that_tells_them_apart() -> None:
    model, task = model_and_task(2)
    circuit = tp.Circuit.from_names(tp.heads(model), ["a0.h1"])
    found = tp.evaluate(model, circuit, task)
    with pytest.raises(ValueError, match="tells no kinds of examples apart"):
        tp.subcases(found, dataclasses.replace(task, label_names=()))
    stream = task.streams[MAIN]
    fewer = dataclasses.replace(stream, test=stream.test.rows(torch.arange(3)))
    with pytest.raises(ValueError, match="is of 10 examples but task 'mine' has 3"):
        tp.subcases(found, dataclasses.replace(task, streams={MAIN: fewer}))


def test_masks_of_a_regression_learn_its_output() -> None:
    """Better than as many random sites do; KL, which would see no difference, is refused."""
    model, task = model_and_task(1)
    masks = tp.Masks(tp.heads(model) + tp.mlps(model))
    masked = tp.Masked(model, masks, tp.Mean(task.discovery.train().corrupt))
    with pytest.raises(ValueError, match="Use SquaredError"):
        tp.fit(masked, task.discovery, tp.KL(), tp.Penalty(0.0), steps=1)
    budget = tp.Lagrangian(kept=6, on="heads") + tp.Lagrangian(kept=2, on="mlps")
    tp.fit(masked, task.discovery, tp.SquaredError(), budget, steps=60)
    found = tp.evaluate(model, masks.circuit(heads=6, mlps=2), task)
    assert found["circuit"].means()["squared_error"] < found["random"].means()["squared_error"]
