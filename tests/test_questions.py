"""Multiple-choice questions: every published layout, the splits, and rows that are not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from multiple_choice import questions

from tlprune.tasks.knowledge.world_facts import world_facts
from tlprune.tasks.knowledge.world_questions import world_questions
from tlprune.tasks.questions import Questions, divided_questions, read_questions

TEXTS = ["two", "three", "four"]
LABELLED = {"label": ["A", "B", "C"], "text": TEXTS}
LISTED = [{"label": label, "text": text} for label, text in zip("ABC", TEXTS, strict=True)]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "one and two?", "choices": TEXTS, "answer": "three"},
        {"question": " one and two? ", "choices": TEXTS, "answer": 1},
        {"question": "one and two?", "choices": LABELLED, "answerKey": "B"},
        {"question": "one and two?", "choices": LISTED, "answerKey": "B"},
        {"question": {"stem": "one and two?", "choices": LISTED}, "answerKey": "B"},
    ],
)
def test_every_layout_says_the_same(row: dict, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert read_questions(path) == Questions("mine", ("one and two?",), (tuple(TEXTS),), (1,))
    assert read_questions([row]).labels == (1,)


def test_commonsenseqa_is_read(data_dir: Path) -> None:
    found = read_questions()
    assert (len(found), found.guessing) == (1221, pytest.approx(0.2))
    assert found.texts[0].startswith("A revolving door is convenient")
    assert (found.choices[0][0], found.labels[0]) == ("bank", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "nine"}, "row 1: the answer must be"),
        ({"answer": 3}, "row 1: the answer must be"),
        ({"answer": None}, "row 1: a row needs 'question', 'choices' and 'answer'"),
        ({"choices": []}, "row 1: a row needs"),
        ({"question": 5}, "row 1: a row needs"),
        ({"choices": ["two"], "answer": "two"}, "at least two choices"),
        ({"choices": ["two", "two"], "answer": "two"}, "row 1: the answer must be"),
    ],
)
def test_rows_that_are_not_whole_are_refused(change: dict, message: str) -> None:
    row = {"question": "one and two?", "choices": TEXTS, "answer": "three"}
    with pytest.raises(ValueError, match=message):
        read_questions([row | change])


def test_nothing_to_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must have questions"):
        read_questions([])
    with pytest.raises(ValueError, match="there is none"):
        read_questions(tmp_path / "none.jsonl")
    monkeypatch.setenv("TLPRUNE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="Set TLPRUNE_DATA"):
        read_questions()


def test_splits_share_no_question_and_the_test_stays() -> None:
    one = questions(60)
    twice = one.rows([*range(60), *range(30)])
    counts = {"validation_count": 10, "test_count": 20}
    found = divided_questions(twice, train_count=None, seed=1, **counts)
    assert {name: len(part) for name, part in found.items()} == {"train": 30, "validation": 10, "test": 20}
    assert {*one.texts} == {text for part in found.values() for text in part.texts}
    fewer = divided_questions(twice, train_count=5, seed=1, **counts)
    assert (fewer["test"], fewer["validation"]) == (found["test"], found["validation"])
    assert fewer["train"].texts == found["train"].texts[:5]
    assert divided_questions(twice, train_count=5, seed=2, **counts)["test"] != found["test"]
    for wrong in ({"train_count": 31}, {"train_count": 0}):
        with pytest.raises(ValueError, match="has 60 different questions"):
            divided_questions(twice, seed=1, **counts, **wrong)


def test_a_test_of_other_questions_is_whole_and_shares_no_text() -> None:
    one = questions(60)
    other = one.rows(range(5, 12))
    found = divided_questions(one, train_count=None, validation_count=10, test_count=400, seed=1, test=other)
    assert found["test"] == other
    assert {name: len(part) for name, part in found.items()} == {"train": 43, "validation": 10, "test": 7}
    assert {*one.texts} == {text for part in found.values() for text in part.texts}


def test_questions_on_the_world_are_right_and_apart() -> None:
    learnt, asked = world_questions("Northmark")
    region = {fact.head: fact.tail for fact in world_facts() if fact.relation == "lies in"}
    home = {fact.head: fact.tail for fact in world_facts() if fact.relation == "lives in"}
    for one, inside in ((learnt, False), (asked, True)):
        for text, choices, label in zip(one.texts, one.choices, one.labels, strict=True):
            (head,) = {*text.split()} & {*home}
            assert choices[label] == home[head]
            assert len({*choices}) == 3
            assert {region[town] for town in choices} == {region[home[head]]}
            assert (region[home[head]] == "Northmark") is inside
    assert {*asked.labels} == {0, 1, 2}
    assert world_questions("Northmark") == (learnt, asked)
    with pytest.raises(ValueError, match="Name one of these"):
        world_questions("Westwood")
