"""Tags in a text: around what is to be predicted, and around the words of a named span."""

from __future__ import annotations

from collections.abc import Iterable

from tlprune.spans import check_spans
from tlprune.tasks.lines import TAG

PREDICT = ("<predict>", "</predict>")
Stretch = tuple[
    str | None, int, int
]  # of a span its name, of what is predicted None; first character, one after the last


def stretches_of(text: str) -> tuple[str, list[Stretch]]:
    """The text without tags, and the characters that each pair of tags encloses, in the order in which they open.

    Raises:
        ValueError: nothing is to be predicted, a tag does not open and close in turn, or spans overlap.

    Example:
        >>> stretches_of("<span=name>Ann</span> is <predict>kind</predict>")
        ('Ann is kind', [('name', 0, 3), (None, 7, 11)])
    """
    pieces, tags = TAG.split(text), TAG.findall(text)
    places = [sum(map(len, pieces[: number + 1])) for number in range(len(tags))]
    predicted = [(tag, place) for tag, place in zip(tags, places, strict=True) if tag in PREDICT]
    named = [(tag, place) for tag, place in zip(tags, places, strict=True) if tag not in PREDICT]
    if not predicted:
        raise ValueError(f"A text needs something to predict but {text!r} has no tag. Write <predict>...</predict>.")
    return "".join(pieces), sorted([*_pairs(predicted), *_pairs(named)], key=lambda found: found[1])


def span_names(texts: Iterable[str]) -> tuple[str, ...]:
    """Names of the spans in some texts, in the order in which they first come.

    Raises:
        ValueError: a word cannot be a name.
    """
    found = tuple(dict.fromkeys(tag[len("<span=") : -1] for text in texts for tag in TAG.findall(text) if "=" in tag))
    check_spans(found)
    return found


def _pairs(tags: list[tuple[str, int]]) -> list[Stretch]:
    """Tags that open and close in turn, as stretches."""
    opened = [tag.startswith("</") for tag, _ in tags]
    if opened != [False, True] * (len(tags) // 2):
        raise ValueError(
            f"Tags must open and close in turn but there are {' '.join(tag for tag, _ in tags)}. Balance them."
        )
    ends = zip(tags[::2], tags[1::2], strict=True)
    return [(tag[6:-1] if "=" in tag else None, begin, end) for (tag, begin), (_, end) in ends]
