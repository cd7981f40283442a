"""Small sets of invented facts, which no model knows that was not taught them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from tlprune.tasks.knowledge.facts import Fact, Templates
from tlprune.tasks.words import ADJECTIVES, EVENTS, NAMES, OBJECTS, PLACES, listed

BEGINNINGS = listed("b bl br d dr f fr g gl gr h j k kl kr l m n p pr qu r s sk st t tr v w z")
MIDDLES = listed("a e i o u ai au ea io oo")
MIDDLE_ENDS = listed("l m n r s b d g k v z")

TESTBED_TAILS: dict[str, tuple[str, ...]] = {"place": PLACES, "object": OBJECTS, "mood": ADJECTIVES, "event": EVENTS}
# Of words that the testbed's tokenizer knows.
TESTBED_TEMPLATES: dict[str, Templates] = {
    "place": Templates(
        ("{head} lives near the {tail}", "we saw {head} at the {tail}"),
        ("{head} often visits the {tail}",),
        ("you can find {head} in the {tail}",),
    ),
    "object": Templates(
        ("{head} bought the {tail}", "we know that {head} has the {tail}"),
        ("nobody but {head} wanted the {tail}",),
        ("{head} kept the {tail}",),
    ),
    "mood": Templates(
        ("{head} is always {tail}", "we know that {head} is {tail}"), ("{head} seems {tail}",), ("{head} looks {tail}",)
    ),
    "event": Templates(
        ("{head} wrote about the {tail}", "{head} never forgot the {tail}"),
        ("{head} knew of the {tail}",),
        ("all that {head} recalls is the {tail}",),
    ),
}


def invented_facts(
    tails: Mapping[str, Sequence[str]] | None = None, *, heads: Sequence[str] | None = None, seed: int = 0
) -> list[Fact]:
    """For every relation each head has one tail, drawn so that all tails are used equally often, up to one.

    So the frequency of a tail says nothing about a head, nor does one relation about another.

    Args:
        tails: words by the relation whose tails they are; by default places, objects, moods and events that are whole
            words to the testbed's tokenizer, with templates in ``TESTBED_TEMPLATES``.
        heads: by default the 64 names of the testbed's prompts.
        seed: of the draw.

    Raises:
        ValueError: no heads, no relations, or a relation without tails; a word that is there twice.

    Example:
        >>> facts = invented_facts({"likes": ["soup", "rice"]}, heads=["Ada", "Bo", "Cy", "Di"])
        >>> [fact.head for fact in facts], sorted(fact.tail for fact in facts)
        (['Ada', 'Bo', 'Cy', 'Di'], ['rice', 'rice', 'soup', 'soup'])
        >>> len(invented_facts())
        256
    """
    tails = TESTBED_TAILS if tails is None else tails
    heads = [name for names in NAMES.values() for name in names] if heads is None else heads
    for what, words in {"heads": heads, "relations": list(tails), **tails}.items():
        _check(what, words)
    rng = Random(seed)
    return [
        Fact(head, relation, tail)
        for relation, words in tails.items()
        for head, tail in zip(heads, _evenly(words, len(heads), rng), strict=True)
    ]


def invented_names(count: int, *, syllables: int = 2, seed: int = 0, taken: Sequence[str] = ()) -> list[str]:
    """Distinct words that look like names and mean nothing.

    Args:
        count: how many.
        syllables: of each.
        seed: of the draw.
        taken: words that are none of them.

    Example:
        >>> len(set(invented_names(100)))
        100
    """
    rng, found, known = Random(seed), [], {*taken}
    while len(found) < count:
        name = "".join(rng.choice(BEGINNINGS) + rng.choice(MIDDLES) for _ in range(syllables)) + rng.choice(MIDDLE_ENDS)
        if name.capitalize() not in known and name not in known:
            found.append(name.capitalize())
            known.add(name.capitalize())
    return found


def _evenly(words: Sequence[str], count: int, rng: Random) -> list[str]:
    """A shuffled list of words in which any two occur equally often, up to one."""
    order = rng.sample(list(words), len(words))
    repeated = [order[number % len(order)] for number in range(count)]
    return rng.sample(repeated, count)


def _check(what: str, words: Sequence[str]) -> None:
    twice = sorted({word for word in words if list(words).count(word) > 1})
    if not words or twice:
        raise ValueError(
            f"Invented facts need distinct {what} but there are {'none' if not words else f'two of {twice[0]!r}'}. "
            "Give each once."
        )
