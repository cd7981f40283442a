"""Labels and named spans: they cover exactly the words in question, and travel with their examples."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from test_tasks import HE, SHE, SIZES, repeat, splits
from transformers import ByT5Tokenizer

from tlprune.task import Batch, Discovery, Task
from tlprune.tasks import Pair, from_pairs, gendered_pronoun, greater_than, induction, ioi
from tlprune.tasks.tokenising import token_bounds, token_ids, tokens_within

TEXTS = [
    "Mildred gave it to Mary, isn't",
    "So Sue ran  home",
    "from 1732 to 17",
    "Zora  sat; the caf\u00e9 was \U0001f642 shut",
]


def words_of(tokenizer: Any, task: Task, batch: Batch, row: int, name: str) -> tuple[list[int], str]:
    """Positions of a span and the text that they spell."""
    assert batch.spans is not None
    positions = (batch.spans[row] == task.span_names.index(name)).nonzero().flatten()
    assert torch.equal(positions, torch.arange(len(positions)) + int(positions[0]))
    return positions.tolist(), tokenizer.decode(batch.clean.ids[row, positions]).strip()


@pytest.mark.parametrize("tokenizer", ["testbed", "gpt2"])
def test_ioi_marks_its_names(request: pytest.FixtureRequest, tokenizer: str) -> None:
    tokenizer = request.getfixturevalue(tokenizer)
    task = ioi(tokenizer, **SIZES)
    assert task.span_names == task.discovery.span_names == ("io", "s1", "s1+1", "s2", "end")
    for batch in splits(task):
        for row in range(len(batch)):
            places, found = zip(*(words_of(tokenizer, task, batch, row, name) for name in task.span_names), strict=True)
            io, subject = (tokenizer.decode(token[row]).strip() for token in (batch.answers, batch.foils))
            assert (found[0], found[1], found[3]) == (io, subject, subject)
            assert places[1][-1] < places[3][0]
            assert places[2] == [places[1][-1] + 1]
            assert places[4] == batch.positions[row].tolist()


@pytest.mark.parametrize("build", [ioi, gendered_pronoun])
@pytest.mark.parametrize("tokenizer", ["testbed", "gpt2"])
def test_twins_differ_within_the_named_words_alone(request: pytest.FixtureRequest, tokenizer: str, build: Any) -> None:
    task = build(request.getfixturevalue(tokenizer), **SIZES)
    words = [task.span_names.index(name) for name in task.span_names if name in ("io", "s1", "s2", "name")]
    for batch in splits(task):
        changed = batch.clean.ids != batch.corrupt.ids
        assert torch.isin(batch.spans[changed], torch.tensor(words)).all()


def test_a_name_of_several_tokens_is_covered_whole(stories: Any) -> None:
    names = {"he": ["Zachary", "Tim"], "she": ["Gwendoline", "Winifred", "Lily"]}
    counts = {name: len(token_ids(stories, f"so {name}")) - 1 for pool in names.values() for name in pool}
    names["he"] += [name for name in ("Barnaby", "Frederic", "Maximilian") if len(token_ids(stories, name)) > 2]
    task = gendered_pronoun(stories, names=names, held_out_names=[], train=20, validation=4, test=4)
    batch, lengths = task.discovery.train(), set()
    for row in range(len(batch)):
        positions, text = words_of(stories, task, batch, row, "name")
        assert text in {*names["he"], *names["she"]}
        lengths.add(len(positions))
        assert text not in counts or len(positions) == counts[text]
    assert max(lengths) > 2
    changed = batch.clean.ids != batch.corrupt.ids
    assert (batch.spans[changed] == 0).all()


def test_gpt2_names_that_begin_a_text_are_covered_whole(gpt2: Any) -> None:
    """A name can be one token behind a space and several without one."""
    task = ioi(gpt2, templates=["{A} met {B}, and {S} wrote to", "{A} and {B} ate; {S} sang to"], train=150)
    batch = task.discovery.train()
    first = [words_of(gpt2, task, batch, row, name) for row in range(len(batch)) for name in ("io", "s1")]
    several = [text for positions, text in first if len(positions) > 1]
    assert several
    assert all(len(token_ids(gpt2, text)) > 1 == len(token_ids(gpt2, f" {text}")) for text in several)


@pytest.mark.parametrize("side", ["right", "left"])
def test_spans_move_with_the_padding(testbed: Any, side: str) -> None:
    he, she = (
        dataclasses.replace(pair, spans={"name": (begin, begin + 5)}, label=label)
        for pair, begin, label in ((HE, 11, 7), (SHE, 2, 9))
    )
    names = ["name", "name+1", "end"]
    task = from_pairs("pairs", testbed, padding_side=side, span_names=names, **repeat([he, she]))
    batch = task.test
    assert batch.labels.tolist() == [7, 9]
    assert [words_of(testbed, task, batch, row, "name")[1] for row in range(2)] == ["John", "Mary"]
    assert [words_of(testbed, task, batch, row, "name+1")[1] for row in range(2)] == ["is", "is"]
    assert [words_of(testbed, task, batch, row, "end")[0] for row in range(2)] == batch.positions.tolist()
    assert (batch.spans[batch.clean.attention_mask == 0] == -1).all()
    assert (batch.spans >= 0).sum(1).tolist() == [3, 3]


def test_labels_and_spans_stay_with_their_examples(testbed: Any) -> None:
    order = torch.tensor([3, 0, 5])
    for batch in (greater_than(testbed, **SIZES).test, ioi(testbed, **SIZES).test):
        for name in ("labels", "spans"):
            value, picked = getattr(batch, name), getattr(batch.rows(order).to("cpu"), name)
            assert (picked is None) == (value is None)
            assert value is None or torch.equal(picked, value[order])
            parts = [getattr(part, name) for part in batch.split(5)]
            assert value is None or torch.equal(torch.cat(parts), value)


def test_the_fingerprint_covers_labels_and_spans(testbed: Any) -> None:
    task = ioi(testbed, **SIZES)
    stream, batch = task.streams["main"], task.test
    others = [
        dataclasses.replace(batch, spans=batch.spans.roll(1, 0)),
        dataclasses.replace(batch, spans=None),
        dataclasses.replace(batch, labels=batch.index),
        dataclasses.replace(batch, labels=batch.index + 1),
    ]
    tasks = [dataclasses.replace(task, streams={"main": dataclasses.replace(stream, test=one)}) for one in others]
    tasks.append(dataclasses.replace(task, span_names=("io", "s2", "s1+1", "s1", "end")))
    assert len({task.fingerprint, *(other.fingerprint for other in tasks)}) == 6


def test_tasks_without_labels_and_spans_keep_their_fingerprint(testbed: Any) -> None:
    """Saved circuits name it, so it changes with the prompts alone."""
    task = from_pairs("pairs", testbed, **repeat([HE, SHE]))
    assert task.test.labels is None
    assert task.test.spans is None
    assert task.fingerprint == "4612e128fd262e16"


@pytest.mark.parametrize("tokenizer", ["testbed", "gpt2"])
def test_greater_than_marks_the_halves_of_its_year(request: pytest.FixtureRequest, tokenizer: str) -> None:
    tokenizer = request.getfixturevalue(tokenizer)
    task = greater_than(tokenizer, **SIZES)
    assert task.span_names == ("event", "century", "year", "end")
    for batch in splits(task):
        for row in range(len(batch)):
            century, year, end = (words_of(tokenizer, task, batch, row, name) for name in task.span_names[1:])
            assert century[1] == tokenizer.decode(batch.clean.ids[row, batch.positions[row]]).strip()
            assert int(year[1]) == batch.labels[row]
            assert year[0] == [century[0][0] + 1]
            assert end[0] == batch.positions[row].tolist()
        changed = batch.clean.ids != batch.corrupt.ids
        assert (batch.spans[changed] == task.span_names.index("year")).all()
        assert (batch.spans == 0).any()


@pytest.mark.parametrize("tokenizer", ["testbed", "gpt2"])
def test_induction_marks_what_comes_again(request: pytest.FixtureRequest, tokenizer: str) -> None:
    tokenizer = request.getfixturevalue(tokenizer)
    task = induction(tokenizer, **SIZES)
    for batch in splits(task):
        for row in range(len(batch)):
            found = {name: words_of(tokenizer, task, batch, row, name) for name in task.span_names}
            assert found["next"][1] == tokenizer.decode(batch.answers[row]).strip()
            assert found["end"][1] == found["before"][1]
            assert found["again"][1] == found["first"][1]
            assert found["next"][0][0] == found["before"][0][-1] + 1
            assert found["end"][0] == batch.positions[row].tolist()


def test_discovery_has_no_test_examples() -> None:
    assert [field.name for field in dataclasses.fields(Discovery)] == ["name", "streams", "provenance", "span_names"]


WRONG_SPANS = {
    "overlap": ({"name": (12, 16), "other": (12, 16)}, ["name", "other"], "do not overlap"),
    "not listed": ({"name": (12, 16)}, ["end"], "Spans need names among"),
    "inside a token": ({"name": (12, 15)}, ["name"], "'Joh' cuts 'John'"),
    "end of a token": ({"name": (13, 16)}, ["name"], "'ohn' cuts 'John'"),
    "nothing": ({"name": (12, 12)}, ["name"], "at least one token"),
}


@pytest.mark.parametrize("case", WRONG_SPANS)
def test_spans_that_are_no_words_are_refused(testbed: Any, case: str) -> None:
    spans, names, message = WRONG_SPANS[case]
    with pytest.raises(ValueError, match=message):
        from_pairs("pairs", testbed, span_names=names, **repeat([dataclasses.replace(HE, spans=spans)]))


def test_labels_are_for_all_examples_or_none(testbed: Any) -> None:
    with pytest.raises(ValueError, match="1 of 2 have one"):
        from_pairs("pairs", testbed, **repeat([HE, dataclasses.replace(SHE, label=1)]))


def test_fields_of_another_size_are_refused(testbed: Any) -> None:
    batch = from_pairs("pairs", testbed, **repeat([HE, SHE])).test
    for changes in ({"labels": torch.zeros(3, dtype=torch.long)}, {"spans": torch.zeros(2, 3, dtype=torch.long)}):
        with pytest.raises((ValueError, TypeError), match=r"Give each|Type-check error"):
            dataclasses.replace(batch, **changes)


class Slow:
    """A fast tokenizer that does not say where its tokens stand."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        return self.tokenizer(text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", ["testbed", "gpt2", "stories"])
def test_words_are_found_under_slow_tokenizers_as_under_fast_ones(
    request: pytest.FixtureRequest, tokenizer: str, text: str
) -> None:
    fast = request.getfixturevalue(tokenizer)
    begin = 0
    for word in text.split():
        begin = text.index(word, begin)
        places = [tokens_within(text, token_bounds(one, text), begin, begin + len(word)) for one in (fast, Slow(fast))]
        assert places[0] == places[1]
        begin += len(word)


def test_a_slow_tokenizer_of_bytes() -> None:
    text = "a caf\u00e9 sat"
    bounds = token_bounds(ByT5Tokenizer(), text)
    assert tokens_within(text, bounds, 2, 6) == range(2, 7)
    assert tokens_within(text, bounds, 7, 10) == range(8, 11)


def test_a_mark_may_leave_out_the_space_but_cut_nothing_else(gpt2: Any) -> None:
    text = "one + two = three"
    bounds = token_bounds(gpt2, text)
    assert tokens_within(text, bounds, 12, 17) == tokens_within(text, bounds, 11, 17) == range(4, 5)
    assert Pair(text, text, "", "").spans == {}
    for begin, end in ((12, 16), (13, 17), (10, 13)):
        with pytest.raises(ValueError, match="must be whole tokens but"):
            tokens_within(text, bounds, begin, end)
