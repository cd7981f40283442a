"""Labelled data: the layouts of the known data sets, what quoting and ragged rows do, errors that name the line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tlprune.tasks.labelled.data import Labelled, read_labelled
from tlprune.tasks.labelled.known import KNOWN, Columns, DataSet, Part
from tlprune.tasks.labelled.own import labelled_data

SENTENCE = "sentence\tlabel\n"
STSB = "main\tnews\t2012\t0001\t{}\t{}\t{}"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_quotation_marks_and_lone_carriage_returns_are_text_in_tab_separated_files(tmp_path: Path) -> None:
    path = written(tmp_path, "train.tsv", SENTENCE + '"so bad\t0\r\nhe said "fun" twice\t1\na\rb\t0\n\n')
    found = read_labelled("sst2", source=path)
    assert found.texts == ('"so bad', 'he said "fun" twice', "a\rb")
    assert found.labels == (0, 1, 0)
    assert found.classes == ("negative", "positive")
    assert found.pairs is None


def test_comma_separated_files_are_quoted(tmp_path: Path) -> None:
    path = written(tmp_path, "train.csv", 'sentence,label\n"so, so bad",0\n"a ""good"" one",positive\n')
    assert read_labelled("sst2", source=path).texts == ("so, so bad", 'a "good" one')
    written(tmp_path, "train.csv", 'sentence,label\n"never closed,0\n')
    with pytest.raises(ValueError, match="Close its quotation marks"):
        read_labelled("sst2", source=path)


def test_files_without_header_have_known_columns(tmp_path: Path) -> None:
    cola = written(tmp_path, "in_domain_train.tsv", "gj04\t1\t\tShe ran.\ngj04\t0\t*\tRan she.\n")
    assert read_labelled("cola", source=cola).rows([1]) == Labelled(
        "cola", ("Ran she.",), None, (0,), ("unacceptable", "acceptable")
    )
    stsb = [STSB.format("2.500", '"A" man', "A dog"), STSB.format("0", "x", "y") + "\tfrom here\tand there"]
    found = read_labelled("stsb", source=written(tmp_path, "sts-train.csv", "\n".join(stsb)))
    assert found.prompts() == [('"A" man', "A dog"), ("x", "y")]
    assert found.labels == (2.5, 0.0)
    assert found.regression
    with pytest.raises(ValueError, match=r"sts-train.csv, line 2: a row needs 7 fields .* but has 6"):
        read_labelled("stsb", source=written(tmp_path, "sts-train.csv", stsb[0] + "\n" + stsb[0].rpartition("\t")[0]))


def test_both_publishers_layouts_of_hans_give_the_same(tmp_path: Path) -> None:
    names = ["gold_label", "label", "premise", "hypothesis", "heuristic", "subcase", "template"]
    hub = "\t".join(names) + "\nnon-entailment\t1\tA man ran .\tA dog ran .\tconstituent\tcn_adverb\ttemp1\n"
    names = ["gold_label", "sentence1_parse", "sentence1", "sentence2", "pairID", "heuristic", "subcase"]
    authors = "\t".join(names) + "\nnon-entailment\t(ROOT)\tA man ran .\tA dog ran .\tex0\tconstituent\tcn_adverb\n"
    files = [written(tmp_path, name, text) for name, text in (("hub.tsv", hub), ("set.txt", authors))]
    one, other = (read_labelled("hans", "dev", source=file) for file in files)
    assert one == other
    assert (one.labels, one.subcases, one.prompts()) == ((1,), ("cn_adverb",), [("A man ran .", "A dog ran .")])


def test_json_by_number_json_lines_and_datasets_give_the_same(tmp_path: Path) -> None:
    import datasets

    rows = [
        {"text_a": "Salt kept.", "text_b": "Salt.", "label": "entailment"},
        {"text_a": "x ", "text_b": "y", "label": 2},
    ]
    numbered = {str(number): row for number, row in enumerate(rows)}
    table = datasets.Dataset.from_list([rows[0] | {"label": 0}, rows[1]])
    table.to_parquet(str(tmp_path / "rows.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    sources: list[Any] = [
        written(tmp_path, "subset_train.json", json.dumps(numbered)),
        written(tmp_path, "list.json", json.dumps(rows)),
        written(tmp_path, "rows.jsonl", "\n".join(map(json.dumps, rows))),
        tmp_path,
        tmp_path / "rows.parquet",
        tmp_path / "saved",
        table,
        rows,
    ]
    found = [read_labelled("mnli-subset", source=source) for source in sources]
    assert len({one.fingerprint for one in found}) == 1
    assert found[0].pairs == ("Salt.", "y")
    assert found[0].labels == (0, 2)


def test_what_has_no_agreed_label_is_left_out_where_the_data_set_says_so(tmp_path: Path) -> None:
    header = "sentence1\tsentence2\tgold_label\n"
    path = written(tmp_path, "dev_matched.tsv", header + "a\tb\t-\nc\td\tneutral\n")
    assert read_labelled("mnli", "dev", source=tmp_path).texts == ("c",)
    with pytest.raises(ValueError, match="line 2: a label must be one of"):
        read_labelled("hans", "dev", source=written(tmp_path, "x.tsv", header.strip() + "\tsubcase\na\tb\t-\tcn\n"))
    assert path.is_file()


def test_texts_that_were_printed_as_bytes_are_read_back(tmp_path: Path) -> None:
    rows = "id\tsentence1\tsentence2\tlabel\n1\tb'caf\\xc3\\xa9'\tb\"isn't\"\t0\n2\tplain\tb'\t1\n"
    path = written(tmp_path, "dev_and_test.tsv", rows.replace("b'\t1", "b\t1"))
    assert read_labelled("paws-qqp", "dev", source=path).prompts() == [("café", "isn't"), ("plain", "b")]
    other = written(tmp_path, "train.tsv", SENTENCE + "b'movie'\t0\n")
    assert read_labelled("sst2", source=other).texts == ("b'movie'",)


BAD = {
    "missing column": ("text\tlabel\nx\t1\n", "needs columns sentence, label but there are text, label"),
    "unknown label": (SENTENCE + "x\t1\ny\t2\n", "line 3: a label must be one of negative, positive"),
    "hidden label": (SENTENCE + "x\t-1\n", "line 2: .* not published"),
    "empty text": (SENTENCE + "x\t1\n  \t1\n", "line 3: .* sentence is empty"),
    "short row": (SENTENCE + "x\t1\n\nonly this\n", "line 4: a row needs 2 fields .* but has 1"),
    "long row": (SENTENCE + "x\ty\t1\n", "line 2: a row needs 2 fields .* but has 3"),
    "nothing": ("", "is empty"),
    "header alone": (SENTENCE, "must have examples"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_line(case: str, tmp_path: Path) -> None:
    text, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        read_labelled("sst2", source=written(tmp_path, "train.tsv", text))


def test_errors_of_other_formats_name_their_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: a line must be a JSON object"):
        read_labelled("sst2", source=written(tmp_path, "rows.jsonl", '{"sentence": "x", "label": 1}\n{"sentence"\n'))
    with pytest.raises(ValueError, match=r"rows.json, row 1: a row must be a JSON object but is 3"):
        read_labelled("sst2", source=written(tmp_path, "rows.json", "[3]"))
    with pytest.raises(ValueError, match=r"sst2 train, row 1: sentence must be text but is None"):
        read_labelled("sst2", source=[{"sentence": None, "label": 1}])
    with pytest.raises(ValueError, match=r"stsb train, row 1: a label must be a number but is 'nan'"):
        read_labelled("stsb", source=[{"sentence1": "a", "sentence2": "b", "label": "nan"}])
    with pytest.raises(ValueError, match="must end in one of"):
        read_labelled("sst2", source=written(tmp_path, "rows.xml", "x"))
    (tmp_path / "latin.tsv").write_bytes(SENTENCE.encode() + b"caf\xe9\t1\n")
    with pytest.raises(ValueError, match="UTF-8"):
        read_labelled("sst2", source=tmp_path / "latin.tsv")


def test_bytes_that_are_none_are_an_error(tmp_path: Path) -> None:
    rows = "sentence1\tsentence2\tlabel\nx\tb'not closed\t0\n"
    with pytest.raises(ValueError, match="line 2: sentence2 should spell bytes"):
        read_labelled("paws-qqp", "dev", source=written(tmp_path, "dev_and_test.tsv", rows))


def test_quoras_empty_questions_are_left_out() -> None:
    rows = [{"question1": "a", "question2": "", "label": 0}, {"question1": "a", "question2": "b", "label": 1}]
    assert read_labelled("qqp", source=rows).labels == (1,)


def test_sources_are_found_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLPRUNE_DATA", str(tmp_path))
    asked: list[Any] = []

    def load_dataset(*names: Any, split: str) -> Any:
        asked.append((*names, split))
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"cannot be read from the hub \(nyu-mll/glue\): no network. Give a folder"):
        read_labelled("sst2", "dev")
    assert asked == [("nyu-mll/glue", "sst2", "validation")]
    with pytest.raises(ValueError, match="is not on the hub"):
        read_labelled("mnli-subset", "dev")
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"needs one of glue_dev872.tsv, dev.tsv"):
        read_labelled("sst2", "dev")
    written(folder, "dev.tsv", SENTENCE + "other\t1\n")
    assert read_labelled("sst2", "dev").texts == ("other",)
    written(folder, "glue_dev872.tsv", SENTENCE + "glue\t1\n")
    assert read_labelled("sst2", "dev").texts == ("glue",)
    assert len(asked) == 1
    with pytest.raises(ValueError, match="has the parts train, dev but 'test'"):
        read_labelled("sst2", "test")
    with pytest.raises(ValueError, match="There is no data set 'sst3'"):
        read_labelled("sst3")


def test_a_hub_data_set_is_read_by_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TLPRUNE_DATA", raising=False)
    rows = {"train": [{"premise": "a", "hypothesis": "b", "label": 1}]}
    monkeypatch.setattr("datasets.load_dataset", lambda *names, split: rows[split])
    assert read_labelled("mnli").rows([0]).prompts() == [("a", "b")]


def test_a_data_set_of_your_own(tmp_path: Path) -> None:
    columns = Columns(("review",), "stars", "shop")
    mine = DataSet("mine", {"train": Part(None, ("mine.csv",))}, (columns,), ("one", "two"))
    written(tmp_path, "mine.csv", "shop,review,stars\nA,fine,two\n")
    assert read_labelled(mine, source=tmp_path) == Labelled("mine", ("fine",), None, (1,), ("one", "two"), ("A",))


HUB = {
    "qnli": ("nyu-mll/glue", "qnli", {"question": "a?", "sentence": "b.", "label": 1}, "not_entailment", "validation"),
    "imdb": ("stanfordnlp/imdb", None, {"text": "a", "label": 0}, "negative", "test"),
    "tweet-sentiment": ("cardiffnlp/tweet_eval", "sentiment", {"text": "a", "label": 2}, "positive", "validation"),
    "ag-news": ("fancyzhx/ag_news", None, {"text": "a", "label": 3}, "Sci/Tech", "test"),
    "dbpedia": ("fancyzhx/dbpedia_14", None, {"label": 13, "title": "a", "content": "b"}, "WrittenWork", "test"),
}


@pytest.mark.parametrize("name", HUB)
def test_rows_of_the_hub_mean_what_its_cards_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, configuration, row, meaning, split = HUB[name]
    asked: list[Any] = []
    monkeypatch.delenv("TLPRUNE_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset", lambda *names, split: asked.append((*names, split)) or [row])
    found = read_labelled(name, "dev")
    assert asked == [(repository, configuration, split)]
    assert found.classes[int(found.labels[0])] == meaning
    assert found.prompts() == [tuple(text for text in row.values() if isinstance(text, str))]


def test_dbpedias_own_tables_count_classes_from_one(tmp_path: Path) -> None:
    path = written(tmp_path, "train.csv", '1,"E. D. Abbott Ltd"," Abbott of ""Farnham"" built."\n14,A,B\n')
    found = read_labelled("dbpedia", source=path)
    assert [found.classes[int(label)] for label in found.labels] == ["Company", "WrittenWork"]
    assert found.prompts()[0] == ("E. D. Abbott Ltd", 'Abbott of "Farnham" built.')
    for number in (0, 15):
        with pytest.raises(ValueError, match=rf"line 1: .* a number from 1 to 14, but is '{number}'"):
            read_labelled("dbpedia", source=written(tmp_path, "train.csv", f"{number},A,B\n"))


def test_some_classes_are_kept_and_numbered_anew() -> None:
    rows = [
        {"premise": text, "hypothesis": "x", "label": label} for text, label in zip("abcd", (0, 1, 2, 0), strict=True)
    ]
    found = read_labelled("mnli", source=rows, only=("contradiction", "entailment"))
    assert found == Labelled("mnli", ("a", "c", "d"), ("x",) * 3, (1, 0, 1), ("contradiction", "entailment"))
    assert read_labelled("mnli", source=rows).only(("entailment", "neutral", "contradiction")).labels == (0, 1, 2, 0)
    for classes in (("entailment",), ("entailment", "entailment"), ("entailment", "other")):
        with pytest.raises(ValueError, match="At least two of the classes of mnli, entailment, neutral"):
            read_labelled("mnli", source=rows, only=classes)
    with pytest.raises(ValueError, match="has none of neutral"):
        read_labelled("mnli", source=[rows[0], rows[2]], only=("entailment", "neutral"))
    with pytest.raises(ValueError, match="a regression, which has none"):
        Labelled("stsb", ("a",), None, (0.5,), ()).only(("0", "1"))


def test_data_of_your_own_in_one_call(tmp_path: Path) -> None:
    train = written(tmp_path, "a.csv", 'review,stars,shop\n"good, very",10,A\nbad,9,B\nbad too,9,B\n')
    test = written(tmp_path, "b.jsonl", json.dumps({"review": "so so", "stars": 10, "shop": "A"}) + "\n")
    found = labelled_data("mine", train, test, text="review", label="stars", subcase="shop")
    assert found["train"] == Labelled("mine", ("good, very", "bad", "bad too"), None, (1, 0, 0), ("9", "10"), (*"ABB",))
    assert (found["test"].labels, found["test"].classes) == ((1,), ("9", "10"))
    numbers = labelled_data("mine", train, text="review", label="stars", classes=())
    assert ({*numbers}, numbers["train"].labels) == ({"train"}, (10.0, 9.0, 9.0))
    pairs = [
        {"a": "x", "b": "y", "label": "no"},
        {"a": "u", "b": "v", "label": "yes"},
        {"a": "s", "b": "t", "label": "?"},
    ]
    kept = labelled_data("mine", pairs, text="a", pair="b", only=("yes", "no"))["train"]
    assert kept == Labelled("mine", ("x", "u"), ("y", "v"), (1, 0), ("yes", "no"))


def test_data_of_your_own_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    train = written(tmp_path, "a.tsv", "review\tstars\ngood\t3\n")
    with pytest.raises(ValueError, match=r"a.tsv: mine needs columns text, label but there are review, stars"):
        labelled_data("mine", train)
    with pytest.raises(ValueError, match=r"a.tsv, line 2: a label must be one of one, two, or a number from 1 to 2"):
        labelled_data("mine", train, text="review", label="stars", classes=("one", "two"), first=1)
    with pytest.raises(ValueError, match=r"there is no file .*b.csv"):
        labelled_data("mine", train, tmp_path / "b.csv", text="review", label="stars")
    with pytest.raises(ValueError, match="row 1: mine needs columns text, label but there are words"):
        labelled_data("mine", [{"words": "a"}])


def test_fingerprints_tell_data_apart() -> None:
    one = Labelled("x", ("a", "b"), None, (0, 1), ("n", "p"))
    others = [
        one.rows([1, 0]),
        Labelled("x", ("a", "b"), None, (1, 1), ("n", "p")),
        Labelled("x", ("a", "b"), ("c", "d"), (0, 1), ("n", "p")),
        Labelled("x", ("a", "b"), None, (0, 1), ("p", "n")),
        Labelled("x", ("a", "b"), None, (0, 1), ("n", "p"), ("s", "t")),
    ]
    assert len({data.fingerprint for data in (one, *others)}) == 6
    with pytest.raises(ValueError, match="2 texts and so needs as many labels, but there are 1"):
        Labelled("x", ("a", "b"), None, (0,), ("n", "p"))


@pytest.mark.parametrize(
    ("name", "part", "count"),
    [
        ("sst2", "train", 60614),
        ("sst2", "dev", 872),
        ("cola", "train", 8551),
        ("cola", "dev", 527),
        ("cola", "out-of-domain", 516),
        ("stsb", "train", 5749),
        ("stsb", "dev", 1500),
        ("stsb", "test", 1379),
        ("mnli-subset", "dev", 1000),
    ],
)
def test_published_files_are_read_whole(data_dir: Path, name: str, part: str, count: int) -> None:
    found = read_labelled(name, part, source=data_dir / "data" / name)
    assert len(found) == count
    if found.regression:
        assert (min(found.labels), max(found.labels)) == (0, 5)
    else:
        assert {*found.labels} == {*range(len(found.classes))}


def test_hans_has_30_kinds_of_a_thousand(data_dir: Path) -> None:
    found = read_labelled("hans", "dev", source=data_dir / "data" / "hans")
    assert {*Counter(found.subcases).values()} == {1000}
    assert len({*(found.subcases or ())}) == 30
    assert Counter(found.labels) == {0: 15000, 1: 15000}
    # Of each kind either all or none are entailed.
    assert len({*zip(found.subcases or (), found.labels, strict=True)}) == 30


def test_the_table_names_parts_that_everyone_uses() -> None:
    for data in KNOWN.values():
        assert {"train", "dev"} <= {*data.parts}
        assert data.best_by in (("pearson",) if not data.classes else ("accuracy", "matthews"))
