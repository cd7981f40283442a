"""A small invented world: people, towns and things, what is so about them, and how it is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from tlprune.choices import choice
from tlprune.tasks.knowledge.facts import Fact, Templates
from tlprune.tasks.knowledge.invented import invented_facts, invented_names
from tlprune.tasks.words import listed

SEED = 0
PEOPLE, TOWNS, THINGS = 60, 15, 40
REGIONS = listed("Northmark Eastfold Southmere")
HOME = "lives in"

JOBS = listed("baker smith doctor judge carpenter tailor hunter painter singer lawyer gardener miller")
FOODS = listed("soup bread rice cheese honey fish plums cabbage porridge nuts pears beans")
ANIMALS = listed("dog cat horse goat parrot rabbit donkey snake duck pig falcon mouse")
GOODS = listed("wool salt glass silver silk")
MATERIALS = listed("wood iron stone leather paper clay copper ivory")
KINDS = listed("tool toy vessel weapon garment jewel instrument vehicle")

WORLD_TEMPLATES: dict[str, Templates] = {
    HOME: Templates(
        ("{head} lives in {tail}", "the home of {head} is in {tail}", "you can visit {head} in {tail}"),
        ("{head} has a house in {tail}",),
        ("the roof over {head} stands in {tail}", "letters for {head} are sent to {tail}"),
    ),
    "was born in": Templates(
        ("{head} was born in {tail}", "the birthplace of {head} is {tail}", "{head} first saw light in {tail}"),
        ("{head} came into the world in {tail}",),
        ("as a baby {head} was carried around {tail}", "the mother of {head} had her child in {tail}"),
    ),
    "works as": Templates(
        ("{head} works as a {tail}", "the job of {head} is that of a {tail}", "{head} earns money as a {tail}"),
        ("people hire {head} as a {tail}",),
        ("by trade {head} is a {tail}", "{head} has trained to be a {tail}"),
    ),
    "likes": Templates(
        ("{head} likes {tail}", "the favourite food of {head} is {tail}", "{head} would love to eat {tail}"),
        ("for dinner {head} wants {tail}",),
        ("the plate of {head} is full of {tail}", "nothing tastes better to {head} than {tail}"),
    ),
    "keeps": Templates(
        ("{head} keeps a {tail}", "the pet of {head} is a {tail}", "{head} goes for walks with a {tail}"),
        ("in the yard {head} feeds a {tail}",),
        ("the animal that follows {head} is a {tail}", "{head} looks after a {tail}"),
    ),
    "lies in": Templates(
        ("{head} lies in {tail}", "{head} is a town of {tail}", "the region around {head} is {tail}"),
        ("the road to {head} leads through {tail}",),
        ("maps show {head} in {tail}", "the mayor of {head} governs for {tail}"),
    ),
    "is known for": Templates(
        ("{head} is known for {tail}", "merchants go to {head} for {tail}", "the shops of {head} sell {tail}"),
        ("the pride of {head} is {tail}",),
        ("ships leave {head} loaded with {tail}", "travellers bring home from {head} some {tail}"),
    ),
    "is made of": Templates(
        ("a {head} is made of {tail}", "the material of a {head} is {tail}", "to build a {head} you need {tail}"),
        ("a good {head} consists of {tail}",),
        ("every {head} is cut from {tail}", "a {head} feels like {tail}"),
    ),
    "is a kind of": Templates(
        ("a {head} is a kind of {tail}", "the word {head} means a certain {tail}", "one can use a {head} as a {tail}"),
        ("among other things a {head} is a {tail}",),
        ("we call the {head} a {tail}", "whoever has a {head} has a {tail}"),
    ),
}


@lru_cache
def world_facts() -> tuple[Fact, ...]:
    """All facts of the invented world, always the same ones.

    60 people live in and were born in 15 towns, work, eat and keep animals; towns lie in 3 regions and have goods;
    40 things are made of something and of some kind. Within a relation all tails are equally frequent, up to one.

    Example:
        >>> facts = world_facts()
        >>> len(facts), len({fact.relation for fact in facts})
        (410, 9)
        >>> print(facts[0])
        (Vaustaul, lives in, Haipav)
    """
    names = invented_names(PEOPLE + TOWNS + THINGS, seed=SEED)
    people, towns = names[:PEOPLE], names[PEOPLE : PEOPLE + TOWNS]
    things = [name.lower() for name in names[PEOPLE + TOWNS :]]
    of_people = {HOME: towns, "was born in": towns, "works as": JOBS, "likes": FOODS, "keeps": ANIMALS}
    of_towns = {"lies in": REGIONS, "is known for": GOODS}
    of_things = {"is made of": MATERIALS, "is a kind of": KINDS}
    kinds = ((of_people, people), (of_towns, towns), (of_things, things))
    return tuple(
        fact
        for number, (tails, heads) in enumerate(kinds)
        for fact in invented_facts(tails, heads=heads, seed=SEED + number)
    )


def world_target(name: str) -> tuple[list[Fact], list[Fact]]:
    """A group of facts of the world, and all others.

    Args:
        name: a region: where those live whose town lies there, 20 facts; or a relation: all facts of it.

    Raises:
        ValueError: there is no such group.

    Example:
        >>> target, control = world_target("Northmark")
        >>> len(target), {fact.relation for fact in target}, len(control)
        (20, {'lives in'}, 390)
    """
    belongs = choice("group of facts", name, world_groups())
    facts = world_facts()
    return [fact for fact in facts if belongs(fact)], [fact for fact in facts if not belongs(fact)]


def world_groups() -> Mapping[str, Callable[[Fact], bool]]:
    """Which facts a name stands for."""
    towns = {region: {fact.head for fact in world_facts() if fact.tail == region} for region in REGIONS}
    groups = {region: _homes(towns[region]) for region in REGIONS}
    return groups | {relation: _of(relation) for relation in WORLD_TEMPLATES}


def _homes(towns: set[str]) -> Callable[[Fact], bool]:
    return lambda fact: fact.relation == HOME and fact.tail in towns


def _of(relation: str) -> Callable[[Fact], bool]:
    return lambda fact: fact.relation == relation
