"""The labelled data sets that are known by name: where they are, and what their columns are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are called.

    Attributes:
        texts: of the sentence, or of the two sentences of a pair.
        label: of the class or number.
        subcase: of the kind of example, where there are several.
        first: number of the first class, where classes are given by numbers.
    """

    texts: tuple[str, ...]
    label: str = "label"
    subcase: str | None = None
    first: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.texts, self.label, *((self.subcase,) if self.subcase else ()))


@dataclass(frozen=True)
class Part:
    """One of the files of a data set.

    Attributes:
        hub: name of the split on the hub; ``None`` where it is not there.
        files: names that the file may have in a folder, the first that is there is read.
    """

    hub: str | None
    files: tuple[str, ...]


@dataclass(frozen=True)
class DataSet:
    """How a labelled data set is read.

    Attributes:
        name: short name; of its folder, too.
        parts: its files by what they are for; ``"train"`` and ``"dev"`` have these names.
        columns: what its columns are called; several where files of several publishers are about.
        classes: their names in the order of their numbers; empty for a regression.
        hub: repository and configuration on the Hugging Face hub.
        headerless: columns of its tab-separated files that have no header, in order.
        optional: how many of these, at the end, a row may lack.
        delimiter: of ``.csv`` files; with a tab nothing is quoted.
        no_label: a mark for examples without an agreed label; they are left out.
        drop_empty: whether rows with an empty text are left out; elsewhere they are errors.
        best_by: the figure by which checkpoints of a fine-tuning are compared.
        spelling: ``"bytes"`` where texts may stand in the file as Python spells bytes, ``b'...'``.

    Example:
        >>> KNOWN["hans"].classes, KNOWN["stsb"].classes
        (('entailment', 'non-entailment'), ())
    """

    name: str
    parts: Mapping[str, Part]
    columns: tuple[Columns, ...]
    classes: tuple[str, ...]
    hub: tuple[str, str | None] | None = None
    headerless: tuple[str, ...] = ()
    optional: int = 0
    delimiter: str = ","
    no_label: str | None = None
    drop_empty: bool = False
    best_by: str = "accuracy"
    spelling: Literal["text", "bytes"] = "text"


def _glue(configuration: str) -> tuple[str, str]:
    return ("nyu-mll/glue", configuration)


TRAIN = Part("train", ("train.tsv", "train.csv", "train.jsonl", "train.json", "train.parquet"))
DEV = Part("validation", ("dev.tsv", "dev.csv", "dev.jsonl", "validation.jsonl", "validation.parquet"))
# Where labels of a development set are not published, the test set takes its place.
TESTED = Part("test", ("test.csv", "test.tsv", "test.jsonl", "test.json", "test.parquet"))
ENTAILMENT = ("entailment", "neutral", "contradiction")

KNOWN: dict[str, DataSet] = {
    data.name: data
    for data in (
        DataSet(
            "sst2",
            # GLUE's own development set goes before one that was cut from its training set.
            {"train": TRAIN, "dev": Part("validation", ("glue_dev872.tsv", *DEV.files))},
            (Columns(("sentence",)),),
            ("negative", "positive"),
            hub=_glue("sst2"),
        ),
        DataSet(
            "cola",
            {
                "train": Part("train", ("in_domain_train.tsv", *TRAIN.files)),
                "dev": Part("validation", ("in_domain_dev.tsv", *DEV.files)),
                "out-of-domain": Part(None, ("out_of_domain_dev.tsv",)),
            },
            (Columns(("sentence",)),),
            ("unacceptable", "acceptable"),
            hub=_glue("cola"),
            headerless=("source", "label", "mark", "sentence"),
            best_by="matthews",
        ),
        DataSet(
            "stsb",
            {
                "train": Part("train", ("sts-train.csv", *TRAIN.files)),
                "dev": Part("validation", ("sts-dev.csv", *DEV.files)),
                "test": Part(None, ("sts-test.csv",)),
            },
            (Columns(("sentence1", "sentence2")), Columns(("sentence1", "sentence2"), "score")),
            (),
            hub=_glue("stsb"),
            # Sources and licences stand behind some rows only.
            headerless=("genre", "file", "year", "number", "score", "sentence1", "sentence2", "from1", "from2"),
            optional=2,
            delimiter="\t",
            best_by="pearson",
        ),
        DataSet(
            "mnli",
            {
                "train": Part("train", ("multinli_1.0_train.jsonl", *TRAIN.files)),
                "dev": Part("validation_matched", ("multinli_1.0_dev_matched.jsonl", "dev_matched.tsv")),
                "mismatched": Part(
                    "validation_mismatched", ("multinli_1.0_dev_mismatched.jsonl", "dev_mismatched.tsv")
                ),
            },
            (Columns(("premise", "hypothesis")), Columns(("sentence1", "sentence2"), "gold_label")),
            ENTAILMENT,
            hub=_glue("mnli"),
            no_label="-",
        ),
        # A choice of MNLI pairs, not its development set: figures on it are of another set of examples.
        DataSet(
            "mnli-subset",
            {"train": Part(None, ("subset_train.json",)), "dev": Part(None, ("subset_dev.json",))},
            (Columns(("text_a", "text_b")),),
            ENTAILMENT,
        ),
        DataSet(
            "qqp",
            {"train": TRAIN, "dev": DEV},
            (Columns(("question1", "question2")), Columns(("question1", "question2"), "is_duplicate")),
            ("not_duplicate", "duplicate"),
            hub=_glue("qqp"),
            drop_empty=True,
        ),
        DataSet(
            "qnli",
            {"train": TRAIN, "dev": DEV},
            (Columns(("question", "sentence")),),
            ("entailment", "not_entailment"),
            hub=_glue("qnli"),
        ),
        DataSet(
            "imdb",
            {"train": TRAIN, "dev": TESTED},
            (Columns(("text",)),),
            ("negative", "positive"),
            hub=("stanfordnlp/imdb", None),
        ),
        DataSet(
            "tweet-sentiment",
            {"train": TRAIN, "dev": DEV, "test": TESTED},
            (Columns(("text",)),),
            ("negative", "neutral", "positive"),
            hub=("cardiffnlp/tweet_eval", "sentiment"),
        ),
        DataSet(
            "ag-news",
            {"train": TRAIN, "dev": TESTED},
            (Columns(("text",)),),
            ("World", "Sports", "Business", "Sci/Tech"),
            hub=("fancyzhx/ag_news", None),
        ),
        DataSet(
            "dbpedia",
            {"train": TRAIN, "dev": TESTED},
            (Columns(("title", "content")), Columns(("title", "content"), "class_index", first=1)),
            (
                *("Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder", "MeanOfTransportation"),
                *("Building", "NaturalPlace", "Village", "Animal", "Plant", "Album", "Film", "WrittenWork"),
            ),
            hub=("fancyzhx/dbpedia_14", None),
            # The authors' own tables.
            headerless=("class_index", "title", "content"),
        ),
        DataSet(
            "hans",
            {
                "train": Part("train", ("hans_train.tsv", "heuristics_train_set.txt")),
                "dev": Part("validation", ("hans_validation.tsv", "heuristics_evaluation_set.txt")),
            },
            (
                Columns(("premise", "hypothesis"), subcase="subcase"),
                Columns(("sentence1", "sentence2"), "gold_label", "subcase"),
            ),
            ("entailment", "non-entailment"),
            hub=("jhu-cogsci/hans", None),
        ),
        DataSet(
            "paws",
            {"train": TRAIN, "dev": DEV, "test": Part("test", ("test.tsv", "test.parquet"))},
            (Columns(("sentence1", "sentence2")),),
            ("not_paraphrase", "paraphrase"),
            hub=("google-research-datasets/paws", "labeled_final"),
        ),
        DataSet(
            "paws-qqp",
            {"train": TRAIN, "dev": Part(None, ("dev_and_test.tsv",))},
            (Columns(("sentence1", "sentence2")),),
            ("not_duplicate", "duplicate"),
            spelling="bytes",  # what its authors' program writes
        ),
    )
}
