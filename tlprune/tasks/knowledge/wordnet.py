"""Hypernyms of WordNet: the target and control facts of the paper on knowledge-critical subnetworks, in its words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlprune.choices import choice
from tlprune.task import Task
from tlprune.tasks.folders import data_folder
from tlprune.tasks.knowledge.building import knowledge
from tlprune.tasks.knowledge.facts import HEAD, TAIL, Fact, Worded
from tlprune.tasks.knowledge.plain import PlainText

FOLDER = "knowledge-wordnet"
RELATION = "hypernym"
WORDNET_TARGETS = ("building", "change", "communication", "location", "magnitude", "representation", "statement")
VALIDATION = ("is a sort of",)
TEST = ("is a kind of", "is a hyponym of")
PUBLISHED_FOR = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def wordnet(
    model: Any,
    target: str = "building",
    *,
    source: str | Path | None = None,
    text: PlainText | Sequence[str] | str | Path = "wikitext-2",
    **options: Any,
) -> Task:
    """Forget the hypernyms around one concept of WordNet: 11 to 19 facts, with 400 other hypernyms as control.

    The published files have of each fact the sentence that their authors chose, and of target facts paraphrases of
    other templates. Sentences that differ in article, capital or leading space are variants of one template. Training
    templates are "is a type of", "is a" and "is"; "is a sort of" is held out for validation, "is a kind of" and "is a
    hyponym of" for the test. Of the training sentences the model's own likeliest is taken. Control facts have one
    sentence each. Words stand for their synsets, so two facts of the same words are one; control facts that are among
    the target facts then are left out.

    Args:
        model: a GPT-2 model, or its tokenizer, for which the published choice for ``gpt2`` is taken.
        target: ``"building"``, ``"change"``, ``"communication"``, ``"location"``, ``"magnitude"``,
            ``"representation"`` or ``"statement"``.
        source: the folder of the published files; by default ``knowledge-wordnet`` in ``$TLPRUNE_DATA`` or
            ``$TLPRUNE_DATA/data``.
        text: text to be kept, as of :func:`~tlprune.tasks.knowledge`.
        options: others of :func:`~tlprune.tasks.knowledge`.

    Raises:
        ValueError: there is no such target, folder or file, or a file is of another form; and as of
            :func:`~tlprune.tasks.knowledge`.

    Source: Bayazit et al. 2024, "Discovering Knowledge-Critical Subnetworks in Pretrained Language Models" (EMNLP).
    """
    choice("target", target, dict.fromkeys(WORDNET_TARGETS))
    own = str(getattr(getattr(model, "cfg", None), "model_name", ""))
    facts, control = read_wordnet(target, source=source, published_for=own if own in PUBLISHED_FOR else "gpt2")
    task = knowledge(model, facts, control, text, **options)
    return replace(task, name=f"{FOLDER}-{target}", options={**task.options, "group": target})


def read_wordnet(
    target: str, *, source: str | Path | None = None, published_for: str = "gpt2"
) -> tuple[list[Worded], list[Worded]]:
    """Target and control facts of the published files, in words.

    Args:
        target: as of :func:`wordnet`.
        source: the folder.
        published_for: the model whose published sentences are read: of GPT-2, small to extra large.
    """
    folder = data_folder(FOLDER) if source is None else Path(source)
    if folder is None:
        raise ValueError(
            f"The WordNet facts need the folder of their files but there is no {FOLDER} in $TLPRUNE_DATA. Give it: "
            "source=."
        )
    column = f"best_{published_for}_input"
    chosen = _sentences(folder / f"target-{target}.json", column)
    others = _sentences(folder / f"target-{target}-paraphrases.json", "best_gpt2_input")
    facts = [_held_out(fact, [*texts, *others.get(fact, ())]) for fact, texts in chosen.items()]
    control = _sentences(folder / "control.json", column)
    return facts, [Worded(fact, _by_template(fact, texts)) for fact, texts in control.items() if fact not in chosen]


def _sentences(path: Path, column: str) -> dict[Fact, list[str]]:
    found: dict[Fact, list[str]] = {}
    for number, row in enumerate(_rows(path), 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("head", "tail", column)):
            raise ValueError(
                f"{path.name}, row {number}: a fact needs head, tail and {column} but is {row!r:.200}. Give the "
                "published file."
            )
        fact = Fact(_lemma(row["head"]), RELATION, _lemma(row["tail"]))
        found.setdefault(fact, []).append(row[column].rstrip())
    return found


def _rows(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Cannot read the facts {path}: {error.strerror}. Give the folder of all files.") from None
    except ValueError as error:
        raise ValueError(f"{path.name} must be JSON but is not: {error}. Give the published file.") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path.name} must be a list of facts but is {rows!r:.40}. Give the published file.")
    return rows


def _lemma(synset: str) -> str:
    """The word of a synset: ``house`` of ``house.n.12``."""
    return synset.split(".", maxsplit=1)[0].replace("_", " ")


def _held_out(fact: Fact, texts: Iterable[str]) -> Worded:
    found = _by_template(fact, texts)
    held = {_named(link) for link in (*VALIDATION, *TEST)}
    uses = [[name for name in found if name not in held], map(_named, VALIDATION), map(_named, TEST)]
    return Worded(fact, *({name: found[name] for name in use if name in found} for use in uses))


def _by_template(fact: Fact, texts: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for text in dict.fromkeys(texts):
        name = _named(_link(fact, text))
        found[name] = (*found.get(name, ()), text)
    return found


def _link(fact: Fact, text: str) -> str:
    """What stands between head and tail, whatever article the tail has."""
    match = re.fullmatch(rf" ?(?:an? )?{re.escape(fact.head)} (.*) {re.escape(fact.tail)}", text, re.IGNORECASE)
    if match is None:
        raise ValueError(
            f"A sentence of {fact} needs its head, then its tail at the end, but is {text!r}. Mend the file."
        )
    return re.sub(r"\bis an$", "is a", match[1])


def _named(link: str) -> str:
    return f"{HEAD} {link} {TAIL}"
