"""Facts and templates from files, made up and published."""

from __future__ import annotations

import json

import pytest

import tlprune as tp
from tlprune.tasks import TASKS, WORDNET_TARGETS, Fact, read_facts, read_templates, read_wordnet, worded, wordnet
from tlprune.tasks.knowledge.plain import PlainText

TEXT = PlainText(["a b c d e f g h i j k l m n"], block=4)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "relation,head,tail,note\nin,Paris,France,x\nin,Rome,Italy,\nin,Paris,France,again\n"),
        ("a.tsv", "subject\trelation\tobject\nParis\tin\tFrance\nRome\tin\tItaly\n"),
        (
            "lama.jsonl",
            '{"sub_label": "Paris", "obj_label": "France", "predicate_id": "in", "uuid": 3}\n'
            '{"sub_label": "Rome", "obj_label": " Italy", "predicate_id": "in"}\n',
        ),
        ("pred.jsonl", '{"sub_label": "Paris", "obj_label": "France", "pred": "in"}\n'
                       '{"sub_label": "Rome", "obj_label": "Italy", "pred": "in"}\n'),
        ("a.json", '[{"head": "Paris", "relation": "in", "tail": "France"},'
                   ' {"head": "Rome", "relation": "in", "tail": "Italy"}]'),
    ],
)  # fmt: skip
def test_triplets_of_several_makers_are_one(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_facts(tmp_path / name) == [Fact("Paris", "in", "France"), Fact("Rome", "in", "Italy")]


def test_templates_of_lama_put_facts_into_words(tmp_path):
    rows = [("P36", "The capital of [X] is [Y] ."), ("P19", "[X] was born in [Y] ."), ("P36", "[X] is ruled from [Y]")]
    path = tmp_path / "relations.jsonl"
    path.write_text("\n".join(json.dumps({"relation": name, "template": text}) for name, text in rows))
    found = read_templates(path)
    assert found["P36"] == ("The capital of {head} is {tail} .", "{head} is ruled from {tail}")
    (one,) = worded([Fact("Italy", "P36", "Rome")], found)
    assert list(one.train.values()) == [("The capital of Italy is Rome",)]
    assert list(one.test.values()) == [("Italy is ruled from Rome",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "head,tail\nParis,France\n", r"a\.csv: facts needs columns head, tail, relation or subject.*Rename"),
        ("a.csv", "", "must hold examples but is empty"),
        ("a.csv", "head,relation,tail\n", "must hold facts but there are none"),
        ("a.csv", "head,relation,tail\nParis,in\n", r"a\.csv, line 2: a row needs 3 fields"),
        ("a.csv", "head,relation,tail\nParis,in,\n", r"a\.csv, line 2: tail must be a text but is ''"),
        ("a.jsonl", '{"head": "a", "relation": "b", "tail": 3}', r"a\.jsonl, line 1: tail must be a text but is 3"),
        ("a.jsonl", '{"sub_label": "a", "obj_label": "b"}', r"a\.jsonl, line 1: facts needs columns .* predicate_id"),
        ("a.jsonl", "", "must hold facts but there are none"),
        ("a.jsonl", "{]", r"a\.jsonl, line 1: a line must be a JSON object but is not"),
        ("a.pdf", "", r"must end in one of \.csv"),
        (None, None, "needs the file .* but there is none"),
    ],
)
def test_files_that_hold_no_facts_are_refused(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_facts(tmp_path / (name or "none.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("relation,template\nP1,[X] is\n", r"t\.csv, line 2: a template needs \[X\] and \[Y\] but is '\{head\} is'"),
        ("relation,text\nP1,a\n", "templates needs columns template, relation"),
        ("relation,template\n", "must hold templates but there are none"),
    ],
)
def test_files_that_hold_no_templates_are_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_templates(tmp_path / "t.csv")


# ---- WordNet


@pytest.mark.parametrize("target", WORDNET_TARGETS)
def test_published_facts_are_single_tokens_to_gpt2_and_paraphrases_are_held_out(data_dir, gpt2, target, monkeypatch):
    monkeypatch.setenv("TLPRUNE_DATA", str(data_dir))
    task = TASKS[f"knowledge-wordnet-{target}"](gpt2, text=TEXT)
    assert task.name == f"knowledge-wordnet-{target}"
    rows = json.loads((data_dir / "data" / "knowledge-wordnet" / f"target-{target}.json").read_text())
    # By WordNet's words; one pair of synsets in "location" has the words of another.
    facts = {(row["head"].split(".")[0], row["tail"].split(".")[0]) for row in rows}
    assert {(head, tail) for head, _, tail in task.options["target"]} == facts
    main = task.streams["main"]
    used = [{task.label_names[n] for n in batch.labels.tolist()} for batch in (main.train, main.validation, main.test)]
    assert used[0] <= {"{head} is a type of {tail}", "{head} is a {tail}", "{head} is {tail}"}
    assert used[1] == {"{head} is a sort of {tail}"}
    assert used[2] == {"{head} is a kind of {tail}", "{head} is a hyponym of {tail}"}
    assert len(main.validation) == len(facts)
    assert len(main.test) == 2 * len(facts)


def test_the_published_choice_is_taken_where_nothing_runs(data_dir, gpt2):
    """A tokenizer has no perplexities, so the published sentence stands first, unless its template is held out."""
    folder = data_dir / "data" / "knowledge-wordnet"
    task = wordnet(gpt2, "building", source=folder, text=TEXT, prepend_bos=False)
    train = task.discovery.train()
    for row, (ids, (place,)) in zip(
        json.loads((folder / "target-building.json").read_text()),
        zip(train.clean.ids, train.positions.tolist(), strict=True),
        strict=True,
    ):
        published = "is a kind of" not in row["best_gpt2_input"]
        assert (gpt2.decode(ids[: place + 2]) == row["best_gpt2_input"]) == published
        assert gpt2.decode(ids[place + 1]) == " " + row["tail"].split(".")[0]


def made_up(folder, best=" A lodge is a type of house"):
    def row(text, head="lodge.n.01", tail="house.n.12"):
        return {"head": head, "tail": tail, "best_gpt2_input": text}

    paraphrases = ["Lodge is a kind of house", " Lodge is a kind of house", "A lodge is an house", "Lodge is a house"]
    contents = {
        "target-building.json": [row(best)],
        "target-building-paraphrases.json": [row(text) for text in paraphrases],
        "control.json": [row("An ant is a bug", "ant.n.01", "bug.n.01"), row("A lodge is a house", tail="house.n.01")],
    }
    for name, rows in contents.items():
        (folder / name).write_text(json.dumps(rows))


def test_articles_capitals_and_spaces_make_variants_of_one_template(tmp_path):
    made_up(tmp_path)
    (one,), (control,) = read_wordnet("building", source=tmp_path)
    assert one.fact == Fact("lodge", "hypernym", "house")
    assert one.train == {
        "{head} is a type of {tail}": (" A lodge is a type of house",),
        "{head} is a {tail}": ("A lodge is an house", "Lodge is a house"),
    }
    assert one.validation == {}
    assert one.test == {"{head} is a kind of {tail}": ("Lodge is a kind of house", " Lodge is a kind of house")}
    # The other fact has the words of the target.
    assert control.fact == Fact("ant", "hypernym", "bug")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"control\.json must be a list of facts but is \[\]"),
        ("{", r"control\.json must be JSON but is not"),
        (
            '[{"head": "a.n.01", "tail": "b.n.01"}]',
            r"control\.json, row 1: a fact needs head, tail and best_gpt2_input",
        ),
        (
            '[{"head": "ape.n.01", "tail": "beast.n.01", "best_gpt2_input": "A cow is a beast"}]',
            r"A sentence of \(ape, hypernym, beast\) needs its head, .* but is 'A cow is a beast'",
        ),
        (None, "Cannot read the facts .*Give the folder of all files"),
    ],
)
def test_other_files_than_the_published_are_refused(tmp_path, content, message):
    made_up(tmp_path)
    (tmp_path / "control.json").unlink()
    if content is not None:
        (tmp_path / "control.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_wordnet("building", source=tmp_path)


def test_a_target_or_folder_that_is_not_there_is_told(monkeypatch, testbed):
    monkeypatch.delenv("TLPRUNE_DATA", raising=False)
    with pytest.raises(ValueError, match="there is no knowledge-wordnet in"):
        wordnet(testbed, "building")
    with pytest.raises(ValueError, match=r"no target 'bilding'.*Did you mean building"):
        wordnet(testbed, "bilding")


def test_the_names_are_those_of_the_command_line():
    names = {"world", *(f"knowledge-wordnet-{target}" for target in WORDNET_TARGETS)}
    assert names <= {*TASKS}
    assert tp.tasks.task_builder("world") is tp.tasks.world
