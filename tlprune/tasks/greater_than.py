"""Greater-than: what began in 1732 ends in a year of that century that is later than 32.

Behaviour studied in Hanna et al., "How does GPT-2 compute greater-than?" (NeurIPS 2023); the templates here are written
for this library.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

from tlprune.task import Task
from tlprune.tasks.pairs import Pair
from tlprune.tasks.sampling import check_templates, drawn_task, filled, hold_out
from tlprune.tasks.tokenising import is_one_token, token_ids, tokenizer_of
from tlprune.tasks.words import EVENTS
from tlprune.tasks.year_metrics import year_metrics

TEMPLATES: tuple[str, ...] = (
    "Records say that the {event} began in {start} and ended in {century}",
    "From {start} on, the {event} continued until {century}",
    "The {event} that started in {start} was over by {century}",
    "What we call the {event} ran from {start} to {century}",
    "The {event} took many years, from {start} to {century}",
    "Nobody expected the {event} of {start} to go on until {century}",
    "A monument recalls the {event}, which lasted from {start} to {century}",
    "Between {start} and the end of the {event} in {century}",
    "Her book about the {event} covers the years {start} to {century}",
)
CENTURIES: tuple[str, ...] = tuple(str(century) for century in range(11, 20))
SPAN_NAMES: tuple[str, ...] = ("event", "century", "year", "end")
TWO_DIGITS: tuple[str, ...] = tuple(f"{number:02d}" for number in range(100))
YearTest = Callable[[str], bool]


def greater_than(
    model: Any,
    *,
    train: int = 200,
    validation: int = 100,
    test: int = 200,
    seed: int = 0,
    templates: Sequence[str] | None = None,
) -> Task:
    """Prompts such as "The war lasted from 1732 to 17", which any two digits above 32 complete.

    In the twin the first year ends in 01, so that nearly every two digits would do. The answer is one of the right
    completions and the foil one of the wrong ones. Years that are not two tokens of two digits are left out. A third
    of the templates appear in the test only; years and events are shared.

    Spans: ``event``, of one or more tokens, where the template has one; ``century`` and ``year``, the two tokens of the
    first year; ``end``, the last token, which is the century again.

    ``Batch.labels`` holds the last two digits of the first year: every number above it is a right answer.
    ``Task.options["number_tokens"]`` has the token of each number "00" to "99".

    Because many answers are right, the task brings metrics of its own: ``years_above`` and ``years_above_10``, the
    probability of the years above the first one less that of those below it (at most 10 away), and ``year_ranking``,
    Kendall's tau between the circuit's and the full model's ranking of all two-digit years.

    Args:
        model: a model with a tokenizer, or a Hugging Face tokenizer.
        train: examples to learn from.
        validation: examples for thresholds and early stopping.
        test: examples for evaluation.
        seed: fixes the held-out templates and every draw.
        templates: text with the slots ``{start}``, ``{century}`` (at the end) and, if wanted, ``{event}``.

    Raises:
        ValueError: if the tokenizer does not split years into two and two digits.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> task = greater_than(AutoTokenizer.from_pretrained(DIRECTORY), train=8, validation=4, test=4)
        >>> len(task.test), len(task.options["held_out_templates"])
        (4, 3)
    """
    rng = Random(seed)
    templates = TEMPLATES if templates is None else tuple(templates)
    check_templates(templates, required=("start", "century"), known=("start", "century", "event"))
    seen_templates, test_templates = hold_out(rng, templates, None)
    tokenizer = tokenizer_of(model)
    years = split_years(tokenizer)
    numbers = number_tokens(tokenizer, years)
    task = drawn_task(
        "greater-than",
        model,
        discovery=partial(sample_pair, templates=seen_templates, years=years),
        test=partial(sample_pair, templates=test_templates, years=years),
        rng=rng,
        sizes={"train": train, "validation": validation, "test": test},
        options={"seed": seed, "held_out_templates": test_templates, "number_tokens": numbers},
        span_names=SPAN_NAMES,
    )
    return dataclasses.replace(task, metrics=year_metrics({int(number): token for number, token in numbers.items()}))


def sample_pair(
    rng: Random, *, templates: Sequence[str] = TEMPLATES, years: dict[str, tuple[str, ...]] | None = None
) -> Pair:
    """One pair; ``years`` maps each century to the two-digit endings that may be used in it.

    Example:
        >>> sample_pair(Random(0), templates=["from {start} to {century}"], years={"17": ("01", "31", "32", "33")})
        Pair(clean='from 1732 to 17', corrupt='from 1701 to 17', answer='33', foil='31', label=32,
             spans={'century': (4, 7), 'year': (7, 9)})
    """
    years = years or dict.fromkeys(CENTURIES, TWO_DIGITS)
    century = rng.choice(sorted(years))
    endings = [ending for ending in years[century] if ending > "00"]
    # The first is the corrupted start; the second leaves a wrong answer below, and the last a right one above.
    place = rng.randrange(2, len(endings) - 1)
    template, event = rng.choice(templates), rng.choice(EVENTS)
    (clean, words), (corrupt, _) = (
        filled(template, {"start": century + start, "century": century, "event": event})
        for start in (endings[place], endings[0])
    )
    answer, foil = rng.choice(endings[place + 1 :]), rng.choice(endings[1:place])
    return Pair(clean, corrupt, answer, foil, label=int(endings[place]), spans=_spans(words))


def _spans(words: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Where the event stands, if there is one, and the two halves of the first year."""
    event = {"event": words["event"]} if "event" in words else {}
    begin, end = words["start"]
    return {**event, "century": (begin, end - 2), "year": (end - 2, end)}


def valid_answers(prompt: str) -> tuple[str, ...]:
    """The two-digit completions later than the first year of the prompt.

    Example:
        >>> valid_answers("from 1797 to 17")
        ('98', '99')
    """
    start = _start(prompt)
    return tuple(number for number in TWO_DIGITS if number > start)


def _start(prompt: str) -> str:
    """The last two digits of the first year of a prompt."""
    start = re.search(r"\d{4}", prompt)
    if start is None:
        raise ValueError(f"A greater-than prompt needs a four-digit year but {prompt!r} has none. Put one in.")
    return start.group()[2:]


def number_tokens(tokenizer: Any, years: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Token of each two-digit number as it ends a year; numbers that end none of the years are looked up by name.

    Args:
        tokenizer: a Hugging Face tokenizer.
        years: :func:`split_years` of it.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        >>> found = number_tokens(tokenizer, split_years(tokenizer))
        >>> len(found), tokenizer.decode(found["32"])
        (100, '32')
    """
    known = dict(zip(TWO_DIGITS, tokenizer.convert_tokens_to_ids(list(TWO_DIGITS)), strict=True))
    known = {number: token for number, token in known.items() if token not in (None, tokenizer.unk_token_id)}
    for century, endings in years.items():
        known |= {ending: token_ids(tokenizer, f"in {century}{ending}")[-1] for ending in endings}
    return dict(sorted(known.items()))


def split_years(tokenizer: Any) -> dict[str, tuple[str, ...]]:
    """Per century the endings of those years that are two tokens of two digits; centuries need 01 and three more.

    Raises:
        ValueError: if no century is left.
    """
    years = {century: _endings(tokenizer, century) for century in CENTURIES}
    years = {century: endings for century, endings in years.items() if "01" in endings and len(endings) > 3}
    if not years:
        pieces = tokenizer.convert_ids_to_tokens(token_ids(tokenizer, "in 1732"))
        raise ValueError(
            f"Greater-than needs a tokenizer that splits years into two and two digits but this one gives {pieces} "
            "for 'in 1732'. Use a model with another tokenizer."
        )
    return years


def _endings(tokenizer: Any, century: str) -> tuple[str, ...]:
    if not is_one_token(tokenizer, "in", f" {century}"):
        return ()
    return tuple(ending for ending in TWO_DIGITS if is_one_token(tokenizer, f"in {century}", ending))
