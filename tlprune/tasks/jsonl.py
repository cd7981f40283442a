"""Your own prompts from a file: one JSON object per line, with tags around what is to be predicted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlprune.task import Task, Tokenisation
from tlprune.tasks.lines import SPLITS, TAG, Line, split_lines
from tlprune.tasks.rows import NONE, PaddingSide, Row, task_of_rows
from tlprune.tasks.tags import PREDICT, span_names, stretches_of
from tlprune.tasks.tokenising import beginning, padding_token, token_bounds, token_ids, tokenizer_of, tokens_within


def jsonl(
    model: Any,
    path: str | Path,
    *,
    test: str | Path | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    prepend_bos: bool | None = None,
    padding_side: PaddingSide = "right",
) -> Task:
    """A task from a file of JSON lines such as
    ``{"clean": "1 + 2 = <predict>3</predict>", "corrupted": "1 + 4 = <predict>5</predict>", "split": "train"}``.

    The text between tags is predicted, each of its tokens from the position before it, given all true tokens before.
    Tags may stand anywhere, several times in a row; rows may differ in how much is predicted. The foil of a token is
    the one at the same place in the corrupted text, or in ``"foil"``: a text, or a list of one for each pair of tags.
    A corrupted text may also come without tags, whole or up to the answer; there is no foil then but ``"foil"``.
    Text is tokenised without its tags, so that they change no token, and a tag inside a token is an error; a space
    before the first tagged character belongs to its token. What follows the last answer is left out, because attention
    never looks back at it. An object may go on over several lines.

    ``<span=NAME>...</span>`` around words of the clean text names a span, of any length and not in every row; words
    that belong together may have several such tags. In the corrupted text they mean nothing. What lies in no span can
    be given one with :func:`~tlprune.tasks.covered`.

    Splits: ``"split"`` stands in all rows or in none. Without it all rows serve training and validation alike. Test
    examples are those marked ``"test"``; else the rows of a second file, ``test=``; else ``held_out`` of the training
    prompts, drawn by ``seed`` and taken from training and validation. No method sees them, so a test prompt that is
    also one of training or validation is an error.

    Args:
        model: a model with a tokenizer, or a Hugging Face tokenizer.
        path: the file.
        test: a second file for the test, without ``"split"`` in its rows, or with ``"test"`` in all.
        held_out: share of the training prompts that becomes the test where there is none, in (0, 1).
        seed: of that draw.
        prepend_bos: whether exactly one beginning-of-sequence token goes first; ``None`` means wherever the tokenizer
            has one.
        padding_side: where shorter prompts are padded.

    Raises:
        ValueError: naming file and line, if a line is not such an object, its texts differ in their numbers of tokens
            or answers, or a tag cuts a token; if only some rows have foils; if a split is empty; if test prompts are
            not of their own.

    Source: the custom data sets of Edge Pruning (Bhaskar et al., NeurIPS 2024).

    Example:
        >>> import tempfile
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> row = '{"clean": "So %s is <predict>kind</predict>", "corrupted": "So %s is <predict>brave</predict>"}'
        >>> names = "John Mary Paul Anna James".split()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "mine.jsonl")
        ...     _ = file.write_text("\\n".join(row % (name, "Peter") for name in names))
        ...     task = jsonl(AutoTokenizer.from_pretrained(DIRECTORY), file)
        >>> task.name, len(task.discovery.train()), len(task.test), task.test.positions.tolist()
        ('mine', 4, 1, [[3]])
    """
    tokenizer = tokenizer_of(model)
    first = beginning(tokenizer, prepend_bos)
    lines, options = split_lines(Path(path), None if test is None else Path(test), held_out=held_out, seed=seed)
    names = span_names(line.clean for split in SPLITS for line in lines[split])
    rows = {split: [row_of_line(tokenizer, line, first, names) for line in lines[split]] for split in SPLITS}
    _refuse_some_foils(lines, rows)
    tokenisation = Tokenisation(bool(first), padding_side, "tagged")
    padding = padding_token(tokenizer)
    return task_of_rows(Path(path).stem, rows, tokenisation, padding=padding, options=options, span_names=names)


@dataclass(frozen=True)
class _Tagged:
    text: str
    ids: list[int]
    answers: list[range]
    spans: list[tuple[str, range]]


def row_of_line(tokenizer: Any, line: Line, first: list[int], names: tuple[str, ...] = ()) -> Row:
    """The example of one line, behind the tokens that go first; ``names`` are those of all spans.

    Raises:
        ValueError: naming the line, as of :func:`jsonl`.
    """
    with _at(line):
        clean = _tagged(tokenizer, line.clean)
        corrupt = _twin(tokenizer, line.corrupted, clean)
        positions = [token for tokens in clean.answers for token in tokens]
        if not first and positions[0] == 0:
            raise ValueError(
                "An answer is predicted from the token before it but this one comes first. Put text before it, or give "
                "prepend_bos=True."
            )
        answers, foils = [clean.ids[token] for token in positions], _foils(tokenizer, line, clean, corrupt)
        if answers == foils:
            raise ValueError(
                f"A foil must differ from the answer but both are {tokenizer.decode(answers)!r}. Give the corrupted "
                "text another answer, or add 'foil'."
            )
        read = [len(first) + token - 1 for token in positions]
        spans = [-1] * len(first) + _span_numbers(clean, names)[: positions[-1]] if names else None
        ends = slice(positions[-1])
        return Row(first + clean.ids[ends], first + corrupt.ids[ends], read, answers, foils, spans=spans)


def _span_numbers(clean: _Tagged, names: tuple[str, ...]) -> list[int]:
    """For each token the place of its span's name, or -1."""
    numbers = [-1] * len(clean.ids)
    for name, tokens in clean.spans:
        for token in tokens:
            numbers[token] = names.index(name)
    return numbers


@contextmanager
def _at(line: Line) -> Iterator[None]:
    """Errors name the line."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{line.place}: {error}") from None


def _tagged(tokenizer: Any, text: str) -> _Tagged:
    plain, stretches = stretches_of(text)
    bounds = token_bounds(tokenizer, plain)
    found = [(name, tokens_within(plain, bounds, begin, end)) for name, begin, end in stretches]
    answers = [tokens for name, tokens in found if name is None]
    spans = [(name, tokens) for name, tokens in found if name is not None]
    return _Tagged(plain, token_ids(tokenizer, plain), answers, spans)


def _twin(tokenizer: Any, text: str, clean: _Tagged) -> _Tagged:
    """The corrupted text, with answers at the same tokens or without tags."""
    if any(tag in text for tag in PREDICT):
        corrupt = _tagged(tokenizer, text)
        _check_twins(clean, corrupt)
        return corrupt
    text, before = TAG.sub("", text), clean.answers[-1][-1]
    corrupt = _Tagged(text, token_ids(tokenizer, text.rstrip()), [], [])
    if len(corrupt.ids) not in (before, len(clean.ids)):
        raise ValueError(
            f"A corrupted text without tags needs as many tokens as the clean one, {len(clean.ids)}, or as are before "
            f"its last predicted token, {before}, but {text!r} has {len(corrupt.ids)}. Replace words by others with as "
            "many tokens, or tag its answer."
        )
    return corrupt


def _check_twins(clean: _Tagged, corrupt: _Tagged) -> None:
    if len(clean.ids) != len(corrupt.ids):
        raise ValueError(
            f"Clean and corrupted text need equally many tokens but {clean.text!r} has {len(clean.ids)} and "
            f"{corrupt.text!r} has {len(corrupt.ids)}. Replace words by others with as many tokens."
        )
    if clean.answers != corrupt.answers:
        places = [[token for tokens in text.answers for token in tokens] for text in (clean, corrupt)]
        raise ValueError(
            f"Clean and corrupted text need answers at the same tokens but have them at {places[0]} and {places[1]}. "
            "Tag the same places in both, with words of as many tokens."
        )


def _foils(tokenizer: Any, line: Line, clean: _Tagged, corrupt: _Tagged) -> list[int]:
    """What each answer is compared with: the twin's answers, those of the line, or nothing."""
    if line.foils:
        return _stated_foils(tokenizer, line, clean)
    if not corrupt.answers:
        return [NONE for tokens in clean.answers for _ in tokens]
    return [corrupt.ids[token] for tokens in corrupt.answers for token in tokens]


def _stated_foils(tokenizer: Any, line: Line, clean: _Tagged) -> list[int]:
    """The foils' tokens where the answers stand, each in the clean text with only that answer exchanged."""
    stretches = [(begin, end) for name, begin, end in stretches_of(line.clean)[1] if name is None]
    if len(line.foils) != len(stretches):
        raise ValueError(f"Each answer needs a foil but {len(stretches)} have {len(line.foils)}. Give as many.")
    found: list[int] = []
    for foil, (begin, end), tokens in zip(line.foils, stretches, clean.answers, strict=True):
        text = clean.text[:begin] + foil + clean.text[end:]
        place = tokens_within(text, token_bounds(tokenizer, text), begin, begin + len(foil))
        if place != tokens:
            raise ValueError(
                f"A foil needs as many tokens as its answer, {len(tokens)}, but {foil!r} has {len(place)}. "
                "Give another foil."
            )
        found += token_ids(tokenizer, text)[place.start : place.stop]
    return found


def _refuse_some_foils(lines: dict[str, list[Line]], rows: dict[str, list[Row]]) -> None:
    first = NONE in rows["train"][0].foils
    for split in SPLITS:
        for line, row in zip(lines[split], rows[split], strict=True):
            if (NONE in row.foils) != first:
                has, other = ("no", "some") if NONE in row.foils else ("a", "none")
                raise ValueError(
                    f"{line.place}: all rows need foils or none but this has {has} foil and {lines['train'][0].place} "
                    f"has {other}. Tag all corrupted texts or none, or add 'foil'."
                )
