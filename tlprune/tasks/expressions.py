"""Boolean expressions over literals: drawn, worth something, and turned over by exchanging one word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from random import Random

Words = tuple[str, ...]
WORDS = ("True", "False", "and", "or", "not", "(", ")")
# What each literal and operator is exchanged with.
OPPOSITES = {"True": "False", "False": "True", "and": "or", "or": "and"}
_BINDS = {"or": 0, "and": 1}  # ``not`` binds tighter than both
_NEGATED, _GROUPED = 0.3, 0.5


class _UnreadableError(Exception):
    """A word stands where it cannot."""


def value(words: Sequence[str]) -> bool:
    """What an expression is worth; ``not`` binds tighter than ``and``, and that tighter than ``or``, as in Python.

    Args:
        words: literals ``True`` and ``False``, ``and``, ``or``, ``not`` and parentheses.

    Raises:
        ValueError: they are no expression.

    Example:
        >>> value("True or False and False".split()), value("( True or False ) and False".split())
        (True, False)
    """
    rest = list(words)
    with suppress(_UnreadableError, IndexError):  # an IndexError where it ends too early
        found = _of_level(rest, 0)
        if not rest:
            return found
    raise ValueError(
        f"A Boolean expression needs literals, joined by 'and' and 'or', but {' '.join(words)!r} is none. Write True "
        "and False with spaces around all words and parentheses."
    )


def _of_level(rest: list[str], level: int) -> bool:
    """The value of the longest beginning whose operators bind as tightly as ``level``; it is taken off."""
    found = _of_term(rest)
    while rest and _BINDS.get(rest[0], -1) >= level:
        operator = rest.pop(0)
        other = _of_level(rest, _BINDS[operator] + 1)
        found = (found and other) if operator == "and" else (found or other)
    return found


def _of_term(rest: list[str]) -> bool:
    word = rest.pop(0)
    if word == "not":
        return not _of_term(rest)
    if word == "(":
        found = _of_level(rest, 0)
        _expect(rest.pop(0), (")",))
        return found
    _expect(word, ("True", "False"))
    return word == "True"


def _expect(word: str, words: Words) -> None:
    if word not in words:
        raise _UnreadableError


def depth(words: Sequence[str]) -> int:
    """How deep parentheses are nested.

    Example:
        >>> depth("not ( True and ( False or True ) )".split())
        2
    """
    levels = [words[:end].count("(") - words[:end].count(")") for end in range(len(words) + 1)]
    return max(levels)


def literal_count(words: Sequence[str]) -> int:
    """How many literals an expression has."""
    return sum(word in ("True", "False") for word in words)


def draw(rng: Random, literals: int) -> Words:
    """An expression with so many literals.

    Each part is negated with probability 0.3, and stands in parentheses with probability 0.5 where it has several
    literals; a negated part that has several always does.

    Example:
        >>> " ".join(draw(Random(3), 3))
        'True or ( True and False )'
    """
    return _joined(rng, literals)


def _joined(rng: Random, literals: int) -> Words:
    left = rng.randrange(1, literals)
    return (*_part(rng, left), rng.choice(("and", "or")), *_part(rng, literals - left))


def _part(rng: Random, literals: int) -> Words:
    negated = rng.random() < _NEGATED
    if literals == 1:
        inner: Words = (rng.choice(("True", "False")),)
    else:
        inner = _joined(rng, literals)
        inner = ("(", *inner, ")") if negated or rng.random() < _GROUPED else inner
    return ("not", *inner) if negated else inner


def exchanges(words: Words) -> Iterator[tuple[int, Words]]:
    """Each word that can be exchanged with its opposite so that the value turns over, and the expression that results.

    Example:
        >>> [(place, " ".join(other)) for place, other in exchanges(("True", "and", "False"))]
        [(1, 'True or False'), (2, 'True and True')]
    """
    for place, word in enumerate(words):
        if word in OPPOSITES:
            other = (*words[:place], OPPOSITES[word], *words[place + 1 :])
            if value(other) != value(words):
                yield place, other
