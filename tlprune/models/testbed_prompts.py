"""What the testbed model was trained on: four behaviours, and the prompts that it has never seen.

The testbed is a small GPT-2-format model in the package, trained by ``scripts/train_testbed.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from random import Random

from tlprune.tasks.gendered_pronoun import sample_pair as gendered_pronoun_pair
from tlprune.tasks.greater_than import sample_pair as greater_than_pair
from tlprune.tasks.greater_than import valid_answers
from tlprune.tasks.induction import sample_pair as induction_pair
from tlprune.tasks.ioi import sample_pair as ioi_pair
from tlprune.tasks.pairs import Pair
from tlprune.tasks.sampling import distinct_pairs

DIRECTORY = Path(__file__).parent / "testbed"

BEHAVIOURS: dict[str, Callable[[Random], Pair]] = {
    "ioi": ioi_pair,
    "gendered-pronoun": gendered_pronoun_pair,
    "greater-than": greater_than_pair,
    "induction": induction_pair,
}


def is_held_out(prompt: str) -> bool:
    """Whether the prompt is one of the tenth, chosen by a hash of its text, that training leaves out.

    Example:
        >>> sum(is_held_out(f"prompt {number}") for number in range(1000))
        97
    """
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % 10 == 0


def training_pair(behaviour: str, rng: Random) -> Pair:
    """A pair whose clean prompt is not held out."""
    return _first(behaviour, rng, held_out=False)


def held_out_pairs(behaviour: str, *, count: int, seed: int) -> list[Pair]:
    """Distinct pairs whose clean prompts the testbed was not trained on.

    Example:
        >>> pairs = held_out_pairs("ioi", count=3, seed=0)
        >>> len(pairs), all(is_held_out(pair.clean) for pair in pairs)
        (3, True)
    """
    return distinct_pairs(lambda rng: _first(behaviour, rng, held_out=True), Random(seed), count, set())


def right_answers(behaviour: str, pair: Pair) -> tuple[str, ...]:
    """Every word that completes the clean prompt rightly: one, or all later years for greater-than.

    Example:
        >>> right_answers("greater-than", Pair("from 1797 to 17", "from 1701 to 17", "98", "31"))
        ('98', '99')
    """
    return valid_answers(pair.clean) if behaviour == "greater-than" else (pair.answer.strip(),)


def _first(behaviour: str, rng: Random, *, held_out: bool) -> Pair:
    while True:
        pair = BEHAVIOURS[behaviour](rng)
        if is_held_out(pair.clean) == held_out:
            return pair
