"""MIB's tasks as tasks here, with MIB's splits, filters and tokenisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Literal

from tlprune.task import Task, Tokenisation
from tlprune.tasks.labelled.data import rows_of
from tlprune.tasks.labelled.reading import Found
from tlprune.tasks.mib.known import MIB_TASKS, Example, Known
from tlprune.tasks.rows import Row, task_of_rows
from tlprune.tasks.tokenising import padding_token, token_ids, tokenizer_of

SUFFIX = "_counterfactual"


def mib(
    name: str,
    model: Any,
    source: Any = None,
    *,
    counterfactual: str | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    test_set: Literal["public", "private"] = "public",
) -> Task:
    """A task of MIB's circuit track, with its splits.

    The answer is compared with a foil at the last token of the prompt, as MIB's logit difference does. Prompts have a
    beginning-of-sequence token first (where the tokenizer has none, the end-of-sequence token, as TransformerLens puts
    it) and are padded on the right. An answer is the first token of its word, tokenised alone.

    =================================  ==================================  ==========================  ===============
    name                               answer                              foil                        twin by default
    =================================  ==================================  ==========================  ===============
    ioi                                the indirect object, after a space  the subject                 s2_io_flip
    mcqa, arc-easy, arc-challenge      label of the right choice           that of the counterfactual  symbol
    arithmetic-addition, -subtraction  the result                          that of the counterfactual  random
    =================================  ==================================  ==========================  ===============

    Rows are left out as in MIB: where answer and foil (and for `ioi` a third name) differ in their number of tokens;
    for arithmetic where one has more than a token, there is no counterfactual, or the operator is another. Beyond that
    a prompt and its counterfactual need equally many tokens here, so that activations can be exchanged position by
    position; MIB stops at others. ``task.options["left_out"]`` counts the rows of each reason, by split. Rows whose
    answer and foil are one token stay, as in MIB, with a logit difference of 0, and are counted under
    ``"answer_is_foil"``. ``"test_prompts_seen"`` counts test rows whose prompt is also one of training or validation.

    Args:
        name: see above.
        model: a model with a tokenizer, or a Hugging Face tokenizer.
        source: a folder of ``train``, ``validation`` and ``test`` files (``.jsonl``, ``.json``, ``.parquet``), one that
            ``datasets`` saved, or a mapping of these names to rows or files; by default the folder ``mib-ioi`` and the
            like in ``$TLPRUNE_DATA``, and where there is none the Hugging Face hub (``mib-bench/...``).
        counterfactual: which column is the twin, with or without ``_counterfactual`` at its end; of ``ioi`` also
            ``"abc"``, ``"random_names"`` and ``"s1_io_flip"``.
        train: how many examples at most, the first that are not left out; MIB attributes on 100.
        validation: how many at most.
        test: how many at most.
        test_set: ``"private"`` takes the test that MIB keeps for its leaderboard, from the hub, or from the ``source``
            under the name ``"private"``.

    Raises:
        ValueError: there is no such task, part or counterfactual, a row lacks what is needed, or no row is left.

    Source: Mueller et al., "MIB: A Mechanistic Interpretability Benchmark", arXiv 2504.13151.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> names = {"indirect_object": "Mary", "subject": "John", "random_c": "Paul"}
        >>> row = {"prompt": "So John met Mary and John told", "metadata": names}
        >>> row |= {"s2_io_flip_counterfactual": {"prompt": "So John met Mary and Mary told"}}
        >>> parts = {split: [row] for split in ("train", "validation", "test")}
        >>> tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        >>> task = mib("ioi", tokenizer, parts)
        >>> tokenizer.decode(task.test.answers[0]), tokenizer.decode(task.test.foils[0]), task.options["left_out"]
        ('Mary', 'John', {'train': {}, 'validation': {}, 'test': {}})
    """
    known, tokenizer = _known(name), tokenizer_of(model)
    column = counterfactual or known.counterfactual
    sizes = {"train": train, "validation": validation, "test": test}
    splits: dict[str, list[Row]] = {}
    left_out: dict[str, Counter[str]] = {}
    for split, size in sizes.items():
        left_out[split] = Counter()
        rows = (
            _private(known, source) if (split, test_set) == ("test", "private") else rows_of(known.data, split, source)
        )
        splits[split] = list(islice(_rows(tokenizer, known, rows, column, left_out[split]), size))
        _refuse_none(name, split, splits[split], left_out[split])
    options = {
        "counterfactual": _full(column),
        "test_set": test_set,
        "left_out": {split: dict(sorted(counts.items())) for split, counts in left_out.items()},
        "answer_is_foil": {split: sum(row.answers == row.foils for row in rows) for split, rows in splits.items()},
        "test_prompts_seen": _seen(splits),
    }
    return task_of_rows(f"mib-{name}", splits, Tokenisation(True), padding=padding_token(tokenizer), options=options)


def _known(name: str) -> Known:
    if name not in MIB_TASKS:
        raise ValueError(f"MIB has the tasks {', '.join(MIB_TASKS)} but {name!r} was asked for. Name one of these.")
    return MIB_TASKS[name]


def _private(known: Known, source: Any) -> Iterable[Found]:
    """Rows of the private test; never those of the public one in their place."""
    if source is None:
        return rows_of(known.private, "test", None)
    if not isinstance(source, Mapping) or "private" not in source:
        raise ValueError(
            "The private test is on the hub, or in a source that is a mapping with rows or a file under 'private', but "
            f"{type(source).__name__} was given without. Give source={{..., 'private': ...}}."
        )
    return rows_of(known.data, "test", source["private"])


def _full(column: str) -> str:
    return column if column.endswith(SUFFIX) else column + SUFFIX


# ---- rows


def _rows(tokenizer: Any, known: Known, rows: Iterable[Found], column: str, left_out: Counter[str]) -> Iterable[Row]:
    """The rows that stay; the others are counted by their reasons."""
    for found in rows:
        result = _row(tokenizer, known, found, column)
        if isinstance(result, Row):
            yield result
        else:
            left_out[result] += 1


def _row(tokenizer: Any, known: Known, found: Found, column: str) -> Row | str:
    """A row, or the reason why it is left out."""
    if known.operator is not None and found.values.get("operator") != known.operator:
        return "another operator"
    twin = _twin(found, column)
    if twin is None or twin.get("prompt") is None:
        return "no counterfactual"
    example = _example(known, found, twin)
    counts = [len(token_ids(tokenizer, word)) for word in example.alike]
    if len({*counts}) > 1:
        return "answers of different lengths"
    if known.one_token and counts[0] != 1:
        return "answers of several tokens"
    clean, corrupt = (_prompt(tokenizer, text) for text in (example.clean, example.corrupt))
    if len(clean) != len(corrupt):
        return "prompts of different lengths"
    answer, foil = (token_ids(tokenizer, word)[0] for word in (example.answer, example.foil))
    return Row(clean, corrupt, [len(clean) - 1], [answer], [foil])


def _twin(found: Found, column: str) -> Mapping[str, Any] | None:
    if _full(column) not in found.values:
        known = ", ".join(name.removesuffix(SUFFIX) for name in found.values if name.endswith(SUFFIX)) or "none"
        raise ValueError(
            f"{found.place}: the counterfactuals are {known} but {column!r} was asked for. Name one of these."
        )
    return found.values[_full(column)]


def _example(known: Known, found: Found, twin: Mapping[str, Any]) -> Example:
    try:
        return known.example(found.values, twin)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{found.place}: a row of {known.data.name} needs the columns that MIB has but lacks {error}. Mend it."
        ) from None


def _prompt(tokenizer: Any, text: str) -> list[int]:
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if first is None:
        raise ValueError(
            "MIB's prompts begin with a beginning- or end-of-sequence token but this tokenizer has neither. Set "
            "tokenizer.bos_token."
        )
    return [int(first), *token_ids(tokenizer, text)]


def _refuse_none(name: str, split: str, rows: list[Row], left_out: Counter[str]) -> None:
    if not rows:
        reasons = ", ".join(f"{count} for {reason}" for reason, count in left_out.items()) or "there are none"
        raise ValueError(
            f"MIB's task {name!r} needs at least one row in {split} but all are left out: {reasons}. Choose another "
            "counterfactual or model."
        )


def _seen(splits: Mapping[str, list[Row]]) -> int:
    seen = {tuple(row.clean) for split in ("train", "validation") for row in splits[split]}
    return sum(tuple(row.clean) in seen for row in splits["test"])
