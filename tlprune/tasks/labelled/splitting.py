"""Which examples serve training, validation and the test, and which one stands in for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

from tlprune.tasks.labelled.data import Labelled


def divided(
    train: Labelled,
    test: Labelled | None,
    *,
    train_count: int | None,
    validation_count: int,
    test_count: int | None,
    seed: int,
) -> dict[str, Labelled]:
    """Seeded draws for the three splits; no text is in two of them.

    Of texts that occur several times in ``train`` the first is taken, and those that are in ``test`` are left out. The
    validation examples do not depend on the number of training examples, and fewer of these are some of more.

    Args:
        train: examples for training and validation; and for the test, where there is no other.
        test: examples for the test.
        train_count: examples for training; ``None`` for all that are left.
        validation_count: examples for validation.
        test_count: examples for the test, of each sub-case as many, as far as there are as many; ``None`` for all of
            ``test``, or all that are left of ``train``.
        seed: of the draws.

    Raises:
        ValueError: there are fewer examples than asked for.
    """
    taken = set() if test is None else {*test.prompts()}
    first: dict[tuple[str, ...], int] = {}
    for row, prompt in enumerate(train.prompts()):
        if prompt not in taken:
            first.setdefault(prompt, row)
    order = Random(seed).sample(list(first.values()), len(first))
    validation, rest = _cut(order, validation_count, "validation", train.name)
    chosen, rest = _cut(rest, train_count, "training", train.name)
    own, rows = (train, rest) if test is None else (test, Random(seed).sample(range(len(test)), len(test)))
    tested, _ = _cut(in_turn(rows, own.subcases), test_count, "test", train.name)
    return {"train": train.rows(chosen), "validation": train.rows(validation), "test": own.rows(sorted(tested))}


def in_turn(rows: list[int], kinds: Sequence[str] | None) -> list[int]:
    """The first row of each kind, then the second of each, and so on; the order within a kind stays.

    Example:
        >>> in_turn([4, 0, 3, 1, 2], "aabbb")
        [4, 0, 3, 1, 2]
        >>> in_turn([0, 1, 2, 3, 4], "aabbb")
        [0, 2, 1, 3, 4]
    """
    if kinds is None:
        return rows
    seen, turns = Counter[str](), dict[int, int]()
    for row in rows:
        turns[row] = seen[kinds[row]]
        seen[kinds[row]] += 1
    return sorted(rows, key=turns.__getitem__)


def _cut(rows: list[int], count: int | None, use: str, name: str) -> tuple[list[int], list[int]]:
    wanted = len(rows) if count is None else count
    if not 1 <= wanted <= len(rows):
        raise ValueError(
            f"{name} has {len(rows)} examples left for {use} but {wanted} are asked for. Ask for between 1 and "
            f"{len(rows)}, or for fewer of the other splits."
        )
    return rows[:wanted], rows[wanted:]


def twins(classes: Sequence[int] | None, count: int, *, seed: int) -> list[int]:
    """For each example the number of another, of another class wherever there is one.

    Where no class has more than half of the examples each is the twin of exactly one. A class that has more shares its
    twins.

    Args:
        classes: of each example; ``None`` where there are none.
        count: how many examples there are.
        seed: of the draw.

    Raises:
        ValueError: there are fewer than two examples.

    Example:
        >>> twins([0, 0, 1, 1], 4, seed=0)
        [2, 3, 0, 1]
    """
    if count < 2:
        raise ValueError(f"A twin is another example of the split, but the split has {count}. Ask for at least two.")
    order = Random(seed).sample(range(count), count)
    own = [0] * count if classes is None or len({*classes}) == 1 else list(classes)
    order.sort(key=lambda row: own[row])
    most = 1 if len({*own}) == 1 else max(map(own.count, {*own}))
    if 2 * most <= count or most == 1:  # a turn by the size of the largest class leads out of every class
        return _by_row({row: order[(place + most) % count] for place, row in enumerate(order)})
    others = {kind: [row for row in order if own[row] != kind] for kind in {*own}}
    return _by_row({row: others[own[row]][place % len(others[own[row]])] for place, row in enumerate(order)})


def _by_row(found: dict[int, int]) -> list[int]:
    return [found[row] for row in range(len(found))]
