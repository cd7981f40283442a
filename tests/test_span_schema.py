"""Spans of one's own, by a function or by tags, and spans that cover every position."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tasks import HE, SHE, SIZES, repeat, splits

import tlprune as tp
from tlprune.spans import GAP, Spanned, check_covered, places
from tlprune.task import Batch, Task
from tlprune.tasks import covered, from_pairs, gendered_pronoun, ioi, jsonl, with_spans


def names_at(task: Task, batch: Batch, row: int) -> list[str]:
    assert batch.spans is not None
    return [task.span_names[number] if number >= 0 else "" for number in batch.spans[row].tolist()]


@pytest.mark.parametrize("build", [ioi, gendered_pronoun])
def test_covered_prompts_have_one_span_at_every_position(testbed: Any, build: Any) -> None:
    named = build(testbed, **SIZES)
    task = covered(named)
    used = set()
    for batch, before in zip(splits(task), splits(named), strict=True):
        mask = batch.clean.attention_mask
        real = torch.ones_like(batch.spans, dtype=torch.bool) if mask is None else mask > 0
        assert ((batch.spans >= 0) == real).all()
        for row in range(len(batch)):
            now, then = names_at(task, batch, row), names_at(named, before, row)
            last = GAP
            for own, old, there in zip(now, then, real[row].tolist(), strict=True):
                last = f"{old}{GAP}" if old else last
                assert own == ((old or last) if there else "")
            used |= {*now} - {""}
    assert {*task.span_names} - used <= {*named.span_names}
    assert covered(task) is task


def test_a_task_without_spans_is_covered_by_one(testbed: Any) -> None:
    task = covered(from_pairs("pairs", testbed, **repeat([HE, SHE])))
    assert task.span_names == (GAP,)
    assert (task.test.spans == 0).sum() == task.test.clean.attention_mask.sum()


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_function_sees_prompts_without_their_padding(testbed: Any, side: str) -> None:
    task = from_pairs("pairs", testbed, padding_side=side, **repeat([HE, SHE]))
    seen: list[list[int]] = []

    def halves(ids: list[int]) -> dict[str, range]:
        seen.append(ids)
        return {"right": range(len(ids) // 2, len(ids)), "left": range(len(ids) // 2)}

    found = with_spans(task, ["left", "right"], halves)
    batch = found.test
    for row, length in enumerate(batch.clean.attention_mask.sum(1).tolist()):
        real = batch.clean.attention_mask[row] > 0
        assert batch.clean.ids[row, real].tolist() in seen
        expected = [0] * (length // 2) + [1] * (length - length // 2)
        assert batch.spans[row, real].tolist() == expected
        assert (batch.spans[row, ~real] == -1).all()
    assert found.fingerprint != task.fingerprint
    assert torch.equal(found.test.clean.ids, task.test.clean.ids)


@pytest.mark.parametrize(
    "spans", [{"other": [0]}, {"left": [0], "right": [0]}, {"left": [99]}, {"left": [-1]}, {"left": [1, 1]}]
)
def test_a_function_gives_each_position_one_span(testbed: Any, spans: dict[str, list[int]]) -> None:
    task = from_pairs("pairs", testbed, **repeat([HE, SHE]))
    with pytest.raises(ValueError, match="in no other"):
        with_spans(task, ["left", "right"], lambda _: spans)


@pytest.mark.parametrize("names", [("a", "a"), ("rest",), ("a@b",), ("",)])
def test_names_that_would_be_confused_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="Spans need names that differ"):
        Spanned(tp.Graph(tp.graph.Architecture(1, 2, 2)), names)


def test_tags_name_spans_of_any_length(tmp_path: Path, testbed: Any) -> None:
    texts = [
        "So <span=who>John</span> is <span=how>really kind</span>, <predict>so</predict>",
        "So John <span=verb>is</span> <span=how>really</span> kind<span=how>,</span> <predict>so</predict>",
        "So Mary is really kind, <predict>so</predict>",
    ]
    twin = "So Anna is really kind, <predict>and</predict>"
    path = tmp_path / "tagged.jsonl"
    splits_of = ("train", "validation", "test")
    rows = [{"clean": text, "corrupted": twin, "split": split} for text, split in zip(texts, splits_of, strict=True)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    task = jsonl(testbed, path)
    assert task.span_names == ("who", "how", "verb")
    one, two, three = (names_at(task, batch, 0) for batch in splits(task))
    assert one == ["", "", "who", "", "how", "how", ""]
    assert two == ["", "", "", "verb", "how", "", "how"]
    assert three == [""] * 7
    bare = tmp_path / "tagged2.jsonl"
    bare.write_text("\n".join(json.dumps({**row, "clean": strip(row["clean"])}) for row in rows))
    for tagged, plain in zip(splits(task), splits(jsonl(testbed, bare)), strict=True):
        assert torch.equal(tagged.clean.ids, plain.clean.ids)
        assert torch.equal(tagged.positions, plain.positions)
        assert plain.spans is None


def strip(text: str) -> str:
    for name in ("who", "how", "verb"):
        text = text.replace(f"<span={name}>", "")
    return text.replace("</span>", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("So <span=who>John is <predict>kind</predict>", "open and close in turn"),
        ("So <span=who><span=a>John</span></span> is <predict>kind</predict>", "open and close in turn"),
        ("So <span=who>Jo</span>hn is <predict>kind</predict>", "cuts 'John'"),
        ("So <span=rest>John</span> is <predict>kind</predict>", "Spans need names"),
    ],
)
def test_tags_that_name_no_words_are_refused(tmp_path: Path, testbed: Any, text: str, message: str) -> None:
    path = tmp_path / "wrong.jsonl"
    rows = [
        {"clean": text.replace("So", start), "corrupted": f"{start} Mary is <predict>brave</predict>"}
        for start in ("So", "And", "But")
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ValueError, match=message):
        jsonl(testbed, path)


def test_covering_spans_have_masks_for_nothing_else() -> None:
    graph = tp.Graph(tp.graph.Architecture(1, 2, 2))
    names = (GAP, "s1", "s1..")
    assert len(Spanned(graph, names)) == 3 * len(graph)
    assert len(Spanned(graph, names[1:])) == 3 * len(graph)
    spans = torch.tensor([[0, 1, 2, -1]])
    assert places(names, spans).tolist() == [[0, 1, 2, 0]]
    assert places(names[1:], torch.tensor([[0, 1, -1]])).tolist() == [[0, 1, 2]]
    check_covered(names, spans, torch.tensor([[True, True, True, False]]))
    with pytest.raises(ValueError, match="position 3 of example 0"):
        check_covered(names, spans, None)


def test_masks_over_part_of_covering_spans_are_refused() -> None:
    planted = tp.planted("copy")
    task = covered(planted.task)
    every = tp.Circuit(
        sites := tp.edges(planted.model, spans=task.span_names), torch.ones(len(sites), dtype=torch.bool)
    )
    assert tp.Masked(planted.model, every)(task.test).shape[0] == len(task.test)
    some = tp.edges(planted.model, spans=[name for name in task.span_names if name != "copied"])
    with pytest.raises(ValueError, match=r"cover every position, but position 3 of example 0"):
        tp.Masked(planted.model, tp.Circuit(some, torch.ones(len(some), dtype=torch.bool)))(task.test)


def test_planted_prompts_mark_what_their_answer_hangs_on() -> None:
    for name in ("copy", "induction"):
        task = tp.planted(name).task
        batch = task.test
        told = {"copy": "copied", "induction": "value"}[name]
        place = (batch.spans == task.span_names.index(told)).nonzero()
        assert torch.equal(place[:, 0], torch.arange(len(batch)))
        assert torch.equal(batch.clean.ids[place[:, 0], place[:, 1]], batch.answers[:, 0])
    for row in range(len(batch)):
        key = int((batch.spans[row] == 0).nonzero())
        assert batch.clean.ids[row, key] == batch.clean.ids[row, -1]
        assert batch.spans[row, key + 1] == 1
