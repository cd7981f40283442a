"""MIB's tasks: small files with the real columns, tokenised and filtered as MIB's circuit track does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import check_one_line

import tlprune as tp
from tlprune.cli import main
from tlprune.tasks import MIB_TASKS, TASKS, mib

SPLITS = ("train", "validation", "test")
PEOPLE = ["Mary", "John", "Paul", "Anna", "Tom", "Mark"]


def ioi_row(place: int, receiver: str = "Mary", subject: str = "John", third: str = "Paul") -> dict[str, Any]:
    text = "Then, {0} and {1} went to the {2}. {3} gave a ring to"
    where = ("store", "park", "school", "house")[place % 4]
    other = ("Anna", "Tom", "Mark")
    twins = {
        "s2_io_flip": (receiver, subject, where, receiver),
        "s1_io_flip": (subject, receiver, where, subject),
        "abc": (*other[:2], where, other[2]),
    }
    return {
        "template": "Then, {name_A} and {name_B} went to the {place}. {name_C} gave a {object} to",
        "metadata": {
            **{"indirect_object": receiver, "subject": subject, "object": "ring", "place": where},
            **{"random_a": other[0], "random_b": other[1], "random_c": third},
        },
        "prompt": text.format(receiver, subject, where, subject),
        "choices": [receiver, subject],
        "answerKey": 0,
        **{
            f"{name}_counterfactual": {"prompt": text.format(*words), "choices": [*words[:2]], "answerKey": 0}
            for name, words in twins.items()
        },
    }


def choice_row(place: int, right: int = 1) -> dict[str, Any]:
    colours = ["brown", "gray", "black", "white"]
    text = "A box is {}. What color is a box?\n{}\nAnswer:"

    def prompt(labels: list[Any]) -> str:
        return text.format(colours[right], "\n".join(f"{label}. {c}" for label, c in zip(labels, colours, strict=True)))

    letters, numbers = list("ABCD"), [1, 2, 3, 4]
    moved = colours[::-1]
    return {
        "question": f"A box is {colours[right]}. What color is a box?",
        "choices": {"label": letters, "text": colours},
        "answerKey": right,
        "prompt": prompt(letters),
        "symbol_counterfactual": {
            "prompt": prompt(numbers), "choices": {"label": numbers, "text": colours}, "answerKey": right,
        },
        "answerPosition_counterfactual": {
            "prompt": prompt(letters), "choices": {"label": letters, "text": moved}, "answerKey": 3 - right,
        },
        "idx": place,
    }  # fmt: skip


def sum_row(a: int, b: int, sign: str = "+", twin: tuple[int, int] | None = (2, 3)) -> dict[str, Any]:
    def label(x: int, y: int) -> int:
        return x + y if sign == "+" else x - y

    other: dict[str, Any] | None = (
        None if twin is None else {"label": label(*twin), "operand1": twin[0], "operand2": twin[1]}
    )
    if other is not None and twin is not None:
        other["prompt"] = f"{twin[0]} {sign} {twin[1]} ="
    return {
        **{"idx": a, "template": "{op1} {operator} {op2} =", "prompt": f"{a} {sign} {b} =", "label": str(label(a, b))},
        **{"operator": sign, "num_digit": 1, "operand1": a, "operand2": b, "random_counterfactual": other},
    }


def parts(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return dict.fromkeys(SPLITS, rows)


def first(tokenizer: Any, word: str) -> int:
    return tokenizer(word, add_special_tokens=False)["input_ids"][0]


def texts(tokenizer: Any, task: tp.Task, split: str = "test") -> list[tuple[str, str, str, str]]:
    """Prompt, twin, answer and foil, without what is padding."""
    batch = getattr(task.streams["main"], split)
    found = []
    for row in range(len(batch)):
        stop = int(batch.positions[row, 0]) + 1
        words = (batch.clean.ids[row, :stop], batch.corrupt.ids[row, :stop], batch.answers[row], batch.foils[row])
        found.append(tuple(tokenizer.decode(ids) for ids in words))
    return found


# ---- what is read


def test_ioi_is_tokenised_as_mib_does(gpt2: Any) -> None:
    rows = [ioi_row(0), ioi_row(1, "Anna", "Tom")]
    task = mib("ioi", gpt2, parts(rows))
    expected = [
        (f"<|endoftext|>{row['prompt']}", f"<|endoftext|>{row['s2_io_flip_counterfactual']['prompt']}", io, s)
        for row, io, s in zip(rows, (" Mary", " Anna"), (" John", " Tom"), strict=True)
    ]
    assert texts(gpt2, task) == expected
    assert (task.name, task.tokenisation.prepend_bos, task.tokenisation.padding_side) == ("mib-ioi", True, "right")
    assert task.options["counterfactual"] == "s2_io_flip_counterfactual"


@pytest.mark.parametrize("name", ["abc", "abc_counterfactual", "s1_io_flip"])
def test_another_counterfactual_changes_the_twin_alone(gpt2: Any, name: str) -> None:
    row = ioi_row(0)
    task, default = mib("ioi", gpt2, parts([row]), counterfactual=name), mib("ioi", gpt2, parts([row]))
    column = name if name in row else f"{name}_counterfactual"
    assert texts(gpt2, task)[0][1] == "<|endoftext|>" + row[column]["prompt"]
    assert torch.equal(task.test.clean.ids, default.test.clean.ids)
    assert torch.equal(task.test.answers, default.test.answers)
    assert torch.equal(task.test.foils, default.test.foils)


def test_choices_are_compared_by_their_labels_as_they_stand(gpt2: Any) -> None:
    rows = [choice_row(0, 1), choice_row(1, 3)]
    for name in ("mcqa", "arc-easy", "arc-challenge"):
        task = mib(name, gpt2, parts(rows))
        assert [found[2:] for found in texts(gpt2, task)] == [("B", "2"), ("D", "4")]
        assert task.test.answers.tolist() == [[first(gpt2, "B")], [first(gpt2, "D")]]
    moved = mib("mcqa", gpt2, parts(rows), counterfactual="answerPosition")
    assert [found[2:] for found in texts(gpt2, moved)] == [("B", "C"), ("D", "A")]


@pytest.mark.parametrize(("name", "sign"), [("arithmetic-addition", "+"), ("arithmetic-subtraction", "-")])
def test_arithmetic_keeps_rows_of_its_operator(gpt2: Any, name: str, sign: str) -> None:
    other = "-" if sign == "+" else "+"
    rows = [sum_row(6, 2, sign, (5, 1)), sum_row(6, 2, other), sum_row(7, 1, sign, None)]
    task = mib(name, gpt2, parts(rows))
    expected = (("8", "6"), ("4", "4"))[sign == "-"]
    assert [found[2:] for found in texts(gpt2, task)] == [expected]
    assert task.options["left_out"]["train"] == {"another operator": 1, "no counterfactual": 1}
    assert task.options["answer_is_foil"]["test"] == int(sign == "-")


def test_a_counterfactual_without_prompt_is_none(gpt2: Any) -> None:
    """So parquet gives back a struct that was missing."""
    empty = {"label": None, "operand1": None, "operand2": None, "prompt": None}
    rows = [sum_row(6, 2), {**sum_row(7, 1), "random_counterfactual": empty}]
    assert mib("arithmetic-addition", gpt2, parts(rows)).options["left_out"]["test"] == {"no counterfactual": 1}


# ---- what is left out


def test_rows_that_cannot_be_compared_are_left_out_and_counted(gpt2: Any) -> None:
    long = "Mildred"
    assert len(gpt2(f" {long}")["input_ids"]) > 1
    rows = [
        ioi_row(0),
        ioi_row(1, long, "John"),
        ioi_row(2, "Mary", "John", long),
        {**ioi_row(3), "s2_io_flip_counterfactual": {"prompt": "Too short a"}},
    ]
    task = mib("ioi", gpt2, parts(rows))
    assert len(task.test) == 1
    counts = {"answers of different lengths": 2, "prompts of different lengths": 1}
    assert task.options["left_out"] == dict.fromkeys(SPLITS, counts)
    both = ioi_row(0, long, "Beatrice", long)
    longer = mib("ioi", gpt2, parts([both]))
    assert longer.test.answers.tolist() == [[first(gpt2, f" {long}")]]
    many = [sum_row(6, 2), sum_row(60_000_001, 2, twin=(60_000_003, 4))]
    left = mib("arithmetic-addition", gpt2, parts(many)).options["left_out"]["test"]
    assert sum(left.values()) == 1


def test_no_row_left_is_an_error(gpt2: Any) -> None:
    rows = [{**ioi_row(3), "s2_io_flip_counterfactual": {"prompt": "Too short"}}]
    with pytest.raises(ValueError, match="in train but all are left out: 1 for prompts of different lengths"):
        mib("ioi", gpt2, parts(rows))
    with pytest.raises(ValueError, match="left out: there are none"):
        mib("ioi", gpt2, {**parts([ioi_row(0)]), "validation": []})


def test_sizes_take_the_first_rows_that_stay(gpt2: Any) -> None:
    rows = [ioi_row(0, "Mildred"), *(ioi_row(place) for place in range(4))]
    task = mib("ioi", gpt2, parts(rows), train=2, validation=1)
    assert [len(getattr(task.streams["main"], split)) for split in SPLITS] == [2, 1, 4]
    assert "store" in texts(gpt2, task, "train")[0][0]
    assert task.options["test_prompts_seen"] == 2
    own = {"train": rows[1:2], "validation": rows[1:2], "test": rows[3:]}
    assert mib("ioi", gpt2, own).options["test_prompts_seen"] == 0


# ---- where it is read from


def test_files_of_every_kind_give_the_same(tmp_path: Path, gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [choice_row(place, place % 4) for place in range(5)]
    given = mib("mcqa", gpt2, parts(rows)).fingerprint
    lines, tables = tmp_path / "lines", tmp_path / "tables"
    for folder in (lines, tables / "4_answer_choices"):
        folder.mkdir(parents=True)
    table = datasets.Dataset.from_list(rows)
    for split in SPLITS:
        (lines / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        table.to_parquet(tables / "4_answer_choices" / f"{split}-00000-of-00001.parquet")
    datasets.DatasetDict(dict.fromkeys(SPLITS, table)).save_to_disk(str(tmp_path / "saved"))
    for folder in (lines, tables, tmp_path / "saved"):
        assert mib("mcqa", gpt2, folder).fingerprint == given
    lines.rename(tmp_path / "mib-mcqa")
    monkeypatch.setenv("TLPRUNE_DATA", str(tmp_path))
    assert TASKS["mib-mcqa"](gpt2, seed=3).fingerprint == given


def test_the_hub_is_asked_for_mibs_repositories(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked, rows = [], {"ioi": [ioi_row(0)], "4_answer_choices": [choice_row(0)]}

    def load_dataset(repository: str, configuration: str | None, *, split: str) -> Any:
        asked.append((repository, configuration, split))
        return datasets.Dataset.from_list(rows[configuration or "ioi"])

    monkeypatch.delenv("TLPRUNE_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    mib("mcqa", gpt2)
    assert asked == [("mib-bench/copycolors_mcqa", "4_answer_choices", split) for split in SPLITS]
    asked.clear()
    private = mib("ioi", gpt2, test_set="private")
    assert asked[-1] == ("mib-bench/ioi_private_test", None, "test")
    assert asked[:2] == [("mib-bench/ioi", None, split) for split in SPLITS[:2]]
    assert private.options["test_set"] == "private"


def test_without_a_network_the_error_says_where_to_put_the_files(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TLPRUNE_DATA", raising=False)
    with pytest.raises(ValueError, match=r"from the hub \(mib-bench/arc_easy\).*TLPRUNE_DATA/mib-arc-easy"):
        mib("arc-easy", gpt2)


def test_the_private_test_is_never_the_public_one(tmp_path: Path, gpt2: Any) -> None:
    public, secret = [ioi_row(0)], [ioi_row(1, "Anna", "Tom")]
    task = mib("ioi", gpt2, {**parts(public), "private": secret}, test_set="private")
    assert texts(gpt2, task)[0][2:] == (" Anna", " Tom")
    for source in (parts(public), tmp_path):
        (tmp_path / "train.jsonl").write_text(json.dumps(public[0]))
        (tmp_path / "validation.jsonl").write_text(json.dumps(public[0]))
        with pytest.raises(ValueError, match=r"but .* was given without"):
            mib("ioi", gpt2, source, test_set="private")


# ---- what is refused


def test_errors_name_what_is_wrong(gpt2: Any) -> None:
    with pytest.raises(ValueError, match=r"arithmetic-addition, .* but 'addition' was asked for"):
        mib("addition", gpt2, {})
    with pytest.raises(ValueError, match="row 1: the counterfactuals are s2_io_flip, s1_io_flip, abc but 'noise'"):
        mib("ioi", gpt2, parts([ioi_row(0)]), counterfactual="noise")
    row = ioi_row(0)
    del row["metadata"]["random_c"]
    with pytest.raises(ValueError, match=r"row 1: a row of mib-ioi needs .* lacks 'random_c'"):
        mib("ioi", gpt2, parts([row]))


def test_a_tokenizer_without_a_beginning_takes_its_end(gpt2: Any) -> None:
    from copy import deepcopy

    tokenizer = deepcopy(gpt2)
    tokenizer.bos_token = None
    task = mib("ioi", tokenizer, parts([ioi_row(0)]))
    assert task.test.clean.ids[0, 0] == gpt2.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has neither"):
        mib("ioi", tokenizer, parts([ioi_row(0)]))


def test_all_tasks_are_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {f"mib-{name}" for name in MIB_TASKS} <= {*TASKS}
    monkeypatch.delenv("TLPRUNE_DATA", raising=False)
    assert main(["discover", "--model", "testbed", "--task", "mib-ioi", "--out", str(tmp_path / "run")]) == 2
    check_one_line(capsys.readouterr().err, "mib-ioi cannot be read from the hub")


def test_a_circuit_is_found_and_measured_on_a_task_of_mib() -> None:
    model = tp.load("testbed")
    rows = [
        ioi_row(place, *names) for place in range(4) for names in (("Mary", "John"), ("Anna", "Tom"), ("Mary", "Tom"))
    ]
    for row in rows:
        row["prompt"] = row["prompt"].replace("Then, ", "So ")
        for key in [key for key in row if key.endswith("_counterfactual")]:
            row[key]["prompt"] = row[key]["prompt"].replace("Then, ", "So ")
    task = mib("ioi", model, parts(rows))
    circuit = tp.EdgePruning(edges=50, steps=2).find(model, task)
    found = tp.evaluate(model, circuit, task)
    assert circuit.provenance["task"]["name"] == "mib-ioi"
    assert circuit.provenance["task"]["options"]["counterfactual"] == "s2_io_flip_counterfactual"
    assert len(found.rows) > 1
