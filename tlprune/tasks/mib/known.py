"""MIB's tasks: where their data are, and what prompt, twin, answer and foil a row of each has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tlprune.tasks.labelled.known import DataSet, Part

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """What MIB's circuit track takes of a row.

    Attributes:
        clean: prompt.
        corrupt: prompt of its counterfactual.
        answer: right continuation, with its leading space if it has one; its first token is the answer.
        foil: what it is compared with.
        alike: words that must have equally many tokens, or the row is left out.
    """

    clean: str
    corrupt: str
    answer: str
    foil: str
    alike: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """One of MIB's tasks.

    Attributes:
        data: where its rows are.
        counterfactual: the column that MIB takes by default.
        example: from a row and its counterfactual to the example.
        operator: rows of other operators are left out.
        one_token: whether answer and foil must be a single token each, or the row is left out.
    """

    data: DataSet
    counterfactual: str
    example: Callable[[Row, Row], Example]
    operator: str | None = None
    one_token: bool = False

    @property
    def private(self) -> DataSet:
        """Where the private test is, which MIB's authors alone can read on the hub."""
        repository, configuration = self.data.hub or ("", None)
        return replace(self.data, hub=(f"{repository}_private_test", configuration))


def _ioi(row: Row, twin: Row) -> Example:
    """The name that came once against the repeated one; a third name, of other counterfactuals, is as long."""
    names = row["metadata"]
    words = tuple(f" {names[key]}" for key in ("indirect_object", "subject", "random_c"))
    return Example(row["prompt"], twin["prompt"], words[0], words[1], words)


def _choice(row: Row, twin: Row) -> Example:
    """The label of the right choice against that of the counterfactual, as they stand: without a space before them."""
    answer, foil = (str(one["choices"]["label"][one["answerKey"]]) for one in (row, twin))
    return Example(row["prompt"], twin["prompt"], answer, foil, (answer, foil))


def _arithmetic(row: Row, twin: Row) -> Example:
    """The result against that of the counterfactual, without a space before them."""
    answer, foil = str(row["label"]), str(twin["label"])
    return Example(row["prompt"], twin["prompt"], answer, foil, (answer, foil))


def _data(name: str, repository: str, configuration: str | None = None) -> DataSet:
    def files(split: str) -> tuple[str, ...]:
        shard = f"{split}-00000-of-00001.parquet"
        endings = tuple(f"{split}{ending}" for ending in (".jsonl", ".parquet", ".json"))
        return (*endings, shard, f"data/{shard}", f"{configuration}/{shard}")

    parts = {split: Part(split, files(split)) for split in ("train", "validation", "test")}
    return DataSet(f"mib-{name}", parts, (), (), hub=(f"mib-bench/{repository}", configuration))


def _arithmetic_task(name: str, operator: str) -> Known:
    data = _data(f"arithmetic-{name}", f"arithmetic_{name}")
    return Known(data, "random_counterfactual", _arithmetic, operator, one_token=True)


_choices = partial(Known, counterfactual="symbol_counterfactual", example=_choice)
# What they are called on the leaderboard.
MIB_TASKS: dict[str, Known] = {
    "ioi": Known(_data("ioi", "ioi"), "s2_io_flip_counterfactual", _ioi),
    "mcqa": _choices(_data("mcqa", "copycolors_mcqa", "4_answer_choices")),
    "arithmetic-addition": _arithmetic_task("addition", "+"),
    "arithmetic-subtraction": _arithmetic_task("subtraction", "-"),
    "arc-easy": _choices(_data("arc-easy", "arc_easy")),
    "arc-challenge": _choices(_data("arc-challenge", "arc_challenge")),
}
