"""Tasks: prompt pairs for a behaviour, built for the tokenizer of a model."""

from __future__ import annotations

from collections.abc import Callable

from tlprune.models.planted import planted_task
from tlprune.task import Task
from tlprune.tasks.gendered_pronoun import gendered_pronoun
from tlprune.tasks.greater_than import greater_than
from tlprune.tasks.induction import induction
from tlprune.tasks.ioi import ioi
from tlprune.tasks.jsonl import jsonl
from tlprune.tasks.pairs import Pair, from_pairs

TASKS: dict[str, Callable[..., Task]] = {
    "ioi": ioi,
    "gendered-pronoun": gendered_pronoun,
    "greater-than": greater_than,
    "induction": induction,
    "planted": planted_task,
}

__all__ = ["TASKS", "Pair", "from_pairs", "gendered_pronoun", "greater_than", "induction", "ioi", "jsonl"]
