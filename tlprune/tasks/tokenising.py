"""From text to tokens: token ids without special tokens, and which tokens spell a stretch of characters."""

from __future__ import annotations

from typing import Any, Literal

from tlprune.backends import BACKENDS, backend_of
from tlprune.backends.activations import Backend

NEEDED = {
    "tokens": "This task needs a model that predicts tokens, but this {} gives a class or a number per prompt. Take a "
    "language model, or a task of labelled sentences, such as sst2.",
    "prompts": "A classification task needs a model that gives a class or a number per prompt, but this {} predicts "
    "tokens. Load a classifier, such as one that tlprune finetune wrote.",
}


def backend_if_model(model: Any) -> Backend | None:
    """The backend of a model; ``None`` for a tokenizer, which tasks take as well."""
    known = any(base.__name__ in BACKENDS for base in type(model).__mro__)
    return backend_of(model) if known else None


def tokenizer_of(model: Any, *, predicts: Literal["tokens", "prompts"] = "tokens") -> Any:
    """The tokenizer that a model carries, or the argument itself where it is one.

    Args:
        model: the model or tokenizer.
        predicts: what the task is about; a model must predict it, too.

    Raises:
        ValueError: there is none, or the model predicts something else.
    """
    backend = backend_if_model(model)
    if backend is not None and backend.predicts != predicts:
        raise ValueError(NEEDED[predicts].format(type(model).__name__))
    tokenizer = getattr(model, "tokenizer", model)
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise ValueError(
            f"A text task needs a tokenizer but {type(model).__name__} carries none. "
            "Set model.tokenizer, or give a Hugging Face tokenizer in place of the model."
        )
    return tokenizer


def prompt_place(model: Any) -> Literal["start", "end"]:
    """Where a model reads a soft prompt: encoders in front of the tokens, decoders behind them."""
    return "start" if backend_of(model).architecture.post_norm else "end"


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of the text alone, without the special tokens that some tokenizers add."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def is_one_token(tokenizer: Any, prompt: str, word: str) -> bool:
    """Whether ``word`` adds exactly one token to ``prompt`` and leaves the prompt's own tokens as they are."""
    before, after = token_ids(tokenizer, prompt), token_ids(tokenizer, prompt + word)
    return len(after) == len(before) + 1 and after[:-1] == before


def beginning(tokenizer: Any, prepend_bos: bool | None) -> list[int]:
    """The beginning-of-sequence token that goes first, or nothing; ``None`` means wherever the tokenizer has one.

    Raises:
        ValueError: if one is asked for and the tokenizer has none.
    """
    if prepend_bos and tokenizer.bos_token_id is None:
        raise ValueError(
            "prepend_bos=True needs a beginning-of-sequence token but this tokenizer has none. "
            "Set tokenizer.bos_token, or give prepend_bos=False."
        )
    return [] if prepend_bos is False or tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def padding_token(tokenizer: Any) -> int:
    """A token to fill shorter prompts with; which one does not matter, as no position attends to it."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    return 0


def token_bounds(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """First character, and the one after the last, of each token of ``token_ids(tokenizer, text)``.

    A leading space may or may not count as part of a token. Fast tokenizers say it themselves. For slow ones every
    beginning of the text is tokenised: where it gives the first tokens of the whole, a token ends; tokens between two
    such places share their bounds.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> token_bounds(AutoTokenizer.from_pretrained(DIRECTORY), "from 1732")
        [(0, 4), (5, 7), (7, 9)]
    """
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [(int(begin), int(end)) for begin, end in encoded["offset_mapping"]]
    return _bounds_by_beginnings(tokenizer, text)


def _bounds_by_beginnings(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    ids, ends = token_ids(tokenizer, text), {0: 0}
    for end in range(1, len(text) + 1):
        before = token_ids(tokenizer, text[:end])
        # Tokens end with the last character that adds none; spaces lead the next token.
        if before == ids[: len(before)] and not (len(before) in ends and text[end - 1].isspace()):
            ends[len(before)] = end
    known = sorted(ends)
    pieces = zip(known, known[1:], strict=False)
    return [(ends[first], ends[last]) for first, last in pieces for _ in range(last - first)]


def tokens_within(text: str, bounds: list[tuple[int, int]], begin: int, end: int) -> range:
    """The tokens that spell ``text[begin:end]``; a space before it may belong to the first of them.

    Args:
        text: the whole text.
        bounds: :func:`token_bounds` of it.
        begin: first character.
        end: the one after the last.

    Raises:
        ValueError: if no token is in this stretch, or one reaches beyond it.

    Example:
        >>> tokens_within("from 1732", [(0, 4), (4, 7), (7, 9)], 5, 9)
        range(1, 3)
    """
    within = [number for number, (first, last) in enumerate(bounds) if first < end and last > begin]
    if not within:
        raise ValueError(
            f"A marked stretch needs at least one token but {text[begin:end]!r} in {text!r} has none. Mark a word."
        )
    first, last = bounds[within[0]][0], max(bounds[number][1] for number in within)
    if text[first:begin].strip() or last > end:
        raise ValueError(
            f"A marked stretch must be whole tokens but {text[begin:end]!r} cuts {text[min(first, begin) : last]!r} in "
            f"{text!r}. Mark whole tokens, or put a space between."
        )
    return range(within[0], within[-1] + 1)
