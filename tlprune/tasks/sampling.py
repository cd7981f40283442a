"""Seeded draws that the prompt-pair tasks share: a task of distinct pairs, and what is kept for its test."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any, TypeVar

from tlprune.task import Task
from tlprune.tasks.pairs import Pair, from_pairs

Item = TypeVar("Item")
Draw = Callable[[Random], Pair]
_PATIENCE = 100


def drawn_task(
    name: str,
    model: Any,
    *,
    discovery: Draw,
    test: Draw,
    rng: Random,
    sizes: Mapping[str, int],
    options: Mapping[str, Any],
    span_names: Sequence[str] = (),
) -> Task:
    """A task whose splits are drawn one after the other and share no clean prompt.

    Args:
        name: short name of the task.
        model: a model with a tokenizer, or a Hugging Face tokenizer.
        discovery: makes one pair for training and validation.
        test: makes one pair for the test.
        rng: source of randomness.
        sizes: examples under ``"train"``, ``"validation"`` and ``"test"``.
        options: how the pairs were made, as plain data.
        span_names: as for :func:`~tlprune.tasks.from_pairs`.

    Raises:
        ValueError: as :func:`distinct_pairs` and :func:`~tlprune.tasks.from_pairs` do.

    Example:
        >>> from functools import partial
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> from tlprune.tasks.induction import sample_pair
        >>> draw = partial(sample_pair, words="book city home door story war girl boy king art air law".split())
        >>> sizes = {"train": 3, "validation": 2, "test": 1}
        >>> task = drawn_task(
        ...     "words", AutoTokenizer.from_pretrained(DIRECTORY),
        ...     discovery=draw, test=draw, rng=Random(0), sizes=sizes, options={},
        ... )
        >>> len(task.discovery.train()), len(task.test)
        (3, 1)
    """
    seen: set[str] = set()
    return from_pairs(
        name,
        model,
        train=distinct_pairs(discovery, rng, sizes["train"], seen),
        validation=distinct_pairs(discovery, rng, sizes["validation"], seen),
        test=distinct_pairs(test, rng, sizes["test"], seen),
        options=options,
        span_names=span_names,
    )


def distinct_pairs(draw: Draw, rng: Random, count: int, seen: set[str]) -> list[Pair]:
    """``count`` pairs whose clean prompts are all new.

    Args:
        draw: makes one pair.
        rng: source of randomness.
        count: pairs to return.
        seen: clean prompts that are taken; the new ones are added to it.

    Raises:
        ValueError: if the templates and words do not hold that many prompts.

    Example:
        >>> coin = lambda rng: Pair(rng.choice(["heads", "tails"]), "edge", " up", " down")
        >>> sorted(pair.clean for pair in distinct_pairs(coin, Random(0), 2, set()))
        ['heads', 'tails']
    """
    pairs: list[Pair] = []
    for _ in range(_PATIENCE * (count + 10)):
        if len(pairs) == count:
            break
        pair = draw(rng)
        if pair.clean not in seen:
            seen.add(pair.clean)
            pairs.append(pair)
    if len(pairs) < count:
        raise ValueError(
            f"{count} more distinct prompts were asked for but the templates and words gave only {len(pairs)}. "
            "Ask for fewer examples, or give more templates or names."
        )
    return pairs


def hold_out(
    rng: Random, items: Sequence[Item], chosen: Iterable[Item] | None, *, fraction: float = 1 / 3
) -> tuple[list[Item], list[Item]]:
    """Items for discovery and items for the test: disjoint, unless ``chosen`` is empty, when all serve both.

    Args:
        rng: source of randomness.
        items: what there is.
        chosen: the items kept for the test; ``None`` draws ``fraction`` of them, at least one.
        fraction: share that is drawn.

    Raises:
        ValueError: if a chosen item is not among the items, or none is left for discovery.

    Example:
        >>> hold_out(Random(0), "abcd", ["d"])
        (['a', 'b', 'c'], ['d'])
    """
    if chosen is None:
        chosen = rng.sample(list(items), max(1, math.floor(len(items) * fraction)))
    kept = list(chosen)
    strangers = [item for item in kept if item not in items]
    rest = [item for item in items if item not in kept]
    if strangers or not rest:
        raise ValueError(
            f"Held-out items must be some of the {len(items)} there are, not all, but {strangers} are not among them "
            f"and {len(rest)} are left for discovery. Hold out fewer, spelt as in the list."
        )
    return (rest, kept) if kept else (rest, rest)


def check_templates(templates: Sequence[str], *, required: Iterable[str], known: Iterable[str]) -> None:
    """Refuse templates that lack a required slot or have one that nothing fills.

    Raises:
        ValueError: naming the template and its slots.

    Example:
        >>> check_templates(["{name} is here, isn't"], required=["name"], known=["name", "place"])
    """
    for template in templates:
        slots = {slot for _, slot, _, _ in string.Formatter().parse(template) if slot is not None}
        if not set(required) <= slots <= set(known):
            raise ValueError(
                f"A template needs the slots {sorted(required)} and may use {sorted(known)} but {template!r} has "
                f"{sorted(slots)}. Write it with those slots."
            )


def filled(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """The template with its slots filled, and where each slot's word stands: its space before it, to its end.

    A slot that occurs more than once is placed where it comes first.

    Example:
        >>> filled("{A} met {B}", {"A": "Ann", "B": "Bea", "S": "Ann"})
        ('Ann met Bea', {'A': (0, 3), 'B': (7, 11)})
    """
    text, places = "", dict[str, tuple[int, int]]()
    for literal, slot, _, _ in string.Formatter().parse(template):
        text += literal
        if slot is not None:
            begin = len(text) - text.endswith(" ")
            text += words[slot]
            places.setdefault(slot, (begin, len(text)))
    return text, places
