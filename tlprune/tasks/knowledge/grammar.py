"""Plain text of a small grammar whose entropy is known: short sentences that state no fact of the invented world."""

from __future__ import annotations

import math
import string
from random import Random

from tlprune.tasks.words import listed

WORDS: dict[str, tuple[str, ...]] = {
    "girl": listed("Anna Emma Lily Rosa Nina Clara"),
    "boy": listed("Tom Ben Max Leo Sam Finn"),
    "who": listed("farmer child queen stranger teacher sailor uncle neighbour"),
    "which": listed("old little tired happy quiet clever hungry brave"),
    "item": listed("ball key book lamp candle ribbon letter drum"),
    "colour": listed("red blue green yellow white black"),
    "spot": listed("river forest garden hill market bridge lake barn"),
    "furniture": listed("table bed chair shelf stairs cupboard"),
    "went": listed("walked ran hurried wandered"),
    "deed": listed("rest sing think play wait dance"),
    "weather": listed("cold sunny windy rainy dark foggy"),
    "day": listed("morning evening night week"),
    "feeling": listed("laughed smiled cried sighed"),
}
SENTENCES: tuple[str, ...] = (
    "The {which} {who} {went} to the {spot} to {deed} .",
    "One {day} {girl} found a {colour} {item} near the {spot} .",
    "One {day} {boy} lost a {colour} {item} near the {spot} .",
    "{girl} opened the {item} because she wanted to {deed} .",
    "{boy} closed the {item} because he wanted to {deed} .",
    "It was {weather} , so the {who} stayed under the {furniture} until the {day} was over .",
    "{girl} looked for the {item} everywhere , and at last she saw the {item} behind the {furniture} .",
    "{boy} asked the {who} for a {item} , but the {who} only {feeling} .",
    "When the {who} came back from the {spot} , all {feeling} and {girl} began to {deed} .",
    "Nobody knew why the {item} was so {colour} .",
)


def plain_text(sentences: int, *, seed: int = 0) -> list[str]:
    """Sentences of the grammar: a template, then for each of its slots a word, all equally likely.

    A word that comes again in a sentence is the same one.

    Args:
        sentences: how many.
        seed: of the draws.

    Example:
        >>> plain_text(1, seed=3)[0].endswith(" .")
        True
    """
    rng = Random(seed)
    return [_sentence(rng) for _ in range(sentences)]


def plain_text_entropy() -> float:
    """Mean nats per sentence: ``log T + 1/T sum_t sum_s log n_s`` over ``T`` templates and the slots ``s`` of each.

    A sentence tells its template and its words, so this is the entropy of the text, and no model can expect less.

    Example:
        >>> round(plain_text_entropy(), 2)
        9.51
    """
    chosen = sum(math.log(len(WORDS[slot])) for template in SENTENCES for slot in _slots(template))
    return math.log(len(SENTENCES)) + chosen / len(SENTENCES)


def plain_words() -> list[str]:
    """Everything that the text may have in it, once in the words of a template and once as a word for a slot."""
    literals = [literal for text in SENTENCES for literal, *_ in string.Formatter().parse(text)]
    return [*literals, *(word for words in WORDS.values() for word in words)]


def _sentence(rng: Random) -> str:
    template = rng.choice(SENTENCES)
    return template.format(**{slot: rng.choice(WORDS[slot]) for slot in _slots(template)})


def _slots(template: str) -> list[str]:
    """Names of the slots, each once, in their order."""
    return list(dict.fromkeys(name for _, name, *_ in string.Formatter().parse(template) if name))
