"""Indirect object identification: two people, one of them acts, and the other is the one who receives.

Behaviour studied in Wang et al., "Interpretability in the Wild" (ICLR 2023); the templates here are written for this
library.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, Literal

from tlprune.choices import choice
from tlprune.task import Task
from tlprune.tasks.pairs import Pair
from tlprune.tasks.sampling import check_templates, drawn_task, filled, hold_out
from tlprune.tasks.tokenising import is_one_token, token_ids, tokenizer_of
from tlprune.tasks.words import NAMES, OBJECTS, PLACES

# {A} and {B} are the first two names, {S} the one that comes again. Each template serves in both orders:
# ABBA, where the second name is repeated, and BABA, where the first one is.
TEMPLATES: tuple[str, ...] = (
    "After lunch {A} and {B} walked over to the {place}, where {S} handed a {object} to",
    "{A} and {B} were sitting in the {place} when {S} passed a {object} to",
    "On the way to the {place}, {A} and {B} stopped because {S} wanted to show a {object} to",
    "Ever since {A} and {B} met at the {place}, {S} has sent a {object} to",
    "The {place} was nearly empty, so {A} and {B} stayed late and {S} sold a {object} to",
    "Rain kept {A} and {B} inside the {place} until {S} lent a {object} to",
    "Everyone at the {place} knew {A} and {B}, and nobody was surprised when {S} offered a {object} to",
    "Before leaving the {place}, {A} and {B} talked for an hour, and {S} promised a {object} to",
    "Because {A} and {B} shared a desk at the {place}, {S} often brought a {object} to",
    "Late in the evening {A} and {B} reached the {place}, and there {S} threw a {object} to",
    "{A} and {B} painted the walls of the {place} together; afterwards {S} mailed a {object} to",
    "While {A} and {B} cleaned the {place}, {S} returned a {object} to",
    "Last summer {A} and {B} found work at the {place}, and on the first day {S} carried a {object} to",
    "Having crossed the {place}, {A} and {B} took a break and {S} tossed a {object} to",
    "It was {A} and {B} who opened the {place}, but it was {S} who delivered a {object} to",
    "A friend saw {A} and {B} near the {place} just as {S} slipped a {object} to",
    "Once {A} and {B} had locked the {place}, {S} quietly gave a {object} to",
    "At the {place} {A} argued with {B}, yet in the end {S} awarded a {object} to",
)
ALL_NAMES: tuple[str, ...] = NAMES["he"] + NAMES["she"]
# The single template of IOI-t1, and the first of the fifteen of the source.
SINGLE = "Then, {A} and {B} went to the {place}. {S} gave a {object} to"
ORDERS: Mapping[str, tuple[bool, ...]] = {"ABBA": (True,), "BABA": (False,), "both": (False, True)}
SPAN_NAMES: tuple[str, ...] = ("io", "s1", "s1+1", "s2", "end")
_SMALLEST_POOL = 5


def ioi(
    model: Any,
    *,
    train: int = 200,
    validation: int = 100,
    test: int = 200,
    seed: int = 0,
    templates: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Task:
    """Prompts such as "When A and B met, B gave a book to", which A completes.

    The twin has three other names, none of them repeated, with as many tokens each. The answer is the name that came
    once, the foil the repeated one. A third of the templates (each in both orders) and a third of the names appear in
    the test only. Names that are not one token under the tokenizer are dropped.

    Spans: ``io``, the name that came once; ``s1`` and ``s2``, the repeated name where it comes first and again;
    ``s1+1``, the token behind ``s1``; ``end``, the last token.

    Args:
        model: a model with a tokenizer, or a Hugging Face tokenizer.
        train: examples to learn from.
        validation: examples for thresholds and early stopping.
        test: examples for evaluation.
        seed: fixes the held-out templates and names and every draw.
        templates: text with the slots ``{A}``, ``{B}``, ``{S}`` and, if wanted, ``{place}`` and ``{object}``.
        names: first names.

    Raises:
        ValueError: if too few names are one token, or there are fewer distinct prompts than asked for.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> task = ioi(AutoTokenizer.from_pretrained(DIRECTORY), train=8, validation=4, test=4)
        >>> len(task.test), len(task.options["held_out_templates"])
        (4, 6)
    """
    rng = Random(seed)
    templates = TEMPLATES if templates is None else tuple(templates)
    check_templates(templates, required=("A", "B", "S"), known=("A", "B", "S", "place", "object"))
    seen_templates, test_templates = hold_out(rng, templates, None)
    known = _usable(tokenizer_of(model), ALL_NAMES if names is None else tuple(names))
    seen_names, test_names = hold_out(rng, sorted(known), None)
    return drawn_task(
        "ioi",
        model,
        discovery=partial(sample_pair, templates=seen_templates, groups=_groups(known, seen_names)),
        test=partial(sample_pair, templates=test_templates, groups=_groups(known, test_names)),
        rng=rng,
        sizes={"train": train, "validation": validation, "test": test},
        options={"seed": seed, "held_out_templates": test_templates, "held_out_names": test_names},
        span_names=SPAN_NAMES,
    )


def ioi_t1(
    model: Any,
    *,
    order: Literal["ABBA", "BABA", "both"] = "ABBA",
    train: int = 200,
    validation: int = 100,
    test: int = 200,
    seed: int = 0,
    template: str = SINGLE,
    names: Sequence[str] | None = None,
) -> Task:
    """Indirect object identification in a single template: "Then, A and B went to the school. B gave a ring to".

    As :func:`ioi` but for the template, which serves discovery and test alike; a third of the names still appears in
    the test only.

    Args:
        model: a model with a tokenizer, or a Hugging Face tokenizer.
        order: ``"ABBA"``: the second of the first two names comes again; ``"BABA"``: the first one; ``"both"``, each in
            half of the examples, up to chance.
        train: examples to learn from.
        validation: examples for thresholds and early stopping.
        test: examples for evaluation.
        seed: fixes the held-out names and every draw.
        template: text with the slots of :func:`ioi`.
        names: first names.

    Raises:
        ValueError: as :func:`ioi`; or there is no such order.

    Source: of the setting, Conmy et al. 2023 (ACDC) and Bhaskar et al. 2024, section 4, who call it IOI-t1; of the
    template, Wang et al. 2023.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> words, template = AutoTokenizer.from_pretrained(DIRECTORY), "{A} met {B} and {S} wrote to"
        >>> task = ioi_t1(words, order="BABA", template=template, train=8, validation=4, test=4)
        >>> words.decode(task.test.clean.ids[0]), words.decode(task.test.answers[0])
        ('<bos> Rachel met Peter and Rachel wrote to', 'Peter')
    """
    rng, orders = Random(seed), choice("order", order, ORDERS)
    check_templates([template], required=("A", "B", "S"), known=("A", "B", "S", "place", "object"))
    known = _usable(tokenizer_of(model), ALL_NAMES if names is None else tuple(names))
    seen_names, test_names = hold_out(rng, sorted(known), None)
    draw = partial(sample_pair, templates=(template,), orders=orders)
    return drawn_task(
        "ioi-t1",
        model,
        discovery=partial(draw, groups=_groups(known, seen_names)),
        test=partial(draw, groups=_groups(known, test_names)),
        rng=rng,
        sizes={"train": train, "validation": validation, "test": test},
        options={"seed": seed, "template": template, "order": order, "held_out_names": test_names},
        span_names=SPAN_NAMES,
    )


def sample_pair(
    rng: Random,
    *,
    templates: Sequence[str] = TEMPLATES,
    groups: Sequence[Sequence[str]] = (ALL_NAMES,),
    orders: Sequence[bool] = ORDERS["both"],
) -> Pair:
    """One pair. A name is replaced by one of its own group, so the names of a group must have equal token counts;
    ``orders`` are those that are drawn: whether the name that comes once stands first.

    Example:
        >>> names = ["Ann", "Bea", "Cid", "Dan", "Eve"]
        >>> pair = sample_pair(Random(1), templates=["{A} met {B}, so {S} wrote to"], groups=[names])
        >>> pair
        Pair(clean='Dan met Ann, so Dan wrote to', corrupt='Bea met Eve, so Cid wrote to', answer=' Ann', foil=' Dan',
             label=None, spans={'io': (7, 11), 's1': (0, 3), 's2': (15, 19)})
    """
    receivers, actors = rng.choices(groups, weights=[len(group) for group in groups], k=2)
    receiver = rng.choice(receivers)
    actor, other_actor, actor_again = rng.sample([name for name in actors if name != receiver], 3)
    taken = (receiver, actor, other_actor, actor_again)
    other_receiver = rng.choice([name for name in receivers if name not in taken])
    template, draw = rng.choice(templates), rng.random()
    receiver_first = orders[-1] if draw < 0.5 else orders[0]
    filling = {"place": rng.choice(PLACES), "object": rng.choice(OBJECTS)}

    def fill(received: str, acted: str, again: str) -> tuple[str, dict[str, tuple[int, int]]]:
        first, second = (received, acted) if receiver_first else (acted, received)
        return filled(template, {"A": first, "B": second, "S": again, **filling})

    (clean, places), (corrupt, _) = fill(receiver, actor, actor), fill(other_receiver, other_actor, actor_again)
    slots = ("A", "B", "S") if receiver_first else ("B", "A", "S")
    spans = {name: places[slot] for name, slot in zip(("io", "s1", "s2"), slots, strict=True)}
    return Pair(clean, corrupt, f" {receiver}", f" {actor}", spans=spans)


def _usable(tokenizer: Any, names: Sequence[str]) -> dict[str, int]:
    """Names that are one token after a space, each with the number of tokens it has where a text begins."""
    known = {
        name: len(token_ids(tokenizer, name)) for name in names if is_one_token(tokenizer, "gave it to", f" {name}")
    }
    if len(known) < 3 * _SMALLEST_POOL:
        raise ValueError(
            f"Indirect object identification needs {3 * _SMALLEST_POOL} names that are one token each but under this "
            f"tokenizer only {sorted(known)} are. Give more names with names=."
        )
    return known


def _groups(known: dict[str, int], pool: Sequence[str]) -> list[list[str]]:
    groups: dict[int, list[str]] = defaultdict(list)
    for name in pool:
        groups[known[name]].append(name)
    large = [group for group in groups.values() if len(group) >= _SMALLEST_POOL]
    if not large:
        raise ValueError(
            f"Names are exchanged for others with as many tokens, which needs {_SMALLEST_POOL} of one length, but the "
            f"pools are {list(groups.values())}. Give more names with names=."
        )
    return large
