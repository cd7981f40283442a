"""Tokenizers of local directories, and how a model gets one without the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tlprune.models.sentencepiece import sentencepiece_tokenizer

WHOLE = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def tokenizer_in(directory: Path) -> Any | None:
    """The tokenizer that a directory holds, a lone sentencepiece file included; ``None`` if there is none."""
    from transformers import AutoTokenizer

    if any((directory / name).exists() for name in WHOLE):
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    files = sorted(directory.glob("*.model"))
    return sentencepiece_tokenizer(files[0]) if len(files) == 1 else None


@contextmanager
def copied(tokenizer: Any) -> Iterator[Any]:
    """A copy of a tokenizer that lies on the disk until the block ends.

    TransformerLens reads a tokenizer again from where it came from, to have the first token prepended; from there it
    does so without the hub.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        yield AutoTokenizer.from_pretrained(directory, local_files_only=True)


def set_tokenizer(model: Any, tokenizer: Any) -> None:
    """Give a HookedTransformer a copy of a tokenizer, padding on the right."""
    with copied(tokenizer) as copy:
        model.set_tokenizer(copy, default_padding_side="right")
