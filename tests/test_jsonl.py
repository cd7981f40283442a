"""Prompts from files: what is predicted, how it is tokenised, where the test comes from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import check_one_line
from test_tasks import HE, prompts, splits

import tlprune as tp
from tlprune.circuit import Circuit
from tlprune.cli import main
from tlprune.graph import Graph
from tlprune.task import Task
from tlprune.tasks import from_pairs, jsonl

SUMS = [(a, b) for a in range(1, 4) for b in range(1, 4)]
NAMES = ["John", "Paul", "Mark", "Mary", "Anna", "Emma"]


def written(folder: Path, rows: list[Any], name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def addition(a: int, b: int, **more: Any) -> dict[str, Any]:
    clean, corrupted = (f"{a} + {b} = <predict>{a + b}</predict>" for b in (b, b + 1))
    return {"clean": clean, "corrupted": corrupted, **more}


def test_a_row_with_its_answer_at_the_end_is_a_pair(tmp_path: Path, testbed: Any) -> None:
    row = {"clean": f"{HE.clean} <predict>he</predict>", "corrupted": f"{HE.corrupt} <predict>she</predict>"}
    rows = [{**row, "split": split} for split in ("train", "validation")]
    test = {key: value.replace("know", "think") for key, value in row.items()}
    found = jsonl(testbed, written(tmp_path, [*rows, {**test, "split": "test"}])).discovery.train()
    same = from_pairs("pairs", testbed, train=[HE], validation=[HE], test=[HE]).test
    for name in ("positions", "answers", "foils"):
        assert torch.equal(getattr(found, name), getattr(same, name))
    assert torch.equal(found.clean.ids, same.clean.ids)
    assert torch.equal(found.corrupt.ids, same.corrupt.ids)


@pytest.mark.parametrize(("tokenizer", "offsets"), [("gpt2", [2, 4]), ("stories", [3, 6, 7])])
def test_tags_anywhere_change_no_token(
    request: pytest.FixtureRequest, tmp_path: Path, tokenizer: str, offsets: list[int]
) -> None:
    """A tag before the space takes a token of just that space along, and one behind it does not."""
    tokenizer = request.getfixturevalue(tokenizer)
    clean, corrupted = (
        f"{first} <predict>{second}</predict> 7<predict> {third}</predict> 9" for first, second, third in ("513", "624")
    )
    rows = [{"clean": f"{start} {clean}", "corrupted": f"{start} {corrupted}"} for start in ("1", "2", "3 4")]
    for batch in splits(jsonl(tokenizer, written(tmp_path, rows), held_out=0.3)):
        for row in range(len(batch)):
            ids = batch.clean.ids[row, : batch.positions[row, -1] + 1].tolist()
            start = tokenizer.decode(ids[1:]).partition("5")[0].strip()
            whole = tokenizer(f"{start} 5 1 7 3 9", add_special_tokens=False)["input_ids"]
            assert whole[: len(ids) - 1] == ids[1:]
            assert tokenizer.decode(batch.answers[row, 0]).strip() == "1"
            assert tokenizer.decode(batch.answers[row, -1]).strip() == "3"
            steps = batch.positions[row] - batch.positions[row, 0]
            assert steps.tolist() == [offset - offsets[0] for offset in offsets]
            assert batch.answers[row].tolist() == [whole[position] for position in batch.positions[row]]


def test_answers_of_several_tokens_are_read_one_by_one(tmp_path: Path, gpt2: Any) -> None:
    rows = [
        {"clean": f"{word}: <predict>Mildred</predict> sat", "corrupted": f"{word}: <predict>Beatrice</predict> sat"}
        for word in ("Name", "Who", "Say")
    ]
    pieces = [gpt2(f" {name}")["input_ids"] for name in ("Mildred", "Beatrice")]
    assert len(pieces[0]) == len(pieces[1]) == 2
    batch = jsonl(gpt2, written(tmp_path, rows)).test
    colon = (batch.clean.ids[0] == gpt2(":")["input_ids"][0]).nonzero().item()
    assert (batch.answers.tolist(), batch.foils.tolist()) == ([pieces[0]], [pieces[1]])
    assert batch.positions.tolist() == [[colon, colon + 1]]
    assert batch.clean.ids[0, colon + 1 :].tolist() == pieces[0][:1]
    assert batch.corrupt.ids[0, colon + 1 :].tolist() == pieces[1][:1]


def test_a_foil_of_its_own(tmp_path: Path, gpt2: Any) -> None:
    rows = [{**addition(a, b), "foil": "9"} for a, b in SUMS]
    batch = jsonl(gpt2, written(tmp_path, rows)).test
    assert set(gpt2.batch_decode(batch.foils)) == {" 9"}
    rows = [{**row, "foil": ["8"]} for row in rows]
    assert set(gpt2.batch_decode(jsonl(gpt2, written(tmp_path, rows)).test.foils)) == {" 8"}


def test_twins_without_tags_are_the_same_prompts_without_foils(tmp_path: Path, gpt2: Any) -> None:
    """Edge Pruning's code takes the tagged part out of a corrupted text where there is one."""
    tagged = jsonl(gpt2, written(tmp_path, GOOD))
    plain = [row["corrupted"].replace("<predict>", "").replace("</predict>", "") for row in GOOD]
    for texts in (plain, [text.partition("=")[0] + "= " for text in plain]):
        rows = [{**row, "corrupted": text} for row, text in zip(GOOD, texts, strict=True)]
        for batch, same in zip(splits(jsonl(gpt2, written(tmp_path, rows))), splits(tagged), strict=True):
            assert torch.equal(batch.clean.ids, same.clean.ids)
            assert torch.equal(batch.corrupt.ids, same.corrupt.ids)
            assert bool((batch.foils == -100).all())
        stated = [{**row, "foil": "9"} for row in rows]
        assert set(gpt2.batch_decode(jsonl(gpt2, written(tmp_path, stated)).test.foils)) == {" 9"}


def test_rows_may_predict_more_than_others(tmp_path: Path) -> None:
    """Each token of an objective weighs the same; each example of an evaluation, by the tokens that it has."""
    model, rows = tp.load("testbed"), list[dict[str, str]]()
    for name, word, foil in (
        ("John", "he", "she"),
        ("Anna", "she", "he"),
        ("Paul", "he", "she"),
        ("Emma", "she", "he"),
    ):
        long = [
            f"So {name} is <predict>{a}</predict> and <predict>{b}</predict>"
            for a, b in (("kind", word), ("brave", foil))
        ]
        rows.append(dict(zip(("clean", "corrupted"), long, strict=True)))
        rows.append({key: text.partition(" and")[0] for key, text in rows[-1].items()})
    batch = jsonl(model, written(tmp_path, rows)).discovery.train()
    short = int((batch.answers[:, 1] < 0).nonzero()[0])
    whole = int((batch.answers[:, 1] >= 0).nonzero()[0])
    assert batch.foils[short, 1] == -100
    both = batch.rows(torch.tensor([whole, short]))
    logits = torch.randn(2, 2, model.cfg.d_vocab, generator=torch.Generator().manual_seed(0))
    places = [(0, 0), (0, 1), (1, 0)]
    apart = [float(logits[place][both.answers[place]] - logits[place][both.foils[place]]) for place in places]
    assert float(tp.LogitDifference()(logits, both, logits)) == pytest.approx(-sum(apart) / 3)
    everything = Circuit.from_edges(model, Graph.of(model).edges())
    parts = [tp.evaluate(model, everything, both.rows(torch.tensor(own))) for own in ([0, 1], [0], [1])]
    for name in ("logit_difference", "accuracy"):
        found, *single = [one["full model"].performance.figure(name).tolist() for one in parts]
        assert found == pytest.approx(single[0] + single[1], abs=1e-4)


def test_objects_over_several_lines_as_in_the_description_of_the_format(tmp_path: Path, gpt2: Any) -> None:
    flat = jsonl(gpt2, written(tmp_path, GOOD))
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row, indent=4) for row in GOOD))
    assert jsonl(gpt2, path).fingerprint == flat.fingerprint
    path.write_text(json.dumps(GOOD[0], indent=4) + "\n{\n 3: 4\n}")
    with pytest.raises(ValueError, match=r"mine.jsonl, line 5: .* at character 4"):
        jsonl(gpt2, path)
    path.write_text(json.dumps(GOOD[0]) + " " + json.dumps(GOOD[1]))
    with pytest.raises(ValueError, match=r"line 1: .*Extra data"):
        jsonl(gpt2, path)


def texts(tokenizer: Any, task: Task) -> list[set[str]]:
    return [{text.split("|>")[-1] for text in prompts(tokenizer, batch)} for batch in splits(task)]


def test_without_splits_rows_serve_training_and_validation_and_some_are_held_out(tmp_path: Path, gpt2: Any) -> None:
    path = written(tmp_path, [addition(a, b) for a, b in [*SUMS, *SUMS]])
    task = jsonl(gpt2, path, held_out=1 / 3)
    train, validation, test = texts(gpt2, task)
    assert (len(train), len(test), len(task.test)) == (6, 3, 6)
    assert train == validation
    assert not train & test
    assert jsonl(gpt2, path, held_out=1 / 3).fingerprint == task.fingerprint
    assert len({jsonl(gpt2, path, seed=seed).fingerprint for seed in range(5)}) > 1
    assert task.options["test"] == {"from": "held_out", "share": 1 / 3, "seed": 0}


def test_marked_rows_go_where_they_say(tmp_path: Path, gpt2: Any) -> None:
    marks = ["train", "validation", "test"]
    path = written(tmp_path, [addition(*pair, split=marks[number % 3]) for number, pair in enumerate(SUMS)])
    found = texts(gpt2, jsonl(gpt2, path))
    assert found == [{f"{a} + {b} =" for a, b in SUMS[first::3]} for first in range(3)]
    assert jsonl(gpt2, path).options["test"] == {"from": "split"}
    path = written(tmp_path, [addition(*pair, split=marks[number % 2]) for number, pair in enumerate(SUMS)])
    train, validation, test = texts(gpt2, jsonl(gpt2, path))
    assert (len(train), len(validation), len(test)) == (4, 4, 1)
    assert len(train | validation | test) == len(SUMS)


def test_a_second_file_for_the_test(tmp_path: Path, gpt2: Any) -> None:
    path = written(tmp_path, [addition(a, b) for a, b in SUMS[:6]])
    other = written(tmp_path, [addition(a, b) for a, b in SUMS[6:]], "test.jsonl")
    task = jsonl(gpt2, path, test=other)
    assert [len(batch) for batch in splits(task)] == [6, 6, 3]
    assert task.options["test"]["name"] == "test.jsonl"
    hashes = {task.options["file"]["sha256"], task.options["test"]["sha256"]}
    path.write_text(path.read_text() + "\n")
    assert jsonl(gpt2, path, test=other).options["file"]["sha256"] not in hashes
    with pytest.raises(ValueError, match=r"mine.jsonl, line 1: test prompts must be .* also at .*mine.jsonl, line 1"):
        jsonl(gpt2, path, test=path)


GOOD = [addition(a, b) for a, b in SUMS]
ONE = {"clean": "1 + 1 = <predict>2</predict>", "corrupted": "1 + 2 = <predict>3</predict>"}
REFUSED = {
    "not JSON": ('{"clean": "a", ', r"this is not JSON \(.* at character \d+\)"),
    "no object": ("[1, 2]", "must be a JSON object"),
    "missing key": ({"clean": "a"}, r"lacks \['corrupted'\]"),
    "unknown key": ({**ONE, "splt": "train"}, r"has also \['splt'\]"),
    "number": ({**ONE, "clean": 3}, "must be text"),
    "unknown split": ({**ONE, "split": "dev"}, "'split' must be one of train, validation, test but is 'dev'"),
    "split in some rows": ({**ONE, "split": "train"}, "'split' must be in all rows"),
    "nothing to predict": ({**ONE, "clean": "1 + 1 = 2"}, "has no tag"),
    "open tag": ({**ONE, "clean": "1 + 1 = <predict>2"}, "must open and close in turn"),
    "closed first": ({**ONE, "clean": "1 + </predict>1<predict> = 2"}, "must open and close in turn"),
    "nested": ({**ONE, "clean": "1 + <predict><predict>1</predict></predict> = 2"}, "must open and close in turn"),
    "nothing between tags": ({**ONE, "clean": "1 + 1 = 2<predict></predict>"}, "at least one token"),
    "cut token": ({**ONE, "clean": "1 + 1 = th<predict>ree</predict>"}, "'ree' cuts ' three'"),
    "other length": ({**ONE, "corrupted": "1 + 1 + 1 = <predict>3</predict>"}, "has 5 and .* has 7"),
    "other number of answers": (
        {**ONE, "corrupted": "1 + <predict>2</predict> = <predict>3</predict>"}, r"at \[4\] and \[2, 4\]"
    ),
    "other place": ({**ONE, "corrupted": "1 + <predict>2</predict> = 3"}, r"at \[4\] and \[2\]"),
    "same answer": ({**ONE, "corrupted": "2 + 0 = <predict>2</predict>"}, "must differ from the answer"),
    "a twin that is too short": ({**ONE, "corrupted": "1 + 2"}, r"clean one, 5, or .* token, 4, but .* has 3"),
    "a twin that is too long": ({**ONE, "corrupted": "1 + 2 + 3 = 6"}, "has 7"),
    "a twin without foil": ({**ONE, "corrupted": "1 + 2 ="}, "this has no foil and .*line 1 has some"),
    "two foils": ({**ONE, "foil": ["3", "4"]}, "1 have 2"),
    "long foil": ({**ONE, "foil": "3 or 4"}, "but '3 or 4' has 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_row_is_refused_by_file_and_line(tmp_path: Path, gpt2: Any, case: str) -> None:
    row, message = REFUSED[case]
    rows = [{"clean": "7 + 1 = <predict>8</predict>", "corrupted": "7 + 2 = <predict>9</predict>"}, "", row, *GOOD[2:]]
    bad = 1 if case == "split in some rows" else 3
    with pytest.raises(ValueError, match=message) as caught:
        jsonl(gpt2, written(tmp_path, rows), held_out=0.01, seed=3)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.jsonl'}, line {bad}: ")
    assert "\n" not in str(caught.value)


def test_bad_files_and_splits_are_refused(tmp_path: Path, gpt2: Any) -> None:
    path = tmp_path / "mine.jsonl"
    with pytest.raises(ValueError, match=r"Cannot read the prompts in .*No such file"):
        jsonl(gpt2, path)
    with pytest.raises(ValueError, match="at least one row but is empty"):
        jsonl(gpt2, written(tmp_path, ["", " "]))
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="must be UTF-8"):
        jsonl(gpt2, path)
    with pytest.raises(ValueError, match="validation is empty"):
        jsonl(gpt2, written(tmp_path, [{**row, "split": "train"} for row in GOOD]))
    with pytest.raises(ValueError, match="train is empty"):
        jsonl(gpt2, written(tmp_path, [{**row, "split": "validation"} for row in GOOD]))
    for rows, share in ((GOOD[:1], 0.2), (GOOD, 0.0), (GOOD, 1.0), (GOOD, 0.99)):
        with pytest.raises(ValueError, match="leaves none to learn from"):
            jsonl(gpt2, written(tmp_path, rows), held_out=share)
    marked = written(tmp_path, [{**row, "split": "test"} for row in GOOD], "marked.jsonl")
    with pytest.raises(ValueError, match="must come from one place"):
        jsonl(gpt2, marked, test=marked)
    first = "<predict>{}</predict> + 1"
    rows = [{"clean": first.format(a), "corrupted": first.format(a + 1)} for a in (1, 2, 3)]
    start = written(tmp_path, rows)
    assert jsonl(gpt2, start).test.positions.tolist() == [[0]]
    with pytest.raises(ValueError, match="this one comes first"):
        jsonl(gpt2, start, prepend_bos=False)


def test_the_command_line_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pronouns = dict(zip(NAMES, ["he"] * 3 + ["she"] * 3, strict=True))
    said = {name: f"So {name} is kind, isn't <predict>{pronouns[name]}</predict>" for name in NAMES}
    pairs = zip(NAMES, reversed(NAMES), strict=True)
    rows = [{"clean": said[name], "corrupted": said[twin]} for name, twin in pairs]
    path, out = written(tmp_path, rows), tmp_path / "run"
    words = ["discover", "--model", "testbed", "--task", str(path), "--edges", "20", "--steps", "2", "--out", str(out)]
    assert main(words) == 0
    known = Circuit.load(out / "circuit.json").provenance["task"]
    assert (known["name"], known["options"]["file"]["name"]) == ("mine", "mine.jsonl")
    assert known["tokenisation"]["predicted"] == "tagged"
    assert main(["evaluate", str(out / "circuit.json")]) == 0
    capsys.readouterr()
    path.write_text(path.read_text().replace("kind", "brave"))
    assert main(["evaluate", str(out / "circuit.json")]) == 2
    check_one_line(capsys.readouterr().err, "may be ones that it was trained on")
    assert main(["evaluate", str(out / "circuit.json"), "--task", str(path)]) == 0
    path.write_text("{")
    capsys.readouterr()
    assert main([*words[:-1], str(tmp_path / "other")]) == 2
    check_one_line(capsys.readouterr().err, r"mine.jsonl, line 1: each line must be")
    assert not (tmp_path / "other").exists()
