"""Tasks: prompt pairs for a behaviour, built for the tokenizer of a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tlprune.choices import choice
from tlprune.models.planted import planted_task
from tlprune.models.taught import taught_task
from tlprune.models.tracr.compiler import KNOWN as PROGRAMS
from tlprune.models.tracr.program import tracr_task
from tlprune.task import Task
from tlprune.tasks.boolean_expressions import boolean_expressions
from tlprune.tasks.docstring import docstring
from tlprune.tasks.gendered_pronoun import gendered_pronoun
from tlprune.tasks.greater_than import greater_than
from tlprune.tasks.induction import induction
from tlprune.tasks.ioi import ioi, ioi_t1
from tlprune.tasks.jsonl import jsonl
from tlprune.tasks.knowledge.building import knowledge
from tlprune.tasks.knowledge.facts import Fact, Templates, Worded, worded
from tlprune.tasks.knowledge.invented import invented_facts
from tlprune.tasks.knowledge.plain import PlainText, read_text
from tlprune.tasks.knowledge.reading import read_facts, read_templates
from tlprune.tasks.knowledge.wordnet import WORDNET_TARGETS, read_wordnet, wordnet
from tlprune.tasks.knowledge.world import world
from tlprune.tasks.labelled.classifying import classification
from tlprune.tasks.labelled.data import Labelled, read_labelled
from tlprune.tasks.labelled.known import KNOWN, Columns, DataSet, Part
from tlprune.tasks.labelled.named import (
    ag_news,
    cola,
    dbpedia,
    hans,
    imdb,
    mnli,
    mnli_subset,
    paws,
    paws_qqp,
    qnli,
    qqp,
    sst2,
    stsb,
    tweet_sentiment,
)
from tlprune.tasks.labelled.own import labelled_data
from tlprune.tasks.mib.building import mib
from tlprune.tasks.mib.known import MIB_TASKS
from tlprune.tasks.pairs import Pair, from_pairs
from tlprune.tasks.prompted import prompted
from tlprune.tasks.schema import attended_pairs, covered, with_spans
from tlprune.tasks.tagged_lines import to_jsonl


def _of_mib(name: str) -> Callable[..., Task]:
    """A task of MIB by name; its splits are MIB's own, so a seed has nothing to choose."""
    return _saying(
        f"MIB's {name}, with its splits.",
        lambda model, *, seed=0, **options: mib(name, model, **options),
    )


def _of_wordnet(target: str) -> Callable[..., Task]:
    """The facts around one concept of WordNet."""
    return _saying(
        f"Forget the facts around {target} in WordNet, and nothing else.",
        lambda model, **options: wordnet(model, target, **options),
    )


def _of_program(name: str) -> Callable[..., Task]:
    """What a compiled program computes; the model tells which."""
    return _saying(f"What the program {name} computes, of all its inputs.", partial(tracr_task))


def _saying(line: str, build: Callable[..., Task]) -> Callable[..., Task]:
    """A builder with a line of its own in the list of tasks."""
    build.__doc__ = line
    return build


TASKS: dict[str, Callable[..., Task]] = {
    "ioi": ioi,
    "ioi-t1": ioi_t1,
    "gendered-pronoun": gendered_pronoun,
    "greater-than": greater_than,
    "induction": induction,
    "docstring": docstring,
    "boolean-few-shot": partial(boolean_expressions, prompts="few-shot"),
    "boolean-instruction": partial(boolean_expressions, prompts="instruction"),
    "planted": planted_task,
    "taught": taught_task,
    **{name: _of_program(name) for name in PROGRAMS},
    "sst2": sst2,
    "cola": cola,
    "stsb": stsb,
    "mnli": mnli,
    "mnli-subset": mnli_subset,
    "qqp": qqp,
    "qnli": qnli,
    "imdb": imdb,
    "tweet-sentiment": tweet_sentiment,
    "ag-news": ag_news,
    "dbpedia": dbpedia,
    "hans": hans,
    "paws": paws,
    "paws-qqp": paws_qqp,
    "world": world,
    **{f"knowledge-wordnet-{target}": _of_wordnet(target) for target in WORDNET_TARGETS},
    **{f"mib-{name}": _of_mib(name) for name in MIB_TASKS},
}


def task_builder(name: str) -> Callable[..., Task]:
    """What builds the task that a word names: one of ``TASKS``, or a file of prompts that ends in ``.jsonl``.

    Raises:
        ValueError: there is no such task.
    """
    if name.endswith(".jsonl"):
        return lambda model, seed=0: jsonl(model, name, seed=seed)
    return choice("task", name, TASKS)


__all__ = [
    "KNOWN",
    "MIB_TASKS",
    "TASKS",
    "WORDNET_TARGETS",
    "Columns",
    "DataSet",
    "Fact",
    "Labelled",
    "Pair",
    "Part",
    "PlainText",
    "Templates",
    "Worded",
    "ag_news",
    "attended_pairs",
    "boolean_expressions",
    "classification",
    "cola",
    "covered",
    "dbpedia",
    "docstring",
    "from_pairs",
    "gendered_pronoun",
    "greater_than",
    "hans",
    "imdb",
    "induction",
    "invented_facts",
    "ioi",
    "ioi_t1",
    "jsonl",
    "knowledge",
    "labelled_data",
    "mib",
    "mnli",
    "mnli_subset",
    "paws",
    "paws_qqp",
    "prompted",
    "qnli",
    "qqp",
    "read_facts",
    "read_labelled",
    "read_templates",
    "read_text",
    "read_wordnet",
    "sst2",
    "stsb",
    "task_builder",
    "to_jsonl",
    "tweet_sentiment",
    "with_spans",
    "worded",
    "wordnet",
    "world",
]
