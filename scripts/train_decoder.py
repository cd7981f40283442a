"""Train a small GPT-2 on local text from a seed, with a tokenizer made from the same text.

Run from the repository root:

    python scripts/train_decoder.py --out runs/decoder --text data/sst2/train.tsv:sentence \\
        --held-out data/sst2/dev.tsv:sentence --words " good" " bad"

A line is a text of its own, between two marks of the end of text. So little text teaches which words follow, not what
a review says. ``--verdicts data/sst2/train.tsv:sentence:label --endings " it was bad" " it was good"`` adds reviews
that end with what they say. ``tlprune.load`` reads the result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import tyro
from language_modelling import Course, divided, encoded, measure, save, train  # pyright: ignore[reportMissingImports]
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DataCollatorForLanguageModeling, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tlprune.tasks import labelled_data

END, FILLER = "<|endoftext|>", "<|padding|>"


@dataclass(frozen=True, kw_only=True)
class DecoderCourse(Course):
    """Train a small GPT-2 and its tokenizer.

    Attributes:
        words: words that must be single tokens, with the space before them, such as " good" and " bad".
        verdicts: a table with a column of texts and one of classes, as train.tsv:sentence:label; its texts are
            trained on with the ending of their class.
        endings: for each class, in the order of the numbers or of the alphabet, such as " it was bad" " it was good".
        vocabulary: tokens, of byte pairs; fewer where the text has no more.
        layers: blocks.
        heads: per block.
        width: numbers per position.
        context: positions.
        dropout: share of numbers that are left out in training.
    """

    words: tuple[str, ...] = ()
    verdicts: str | None = None
    endings: tuple[str, ...] = ()
    vocabulary: int = 8192
    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocabulary < 258:
            raise ValueError(f"A vocabulary needs 256 bytes and 2 marks but has {self.vocabulary}. Ask for more.")
        if self.width % self.heads:
            raise ValueError(f"Heads share the width evenly but {self.heads} cannot share {self.width}. Change one.")
        if self.context < self.max_length:
            raise ValueError(f"A line may have {self.context} tokens but max_length is {self.max_length}. Lower it.")


def main(words: list[str] | None = None) -> None:
    course = tyro.cli(DecoderCourse, args=words, description=__doc__)
    torch.set_num_threads(course.threads)
    torch.manual_seed(course.seed)
    trained, held_out = divided(course)
    trained += judged(course, {*held_out})
    tokenizer = tokenizer_of(trained, course.vocabulary)
    check_words(tokenizer, course.words)
    model = built(course, tokenizer)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows, measured = (between(tokenizer, lines, course.max_length) for lines in (trained, held_out))
    train(model, collator, rows, course, ahead=1)
    figures = measure(model, collator, measured, ahead=1, seed=course.seed)
    save(model, tokenizer, course, {"lines": len(trained), "parameters": model.num_parameters(), "after": figures})
    _name_tokenizer(course)


def judged(course: DecoderCourse, held_out: set[str]) -> list[str]:
    """Texts that end with what they say, but for those that are measured on.

    Raises:
        ValueError: there are not as many endings as classes, or columns are not named.
    """
    if course.verdicts is None:
        return []
    path, *columns = course.verdicts.rsplit(":", 2)
    if len(columns) != 2:
        raise ValueError(f"Verdicts need a table and two columns but are {course.verdicts}. Give table:text:class.")
    found = labelled_data("verdicts", path, text=columns[0], label=columns[1])["train"]
    if len(course.endings) != len(found.classes):
        raise ValueError(
            f"Each class ({', '.join(found.classes) or 'a regression'}) needs an ending but there are "
            f"{len(course.endings)}. Give --endings, one for each in this order."
        )
    rows = zip(found.texts, found.labels, strict=True)
    return [f"{text}{course.endings[int(label)]}" for text, label in rows if text not in held_out]


def tokenizer_of(lines: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte pairs of the lines, as GPT-2's: a word and the space before it are one piece of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END, FILLER], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END, pad_token=FILLER
    )


def check_words(tokenizer: PreTrainedTokenizerFast, words: Sequence[str]) -> None:
    """Raise a ValueError unless each word is a single token."""
    for word in words:
        pieces = tokenizer.tokenize(word)
        if len(pieces) != 1:
            raise ValueError(
                f"{word!r} must be a single token but is {len(pieces)} ({', '.join(pieces)}). Give it the space before "
                "it, more --vocabulary, or text in which it is frequent."
            )


def built(course: DecoderCourse, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A new model, its weights drawn by torch's seed."""
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=course.context, n_embd=course.width, n_layer=course.layers,
        n_head=course.heads, resid_pdrop=course.dropout, embd_pdrop=course.dropout, attn_pdrop=course.dropout,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,  # pyright: ignore
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore
    )  # fmt: skip
    return GPT2LMHeadModel(config).to(course.device)  # pyright: ignore


def between(tokenizer: PreTrainedTokenizerFast, lines: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of the lines, each with the end of text in front of it, as TransformerLens puts it, and behind it."""
    end = int(tokenizer.eos_token_id)  # pyright: ignore
    return [[end, *row, end] for row in encoded(tokenizer, lines, max_length=max_length - 2)]


def _name_tokenizer(course: DecoderCourse) -> None:
    """Give the tokenizer's class the name that every supported version of transformers knows."""
    path = course.out / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"train_decoder: error: {error}")
