"""Multiple-choice questions, such as CommonsenseQA's, checked, and where they are read from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from tlprune.tasks.labelled.known import DataSet
from tlprune.tasks.labelled.reading import Found, rows_of_dataset, rows_of_file

COMMONSENSEQA = "commonsenseqa"
FILE = "dev_rand_split.jsonl"


@dataclass(frozen=True)
class Questions:
    """Questions, each with some choices of which one is right.

    Attributes:
        name: of the data set.
        texts: the questions.
        choices: of each question.
        labels: number of the right choice of each.

    Raises:
        ValueError: a question has fewer than two choices, or its right one is none of them.

    Example:
        >>> two = Questions("mine", ("one and one?", "a colour?"), (("two", "three"), ("red", "dog", "six")), (0, 0))
        >>> len(two), two.rows([1]).choices, two.guessing
        (2, (('red', 'dog', 'six'),), 0.41666666666666663)
    """

    name: str
    texts: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        for text, choices, label in zip(self.texts, self.choices, self.labels, strict=True):
            if len(choices) < 2 or not 0 <= label < len(choices):
                raise ValueError(
                    f"{self.name}: a question needs at least two choices and a right one among them, but {text!r} has "
                    f"{len(choices)} and number {label} is right. Mend it."
                )

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def regression(self) -> bool:
        """Never: one of some choices is right."""
        return False

    @property
    def guessing(self) -> float:
        """Accuracy to be expected of guesses."""
        return sum(1 / len(choices) for choices in self.choices) / len(self)

    def rows(self, index: Sequence[int]) -> Questions:
        """The questions at ``index``, in that order."""
        columns = {name: tuple(getattr(self, name)[row] for row in index) for name in ("texts", "choices", "labels")}
        return replace(self, **columns)

    @property
    def fingerprint(self) -> str:
        """Hash of questions, choices and labels, in their order."""
        content = json.dumps([self.texts, self.choices, self.labels])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_questions(source: Any = None) -> Questions:
    """Questions of a ``.jsonl``, ``.json`` or ``.parquet`` file, or a sequence of mappings.

    A row has ``"question"``, ``"choices"``: a list of texts, or CommonsenseQA's labels and texts, and ``"answer"`` (or
    ``"answerKey"``): the right choice's label, text, or number from 0.

    Args:
        source: the file or rows; by default CommonsenseQA's development set in ``$TLPRUNE_DATA/commonsenseqa`` or
            ``$TLPRUNE_DATA/data/commonsenseqa``, since the labels of its test set are not published.

    Raises:
        ValueError: naming file and line, if a row lacks something; or there is no such file.

    Example:
        >>> row = {"question": "one and one?", "choices": ["two", "three"], "answer": "two"}
        >>> read_questions([row]).labels, read_questions([{**row, "answer": 1}]).labels
        ((0,), (1,))
    """
    if source is not None and not isinstance(source, (str, Path)):
        return _questions("questions", rows_of_dataset(source, "questions"))
    path = _published() if source is None else Path(source)
    return _questions(path.stem, rows_of_file(path, DataSet(path.stem, {}, (), ())))


def divided_questions(
    questions: Questions,
    *,
    train_count: int | None,
    validation_count: int,
    test_count: int,
    seed: int,
    test: Questions | None = None,
) -> dict[str, Questions]:
    """Seeded draws for ``"train"``, ``"validation"`` and ``"test"``; no question's text is in two of them.

    The test does not depend on the other counts, and the validation not on the number of training questions. Where
    ``test`` is given it is the test, whole, and what else it has of ``questions`` is left out of the others.

    Raises:
        ValueError: there are fewer questions than asked for.
    """
    asked = set(test.texts) if test is not None else set[str]()
    first: dict[str, int] = {}
    for row, text in enumerate(questions.texts):
        if text not in asked:
            first.setdefault(text, row)
    order = Random(seed).sample(list(first.values()), len(first))
    held = 0 if test is not None else test_count
    left = len(order) - validation_count - held
    wanted = left if train_count is None else train_count
    if min(wanted, validation_count, test_count) < 1 or wanted > left:
        raise ValueError(
            f"{questions.name} has {len(order)} different questions, but {wanted} for training, {validation_count} for "
            f"validation and {held} for the test are asked for. Ask for at least 1 of each, and for fewer in all."
        )
    drawn, validation, train = order[:held], order[held : held + validation_count], order[held + validation_count :]
    return {
        "train": questions.rows(train[:wanted]),
        "validation": questions.rows(validation),
        "test": questions.rows(drawn) if test is None else test,
    }


def _published() -> Path:
    root = os.environ.get("TLPRUNE_DATA")
    paths = [Path(root, *inner, COMMONSENSEQA, FILE) for inner in ((), ("data",))] if root else []
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise ValueError(
            f"CommonsenseQA is read from {COMMONSENSEQA}/{FILE} in TLPRUNE_DATA, but there is none. Set TLPRUNE_DATA, "
            "or give a file of questions."
        )
    return found


def _questions(name: str, rows: Iterable[Found]) -> Questions:
    found = [_question(row) for row in rows]
    if not found:
        raise ValueError(f"{name} must have questions but there are none. Give another file.")
    texts, choices, labels = zip(*found, strict=True)
    return Questions(name, texts, choices, labels)


def _question(row: Found) -> tuple[str, tuple[str, ...], int]:
    values = dict(row.values)
    if isinstance(values.get("question"), Mapping):  # as CommonsenseQA was published first
        values |= {"question": values["question"].get("stem"), "choices": values["question"].get("choices")}
    answer = values.get("answer", values.get("answerKey"))
    texts, labels = _choices(values.get("choices"))
    if not isinstance(values.get("question"), str) or not texts or answer is None:
        raise ValueError(
            f"{row.place}: a row needs 'question', 'choices' and 'answer' (or 'answerKey') but has "
            f"{', '.join(map(repr, row.values))}, or one of them is empty. Mend the row."
        )
    return values["question"].strip(), texts, _right(row, answer, texts, labels)


def _choices(given: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts and labels; no labels where there are none."""
    if isinstance(given, Mapping):
        return tuple(map(str, given.get("text", ()))), tuple(map(str, given.get("label", ())))
    rows = list(given or ())
    if rows and all(isinstance(one, Mapping) for one in rows):
        return tuple(str(one.get("text", "")) for one in rows), tuple(str(one.get("label", "")) for one in rows)
    return tuple(map(str, rows)), ()


def _right(row: Found, answer: Any, texts: tuple[str, ...], labels: tuple[str, ...]) -> int:
    for names in (labels, texts):
        if isinstance(answer, str) and names.count(answer) == 1:
            return names.index(answer)
    if isinstance(answer, int) and 0 <= answer < len(texts):
        return answer
    raise ValueError(
        f"{row.place}: the answer must be the label, text or number of one choice of {', '.join(texts)} but is "
        f"{answer!r}. Mend the row."
    )
