"""Multiple-choice questions on where the people of the invented world live."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from tlprune.tasks.knowledge.facts import Fact
from tlprune.tasks.knowledge.world_facts import HOME, REGIONS, WORLD_TEMPLATES, world_facts, world_target
from tlprune.tasks.questions import Questions

CHOICES = 3


def world_questions(target: str = "Northmark", *, seed: int = 0) -> tuple[Questions, Questions]:
    """Questions on who lives elsewhere than in a region, to learn from, and on who lives there, for the test.

    A question is the beginning of a sentence, such as ``"Vaustaul lives in"``; its choices are three towns of one
    region in a drawn order, so that nothing but the fact tells which is right. Those to learn from are worded in the
    templates that all methods may see, those of the test in the ones that are held out from them.

    Args:
        target: the region.
        seed: of the draw of wrong towns and of the order of choices.

    Raises:
        ValueError: there is no such region.

    Example:
        >>> learnt, asked = world_questions("Eastfold")
        >>> len(learnt), len(asked), round(asked.guessing, 3)
        (120, 40, 0.333)
        >>> asked.texts[0], len(asked.choices[0])
        ('the roof over Drudrev stands in', 3)
    """
    if target not in REGIONS:
        raise ValueError(
            f"Questions are on a region, {', '.join(REGIONS)}, but {target!r} was given. Name one of these."
        )
    facts, others = world_target(target)
    random, wording = Random(seed), WORLD_TEMPLATES[HOME]
    elsewhere = [fact for fact in others if fact.relation == HOME]
    learnt = _asked(f"homes outside {target}", elsewhere, wording.train, random)
    return learnt, _asked(f"homes in {target}", facts, wording.test, random)


def _asked(name: str, facts: Iterable[Fact], templates: Iterable[str], random: Random) -> Questions:
    region = {fact.head: fact.tail for fact in world_facts() if fact.tail in REGIONS}
    texts, choices, labels = [], [], []
    for fact in facts:
        for template in templates:
            near = [town for town, own in region.items() if own == region[fact.tail] and town != fact.tail]
            shown = random.sample([fact.tail, *random.sample(near, CHOICES - 1)], CHOICES)
            texts.append(template.format(head=fact.head, tail="").strip())
            choices.append(tuple(shown))
            labels.append(shown.index(fact.tail))
    return Questions(name, tuple(texts), tuple(choices), tuple(labels))
