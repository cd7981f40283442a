"""Tokenizers of local directories, and how a model gets one without the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

WHOLE = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def tokenizer_in(directory: Path) -> Any | None:
    """The tokenizer that a directory holds, or ``None``."""
    if any((directory / name).exists() for name in WHOLE):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return None


def set_tokenizer(model: Any, tokenizer: Any) -> None:
    """Give a HookedTransformer a copy of a tokenizer, padding on the right.

    TransformerLens reads a tokenizer again from where it came from, to have the first token prepended; from a copy on
    the disk it does so without the hub.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        copy = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model.set_tokenizer(copy, default_padding_side="right")
