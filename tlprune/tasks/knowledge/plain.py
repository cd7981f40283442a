"""Plain text in blocks of tokens, each position of which is read: language modelling that is to stay as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tlprune.task import Batch, Stream, Tokens
from tlprune.tasks.folders import data_folder
from tlprune.tasks.tokenising import beginning, tokenizer_of

BLOCK = 512
WIKITEXT = {
    "train": ("wiki.train.raw", "train.txt"),
    "validation": ("wiki.valid.raw", "valid.txt"),
    "test": ("wiki.test.raw", "test.txt"),
}


@dataclass(frozen=True)
class PlainText:
    """Text, and into how many blocks of which length it is cut.

    Attributes:
        texts: pieces of text, one after another; a line break goes between two that have none.
        block: tokens of a block, a beginning-of-sequence token included; ``None`` for 512, or as many as the model
            takes where these are fewer.
        train: blocks for training; ``None`` for all that the others leave.
        validation: blocks for validation; ``None`` for a tenth of all.
        test: blocks for the test; ``None`` for a tenth of all.
    """

    texts: Sequence[str]
    block: int | None = None
    train: int | None = None
    validation: int | None = None
    test: int | None = None


def read_text(source: str | Path = "wikitext-2", *, part: str = "test") -> list[str]:
    """Text from a file, or WikiText-2 (raw) by its name.

    Args:
        source: a text file, or ``"wikitext-2"``: the folder of this name in ``$TLPRUNE_DATA`` or ``$TLPRUNE_DATA/data``
            (``wiki.test.raw`` or ``test.txt`` and the like), and where there is none the Hugging Face hub.
        part: of WikiText-2: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        ValueError: there is no such file or part, or it holds no text.
    """
    if str(source) == "wikitext-2":
        return _wikitext(part)
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"Plain text needs a file but there is none at {path}. Give a text file, or 'wikitext-2'.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8 but is not: {error}. Convert it.") from None
    if not text.strip():
        raise ValueError(f"{path} must hold text but is empty. Give another file.")
    return [text]


def _wikitext(part: str) -> list[str]:
    if part not in WIKITEXT:
        raise ValueError(f"WikiText-2 has the parts {', '.join(WIKITEXT)} but {part!r} was asked for. Name one.")
    folder = data_folder("wikitext-2")
    files = [folder / name for name in WIKITEXT[part]] if folder else []
    found = next((path for path in files if path.is_file()), None)
    return read_text(found) if found else _from_hub(part)


def _from_hub(part: str) -> list[str]:
    import datasets

    try:
        rows: Any = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=part)
    except Exception as error:  # the hub's errors are of many kinds, and each means that it is not to be had
        raise ValueError(
            f"WikiText-2 cannot be read from the hub: {error}. Put {WIKITEXT[part][0]} into $TLPRUNE_DATA/wikitext-2, "
            "or give a text file."
        ) from error
    return list(rows["text"])


def text_stream(model: Any, text: PlainText, *, prepend_bos: bool | None = None) -> Stream:
    """Blocks of text, consecutive ones in training, then validation, then test, so that none overlap.

    Texts are put together and cut; what is left at the end is dropped. Every position but a block's last is read, and
    its answer is the next token: of ``block`` tokens ``block - 1`` are answers.

    Args:
        model: a model with a tokenizer, or a tokenizer.
        text: what to cut.
        prepend_bos: as in :func:`~tlprune.tasks.jsonl`; each block has a token for it.

    Raises:
        ValueError: the text is too short for the blocks that are asked for, or a block has no answer.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        >>> stream = text_stream(tokenizer, PlainText(["time year people way day man thing"], block=3))
        >>> [tokenizer.decode(part.clean.ids[0]) for part in (stream.train, stream.validation, stream.test)]
        ['<bos> time year', '<bos> people way', '<bos> day man']
        >>> stream.train.positions.tolist(), tokenizer.decode(stream.train.answers[0])
        ([[0, 1]], 'time year')
    """
    tokenizer = tokenizer_of(model)
    first = beginning(tokenizer, prepend_bos)
    block = text.block or min(BLOCK, int(getattr(getattr(model, "cfg", None), "n_ctx", BLOCK)))
    if block < 2 or block <= len(first):
        raise ValueError(
            f"A block of text needs at least two tokens but {block} are asked for. Give PlainText(block=)."
        )
    room = block - len(first)
    ids = torch.tensor(_token_ids(tokenizer, text.texts), dtype=torch.long)
    blocks = ids[: len(ids) // room * room].view(-1, room)
    whole = torch.cat([torch.tensor(first, dtype=torch.long).expand(len(blocks), -1), blocks], dim=1)
    return Stream(*(_batch(rows) for rows in _cut(whole, text)))


def _token_ids(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    whole = "".join(_with_breaks(texts))
    # Long texts are no mistake here; without this the tokenizer would log that they do not fit the model.
    return list(tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"])


def _with_breaks(texts: Sequence[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        yield text
        if number < len(texts) - 1 and not text.endswith("\n"):
            yield "\n"


def _cut(blocks: torch.Tensor, text: PlainText) -> list[torch.Tensor]:
    tenth = max(1, len(blocks) // 10)
    held = [tenth if count is None else count for count in (text.validation, text.test)]
    counts = [len(blocks) - sum(held) if text.train is None else text.train, *held]
    if min(counts) < 1 or sum(counts) > len(blocks):
        raise ValueError(
            f"Plain text needs at least one block for training, validation and test each but gives {len(blocks)} of "
            f"{blocks.shape[1]} tokens for {', '.join(map(str, counts))}. Give more text, or shorter or fewer blocks."
        )
    return list(blocks[: sum(counts)].split(counts))


def _batch(ids: torch.Tensor) -> Batch:
    examples, width = ids.shape
    tokens = Tokens(ids)
    return Batch(
        index=torch.arange(examples),
        clean=tokens,
        corrupt=tokens,
        positions=torch.arange(width - 1).repeat(examples, 1),
        answers=ids[:, 1:],
        foils=torch.full((examples, width - 1), -100),
    )
