"""Tasks as files of tagged prompts: the same tokens when they are read again, and what no file can say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tasks import HE, SHE, splits

import tlprune as tp
from tlprune.task import Batch, Stream, Task
from tlprune.tasks import TASKS, Pair, from_pairs, jsonl, to_jsonl

SIZES = {"train": 12, "validation": 6, "test": 8}
SUM = {
    "clean": "1 + <predict>1</predict> = <predict>2</predict>",
    "corrupted": "1 + <predict>2</predict> = <predict>3</predict>",
}


def check_same(task: Task, again: Task) -> None:
    """Tokens, positions, answers and foils, split by split."""
    for batch, other in zip(splits(task), splits(again), strict=True):
        for name in ("positions", "answers", "foils"):
            assert torch.equal(getattr(batch, name), getattr(other, name)), name
        for tokens, others in ((batch.clean, other.clean), (batch.corrupt, other.corrupt)):
            assert torch.equal(tokens.ids, others.ids)
            assert torch.equal(tokens.lengths, others.lengths)
            if tokens.attention_mask is not None or others.attention_mask is not None:
                assert str(tokens.attention_mask) == str(others.attention_mask)


@pytest.mark.parametrize("name", ["ioi", "gendered-pronoun", "greater-than", "induction"])
@pytest.mark.parametrize("tokenizer", ["testbed", "gpt2"])
def test_the_same_tokens_are_read_again(
    request: pytest.FixtureRequest, tmp_path: Path, tokenizer: str, name: str
) -> None:
    tokenizer = request.getfixturevalue(tokenizer)
    task = TASKS[name](tokenizer, **SIZES)
    one, train, test = (tmp_path / f"{part}.jsonl" for part in ("one", "train", "test"))
    to_jsonl(task, tokenizer, one)
    check_same(task, jsonl(tokenizer, one))
    to_jsonl(task, tokenizer, train, test=test)
    check_same(task, jsonl(tokenizer, train, test=test))
    assert {json.loads(line)["split"] for line in train.read_text().splitlines()} == {"train", "validation"}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize("tokenizer", ["gpt2", "testbed"])
def test_pairs_padded_on_either_side(
    request: pytest.FixtureRequest, tmp_path: Path, tokenizer: str, prepend_bos: bool, side: Any
) -> None:
    tokenizer = request.getfixturevalue(tokenizer)
    test = [Pair(HE.clean.replace("know", "think"), HE.corrupt.replace("know", "think"), " he", " she")]
    options = {"prepend_bos": prepend_bos, "padding_side": side}
    task = from_pairs("mine", tokenizer, train=[HE, SHE], validation=[SHE], test=test, **options)
    path = tmp_path / "mine.jsonl"
    to_jsonl(task, tokenizer, path)
    check_same(task, jsonl(tokenizer, path, **options))


@pytest.mark.parametrize("foil", [None, ["4", "5"]])
@pytest.mark.parametrize("tokenizer", ["gpt2", "stories"])
def test_answers_in_the_middle_with_foils_of_twins_or_their_own(
    request: pytest.FixtureRequest, tmp_path: Path, tokenizer: str, foil: Any
) -> None:
    tokenizer = request.getfixturevalue(tokenizer)
    rows = [{**SUM, **({"foil": foil} if foil else {})} for _ in range(2)]
    rows = [{**row, "clean": f"{start} {row['clean']}", "corrupted": f"{start} {row['corrupted']}"} for row in rows
            for start in ("So", "Now", "Then", "But")]  # fmt: skip
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("\n".join(map(json.dumps, rows)))
    task = jsonl(tokenizer, first)
    to_jsonl(task, tokenizer, second, test=tmp_path / "test.jsonl")
    check_same(task, jsonl(tokenizer, second, test=tmp_path / "test.jsonl"))
    written = [json.loads(line) for line in second.read_text().splitlines()]
    assert len(written) == len(task.discovery.train())  # training and validation are the same rows
    assert all(row.get("foil") == foil and "split" not in row for row in written)


def test_tokens_that_stand_together_have_one_pair_of_tags(tmp_path: Path, gpt2: Any) -> None:
    rows = [{"clean": f"{word}: <predict>Mildred</predict>", "corrupted": f"{word}: <predict>Beatrice</predict>"}
            for word in ("Name", "Who", "Say")]  # fmt: skip
    rows.append({"clean": "Call: <predict>John</predict>", "corrupted": "Call: <predict>Paul</predict>"})
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("\n".join(map(json.dumps, rows)))
    task = jsonl(gpt2, first)
    to_jsonl(task, gpt2, second)
    check_same(task, jsonl(gpt2, second))
    written = {json.loads(line)["clean"] for line in second.read_text().splitlines()}
    assert written == {row["clean"] for row in rows}


def test_a_task_without_foils_has_twins_without_tags(tmp_path: Path, gpt2: Any) -> None:
    rows = [{"clean": f"{a} + 1 = <predict>{a + 1}</predict>", "corrupted": f"{a} + 2 ="} for a in range(1, 7)]
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("\n".join(map(json.dumps, rows)))
    task = jsonl(gpt2, first)
    to_jsonl(task, gpt2, second)
    assert "<predict>" not in json.loads(second.read_text().splitlines()[0])["corrupted"]
    check_same(task, jsonl(gpt2, second))


def with_batch(task: Task, change: Any) -> Task:
    stream = task.streams["main"]
    changed = Stream(*(change(getattr(stream, split)) for split in ("train", "validation", "test")))
    return dataclasses.replace(task, streams={"main": changed})


def test_what_no_file_can_say(tmp_path: Path, gpt2: Any, testbed: Any) -> None:
    task, path = TASKS["greater-than"](gpt2, **SIZES), tmp_path / "mine.jsonl"
    streams = dataclasses.replace(task, streams={"main": task.streams["main"], "other": task.streams["main"]})
    with pytest.raises(ValueError, match="has the streams main, other"):
        to_jsonl(streams, gpt2, path)
    classes = tp.tasks.TASKS["greater-than"](gpt2, **SIZES)
    told = dataclasses.replace(classes, tokenisation=dataclasses.replace(classes.tokenisation, predicted="prompt"))
    with pytest.raises(ValueError, match="a class or number of each prompt"):
        to_jsonl(told, gpt2, path)

    def regression(batch: Batch) -> Batch:
        return dataclasses.replace(batch, targets=torch.zeros(len(batch)))

    with pytest.raises(ValueError, match="is about numbers"):
        to_jsonl(with_batch(task, regression), gpt2, path)

    def broken(batch: Batch) -> Batch:
        """Two tokens whose text is one."""
        ids = batch.clean.ids.clone()
        ids[0, 2:4] = torch.tensor(gpt2("h")["input_ids"] + gpt2("e")["input_ids"])
        return dataclasses.replace(batch, clean=tp.task.Tokens(ids, batch.clean.attention_mask))

    with pytest.raises(ValueError, match=r"train example 0, .* has no tagged text: .* is the text of other tokens"):
        to_jsonl(with_batch(task, broken), gpt2, path)

    def skipping(batch: Batch) -> Batch:
        twice = {name: getattr(batch, name).repeat(1, 2) for name in ("positions", "answers", "foils")}
        twice["positions"][:, 0] -= 1
        return dataclasses.replace(batch, **twice)

    with pytest.raises(ValueError, match="must be what its prompt goes on with"):
        to_jsonl(with_batch(task, skipping), gpt2, path)
    stream = task.streams["main"]
    leaking = dataclasses.replace(task, streams={"main": Stream(stream.train, stream.validation, stream.train)})
    with pytest.raises(ValueError, match="test example 0: test prompts must be ones that no method sees"):
        to_jsonl(leaking, gpt2, path)
    with pytest.raises(ValueError, match=r"has no tagged text|gives others"):
        to_jsonl(task, testbed, path)
    assert not path.exists()
