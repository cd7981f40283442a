"""Tasks: prompt pairs for a behaviour, built for the tokenizer of a model."""

from __future__ import annotations

from collections.abc import Callable

from tlprune.models.planted import planted_task
from tlprune.task import Task
from tlprune.tasks.docstring import docstring
from tlprune.tasks.gendered_pronoun import gendered_pronoun
from tlprune.tasks.greater_than import greater_than
from tlprune.tasks.induction import induction
from tlprune.tasks.ioi import ioi
from tlprune.tasks.jsonl import jsonl
from tlprune.tasks.labelled.classifying import classification
from tlprune.tasks.labelled.data import Labelled, read_labelled
from tlprune.tasks.labelled.known import KNOWN, Columns, DataSet, Part
from tlprune.tasks.labelled.named import cola, hans, mnli, mnli_subset, paws, paws_qqp, qqp, sst2, stsb
from tlprune.tasks.pairs import Pair, from_pairs

TASKS: dict[str, Callable[..., Task]] = {
    "ioi": ioi,
    "gendered-pronoun": gendered_pronoun,
    "greater-than": greater_than,
    "induction": induction,
    "docstring": docstring,
    "planted": planted_task,
    "sst2": sst2,
    "cola": cola,
    "stsb": stsb,
    "mnli": mnli,
    "mnli-subset": mnli_subset,
    "qqp": qqp,
    "hans": hans,
    "paws": paws,
    "paws-qqp": paws_qqp,
}

__all__ = [
    "KNOWN",
    "TASKS",
    "Columns",
    "DataSet",
    "Labelled",
    "Pair",
    "Part",
    "classification",
    "cola",
    "docstring",
    "from_pairs",
    "gendered_pronoun",
    "greater_than",
    "hans",
    "induction",
    "ioi",
    "jsonl",
    "mnli",
    "mnli_subset",
    "paws",
    "paws_qqp",
    "qqp",
    "read_labelled",
    "sst2",
    "stsb",
]
