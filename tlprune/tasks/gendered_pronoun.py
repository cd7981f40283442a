"""Gendered pronoun: a first name decides between "he" and "she".

Behaviour studied in Mathwin et al., "Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small"
(2023); the templates here are written for this library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

from tlprune.task import Task
from tlprune.tasks.pairs import Pair
from tlprune.tasks.sampling import check_templates, drawn_task, filled, hold_out
from tlprune.tasks.tokenising import token_ids, tokenizer_of
from tlprune.tasks.words import ADJECTIVES, NAMES, OBJECTS, PLACES, listed

TEMPLATES: tuple[str, ...] = (
    "So {name} is a really {adjective} friend, isn't",
    "As a neighbour {name} was always {adjective}, wasn't",
    "We both know {name} can be {adjective}, can't",
    "Even at the {place} {name} has stayed {adjective}, hasn't",
    "I heard that {name} will be {adjective} tomorrow, won't",
    "With a {object} in the bag, {name} could walk home, couldn't",
    "If you asked for a {object}, {name} would find one, wouldn't",
    "That {adjective} cousin of ours, {name}, lives by the {place}, doesn't",
    "It looks as if {name} forgot the {object} again, didn't",
    "By noon {name} had left the {place}, hadn't",
    "To stay {adjective} all week, {name} should rest, shouldn't",
    "Our guide {name} seems {adjective} today, doesn't",
    "No wonder {name} bought that {object}, since",
    "{name} hurried to the {place} because",
    "{name} felt {adjective} after the walk, and",
    "Nobody could find {name} at the {place}, although",
    "The {object} belonged to {name} until",
    "Although {name} was {adjective},",
    "When {name} came back from the {place},",
    "While {name} repaired the {object},",
    "{name} missed the train to the {place}, so",
    "As soon as {name} saw the {object},",
    "Ask {name} about the {place}, and",
    "The letter from {name} said that",
    "{name} kept the {object} in a drawer, where",
    "Whenever {name} visits the {place},",
    "Before {name} grew so {adjective},",
    "{name} never sold the {object}, but",
    "Last night {name} dreamed that",
    "The {adjective} poem that {name} wrote shows that",
    "My teacher told {name} to be {adjective}, so",
    "Unless {name} returns the {object},",
)

# For models of children's stories, such as those trained on TinyStories: 6 templates and 21 names make 126 prompts.
STORY_TEMPLATES: tuple[str, ...] = (
    "{name} was sad because",
    "One sunny day, {name} was playing in the yard when",
    "{name} ran home as fast as",
    "{name} was tired, so",
    "{name} wanted to play with the dog, but",
    "After lunch, {name} went to bed because",
)
STORY_NAMES: dict[str, tuple[str, ...]] = {
    "he": listed("Max Mark Jim Jack Billy Joe Peter Benny John Bobby David"),
    "she": listed("Mia Sue Sara Lucy Jane Molly Ella Anna Emma Susie"),
}
SPAN_NAMES: tuple[str, ...] = ("name", "end")
Group = Mapping[str, Sequence[str]]


def gendered_pronoun(
    model: Any,
    *,
    train: int = 200,
    validation: int = 100,
    test: int = 100,
    seed: int = 0,
    templates: Sequence[str] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    held_out_templates: Iterable[str] | None = None,
    held_out_names: Iterable[str] | None = None,
) -> Task:
    """Prompts such as "So Mary is a really kind friend, isn't", which "she" completes.

    The twin has a name of the other gender with as many tokens; names without such a partner are dropped. The test has
    templates and names of its own. Spans: ``name``, and ``end``, the last token.

    Args:
        model: a model with a tokenizer, or a Hugging Face tokenizer.
        train: examples to learn from.
        validation: examples for thresholds and early stopping.
        test: examples for evaluation.
        seed: fixes the held-out templates and names and every draw.
        templates: text with the slot ``{name}`` and, if wanted, ``{adjective}``, ``{place}`` and ``{object}``.
        names: names under ``"he"`` and ``"she"``.
        held_out_templates: templates for the test alone; ``None`` draws a third, an empty list shares them all.
        held_out_names: names for the test alone; ``None`` draws a third of each gender, an empty list shares them all.

    Raises:
        ValueError: if no name has a partner, or there are fewer distinct prompts than asked for.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        >>> task = gendered_pronoun(tokenizer, train=8, validation=4, test=4, held_out_names=["John", "Mary"])
        >>> sorted(set(tokenizer.convert_ids_to_tokens(task.test.answers[:, 0])))
        ['he', 'she']
    """
    rng = Random(seed)
    templates = TEMPLATES if templates is None else tuple(templates)
    check_templates(templates, required=("name",), known=("name", "adjective", "place", "object"))
    seen_templates, test_templates = hold_out(rng, templates, held_out_templates)
    tokenizer = tokenizer_of(model)
    pools = _hold_out_names(rng, paired_groups(tokenizer, NAMES if names is None else names), held_out_names)
    groups, test_groups = (paired_groups(tokenizer, pool) for pool in pools)
    test_names = sorted(name for group in test_groups for names in group.values() for name in names)
    return drawn_task(
        "gendered-pronoun",
        model,
        discovery=partial(sample_pair, templates=seen_templates, groups=groups),
        test=partial(sample_pair, templates=test_templates, groups=test_groups),
        rng=rng,
        sizes={"train": train, "validation": validation, "test": test},
        options={"seed": seed, "held_out_templates": test_templates, "held_out_names": test_names},
        span_names=SPAN_NAMES,
    )


def sample_pair(rng: Random, *, templates: Sequence[str] = TEMPLATES, groups: Sequence[Group] = (NAMES,)) -> Pair:
    """One pair, with either pronoun equally often. The names of a group must have equal token counts.

    Example:
        >>> sample_pair(Random(0), templates=["{name} ran because"], groups=[{"he": ["Tim"], "she": ["Sue"]}])
        Pair(clean='Sue ran because', corrupt='Tim ran because', answer=' she', foil=' he', label=None,
             spans={'name': (0, 3)})
    """
    pronoun, other = rng.choice((("he", "she"), ("she", "he")))
    group = rng.choices(groups, weights=[len(group[pronoun]) for group in groups])[0]
    template, name, twin = rng.choice(templates), rng.choice(group[pronoun]), rng.choice(group[other])
    filling = {"adjective": rng.choice(ADJECTIVES), "place": rng.choice(PLACES), "object": rng.choice(OBJECTS)}
    (clean, places), (corrupt, _) = (filled(template, {"name": someone, **filling}) for someone in (name, twin))
    return Pair(clean, corrupt, f" {pronoun}", f" {other}", spans={"name": places["name"]})


def paired_groups(tokenizer: Any, names: Mapping[str, Sequence[str]]) -> list[dict[str, list[str]]]:
    """Names by their number of tokens, without those that have no partner of the other gender.

    Raises:
        ValueError: if none is left, or a gender has no list.
    """
    if set(names) != {"he", "she"}:
        raise ValueError(f"Names are needed under 'he' and 'she' but there are {sorted(names)}. Give both lists.")
    groups: dict[tuple[int, int], dict[str, list[str]]] = {}
    for pronoun in ("he", "she"):
        for name in names[pronoun]:
            # A name can have other tokens where a text begins than after a space.
            lengths = len(token_ids(tokenizer, name)), len(token_ids(tokenizer, f"so {name}"))
            groups.setdefault(lengths, {"he": [], "she": []})[pronoun].append(name)
    paired = [group for group in groups.values() if group["he"] and group["she"]]
    if not paired:
        raise ValueError(
            f"Each name needs a partner of the other gender with as many tokens but {dict(names)} hold no such two. "
            "Give more names with names= (or others with held_out_names=)."
        )
    return paired


def _hold_out_names(
    rng: Random, groups: Sequence[Group], chosen: Iterable[str] | None
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    everyone = [name for group in groups for names in group.values() for name in names]
    if chosen is None:
        chosen = [name for group in groups for name in _third(rng, group)]
    seen, test = (set(pool) for pool in hold_out(rng, everyone, chosen))
    return _pool(groups, seen), _pool(groups, test)


def _third(rng: Random, group: Group) -> list[str]:
    # As many of each gender, so that the names that are held out have partners among themselves.
    count = round(min(len(names) for names in group.values()) / 3)
    return [name for names in group.values() for name in rng.sample(list(names), count)]


def _pool(groups: Sequence[Group], wanted: set[str]) -> dict[str, list[str]]:
    return {
        pronoun: [name for group in groups for name in group[pronoun] if name in wanted] for pronoun in ("he", "she")
    }
