"""A task of facts to be forgotten, facts to be kept, and text to be kept, from all three in words."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch

from tlprune.choices import choice
from tlprune.task import MAIN, Batch, Stream, Task, Tokenisation
from tlprune.tasks.knowledge.facts import Fact, Worded
from tlprune.tasks.knowledge.plain import PlainText, read_text, text_stream
from tlprune.tasks.knowledge.sentences import Sentence, side_by_side, tail_ranks
from tlprune.tasks.knowledge.wording import Chosen, MultiToken, chosen_wordings
from tlprune.tasks.tokenising import beginning, padding_token, tokenizer_of

CONTROL, TEXT = "control", "text"
SPLITS = ("train", "validation", "test")
Unknown = Literal["warn", "raise", "skip"]
Wordings = Literal["best", "all"]
WORDINGS: dict[str, Callable[[Chosen], tuple[Sentence, ...]]] = {
    "best": lambda one: (one.train,),
    "all": lambda one: one.every,
}


def knowledge(  # noqa: PLR0913
    model: Any,
    target: Iterable[Worded],
    control: Iterable[Worded],
    text: PlainText | Sequence[str] | str | Path = "wikitext-2",
    *,
    multi_token: MultiToken = "raise",
    unknown: Unknown = "warn",
    known_rank: int = 100,
    wordings: Wordings = "best",
    held_out: float = 0.2,
    prepend_bos: bool | None = None,
    seed: int = 0,
) -> Task:
    """A task whose main stream are facts to be forgotten, beside two streams that are to stay as they are.

    ``"main"`` has the target facts (TargetKG), each in the training template whose tail has the lowest perplexity under
    the model, or in all of them; in validation and test the same facts in held-out templates, or where there is none in
    those for training.
    ``"control"`` has other facts (ControlKG): no fact is in two of its splits, and test facts come in their training
    template and in those held out for the test. ``"text"`` has blocks of plain text (ControlLM), read everywhere.

    A sentence of a fact ends with its tail, a single token, and ``batch.positions`` is the place in front of it.
    Templates are numbered by ``batch.labels`` and named by ``task.label_names``, facts within a split by
    ``batch.groups``. Twins are the prompts themselves: nothing is exchanged. Examples of the main stream stand in
    the order of the target facts, which ``task.options["target"]`` lists: all sentences of the first fact, then of the
    next.

    Args:
        model: a model with a tokenizer; or a tokenizer, for which a fact's first template is taken and nothing of what
            the model knows is checked.
        target: facts to be forgotten, in words: see :func:`~tlprune.tasks.worded`.
        control: facts to be kept.
        text: text to be kept: a :class:`PlainText`, texts, or what :func:`~tlprune.tasks.read_text` reads.
        multi_token: ``"skip"`` leaves out facts whose tail is not one token in its sentence, and counts them in
            ``task.options["left_out"]``; ``"raise"`` names the first.
        unknown: what to do about target facts that the model never knew: whose tail has a rank beyond ``known_rank``
            in the chosen sentence. ``"warn"`` keeps them and says how many they are, ``"skip"`` leaves them out, and
            counts them.
        known_rank: the worst rank of a known tail; 1 is that of the most probable token.
        wordings: in which of its training templates a target fact is trained on: the ``"best"``, as in the source, or
            ``"all"``, so that less of what is found belongs to one wording.
        held_out: share of the control facts for validation, and again for the test, in (0, 0.5).
        prepend_bos: whether exactly one beginning-of-sequence token goes first; ``None`` means wherever the tokenizer
            has one.
        seed: of the draw of control facts.

    Raises:
        ValueError: no target or control facts (left), a fact that is in both, a tail of several tokens, a fact that
            the model does not know, or too little text; each unless another choice is made.

    Source: Bayazit et al. 2024, "Discovering Knowledge-Critical Subnetworks in Pretrained Language Models" (EMNLP).

    Example:
        >>> import tlprune as tp
        >>> from tlprune.tasks import Fact, worded
        >>> templates = {"is": ["{head} is {tail}", "so {head} is {tail}", "the friend {head} is {tail}"]}
        >>> moods = [Fact(*words) for words in (("Mary", "is", "kind"), ("John", "is", "brave"))]
        >>> others = [Fact(name, "is", "clever") for name in ("Paul", "Anna", "James")]
        >>> tokenizer = tp.load("testbed").tokenizer
        >>> text = tp.tasks.PlainText(["time year people way day man thing"], block=3)
        >>> task = knowledge(tokenizer, worded(moods, templates), worded(others, templates), text)
        >>> task
        Task('knowledge', main: 2 train, main: 2 validation, main: 2 test, control: 1 train, control: 1 validation,
             control: 2 test, text: 1 train, text: 1 validation, text: 1 test)
        >>> [tokenizer.decode(ids) for ids in task.test.clean.ids]
        ['<bos> the friend Mary is kind', '<bos> the friend John is brave']
        >>> task.test.positions.tolist(), tokenizer.decode(task.test.answers[:, 0])
        ([[4], [4]], 'kind brave')
    """
    tokenizer = tokenizer_of(model)
    target, control = _distinct(target), _distinct(control)
    wanted, kept = (
        chosen_wordings(model, facts, multi_token=multi_token, prepend_bos=prepend_bos) for facts in (target, control)
    )
    left_out = {"multi-token tail": len(target) - len(wanted), "multi-token control tail": len(control) - len(kept)}
    known = _known(model, wanted, unknown, known_rank) if model is not tokenizer else wanted
    left_out["unknown"] = len(wanted) - len(known)
    _check_sets(known, kept, left_out)
    sentences = {
        MAIN: _of_target(known, choice("choice of wordings", wordings, WORDINGS)),
        CONTROL: _of_control(kept, held_out, seed),
    }
    names = list(dict.fromkeys(one.template for stream in sentences.values() for use in stream for one in use))
    streams = {
        name: Stream(*(_batch(use, names, padding_token(tokenizer)) for use in uses))
        for name, uses in sentences.items()
    }
    streams[TEXT] = text_stream(model, _plain(text), prepend_bos=prepend_bos)
    options = {
        "seed": seed, "held_out": held_out, "left_out": left_out, "wordings": wordings,
        "target": [[one.fact.head, one.fact.relation, one.fact.tail] for one in known],
        "control": _hash([one.fact for one in kept]),
    }  # fmt: skip
    tokenisation = Tokenisation(bool(beginning(tokenizer, prepend_bos)), "right", "tagged")
    return Task("knowledge", streams, tokenisation, options, label_names=tuple(names))


def _distinct(facts: Iterable[Worded]) -> list[Worded]:
    """Each fact once, in the first words that it comes in."""
    return list({one.fact: one for one in reversed(list(facts))}.values())[::-1]


def _plain(text: PlainText | Sequence[str] | str | Path) -> PlainText:
    if isinstance(text, (str, Path)):
        return PlainText(read_text(text))
    return text if isinstance(text, PlainText) else PlainText(text)


def _known(model: Any, facts: Sequence[Chosen], unknown: Unknown, known_rank: int) -> list[Chosen]:
    """The facts that stay; of each the rank of the tail in the training sentence decides."""
    ranks = tail_ranks(model, [one.train for one in facts]) if facts else []
    beyond = {one.fact: rank for one, rank in zip(facts, ranks, strict=True) if rank > known_rank}
    if beyond and unknown != "skip":
        fact, rank = max(beyond.items(), key=lambda item: item[1])
        told = (
            f"Facts to be forgotten should be known to the model, with tails of rank {known_rank} or better, but of "
            f"{len(beyond)} of {len(facts)} it is worse, such as {rank} of {fact}. Choose other facts, or "
            'unknown="skip", or another known_rank.'
        )
        if unknown == "raise":
            raise ValueError(told)
        warnings.warn(told, stacklevel=3)
    return [one for one in facts if unknown != "skip" or one.fact not in beyond]


def _check_sets(target: Sequence[Chosen], control: Sequence[Chosen], left_out: dict[str, int]) -> None:
    gone = ", ".join(f"{count} for {reason}" for reason, count in left_out.items() if count) or "none"
    for name, facts, least in (("target", target, 1), ("control", control, 3)):
        if len(facts) < least:
            raise ValueError(
                f"A knowledge task needs at least {least} {name} facts but has {len(facts)} (left out: {gone}). Give "
                "others."
            )
    both = {one.fact for one in target} & {one.fact for one in control}
    if both:
        raise ValueError(
            f"A fact is to be forgotten or to be kept but {len(both)} are in both sets, such as {min(both)}. Take them "
            "out of one."
        )


def _of_target(facts: Sequence[Chosen], worded: Callable[[Chosen], tuple[Sentence, ...]]) -> list[list[Sentence]]:
    train = [sentence for one in facts for sentence in worded(one)]
    return [train, _paraphrased([one.validation for one in facts], train), _paraphrased([x.test for x in facts], train)]


def _paraphrased(held: Sequence[tuple[Sentence, ...]], train: Sequence[Sentence]) -> list[Sentence]:
    return [one for sentences in held for one in sentences] or list(train)


def _of_control(facts: Sequence[Chosen], held_out: float, seed: int) -> list[list[Sentence]]:
    if not 0 < held_out < 0.5:
        raise ValueError(f"The share of held-out control facts must be in (0, 0.5) but is {held_out}. Give 0.2.")
    order = Random(seed).sample(list(facts), len(facts))
    count = max(1, round(held_out * len(order)))
    test, validation, train = order[:count], order[count : 2 * count], order[2 * count :]
    tested = [sentence for one in test for sentence in (one.train, *one.test)]
    return [[one.train for one in train], [one.train for one in validation], tested]


def _batch(sentences: Sequence[Sentence], names: Sequence[str], padding: int) -> Batch:
    tokens = side_by_side(sentences, padding)
    numbers = {fact: number for number, fact in enumerate(dict.fromkeys(one.fact for one in sentences))}
    return Batch(
        index=torch.arange(len(sentences)),
        clean=tokens,
        corrupt=tokens,
        positions=torch.tensor([[one.position] for one in sentences]),
        answers=torch.tensor([[one.tail] for one in sentences]),
        foils=torch.full((len(sentences), 1), -100),
        labels=torch.tensor([names.index(one.template) for one in sentences]),
        groups=torch.tensor([numbers[one.fact] for one in sentences]),
    )


def _hash(facts: Iterable[Fact]) -> str:
    return hashlib.sha256("\n".join(sorted(map(str, facts))).encode()).hexdigest()[:16]
