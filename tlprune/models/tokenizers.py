"""Tokenizers of local directories, and how a model gets one without the hub."""

from __future__ import annotations

import tempfile
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


def set_tokenizer(model: Any, tokenizer: Any) -> None:
    """Give a model a copy of a tokenizer, padding on the right.

    A HookedTransformer reads a tokenizer again from where it came from, to have the first token prepended; from a copy
    on the disk it does so without the hub.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        copy = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        copy.padding_side = "right"
        if hasattr(model, "set_tokenizer"):
            model.set_tokenizer(copy, default_padding_side="right")
        else:
            model.tokenizer = copy
