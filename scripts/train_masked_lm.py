"""Train a head for masked words on an encoder that has none, such as a sentence encoder, and its trunk with it.

Run from the repository root:

    python scripts/train_masked_lm.py --model path/to/all-MiniLM-L6-v2 --out runs/minilm-mlm \\
        --text data/sst2/train.tsv:sentence data/wikitext-2/wiki.test.raw --held-out data/sst2/dev.tsv:sentence

The head is BERT's: a layer, a norm, and the word embeddings again with a bias, which starts at the logarithm of how
frequent each word is, so that nothing but what the context adds is to be learned. ``tlprune.load`` reads the result.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from language_modelling import Course, divided, encoded, measure, save, train  # pyright: ignore[reportMissingImports]
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
)
from transformers.utils import logging

KINDS = ("bert", "roberta")


@dataclass(frozen=True, kw_only=True)
class MaskedCourse(Course):
    """Train a head for masked words on an encoder.

    Attributes:
        model: directory of a BERT or RoBERTa, with its tokenizer; a head for masked words that it has is trained on.
        trained: all, or head: the encoder stays as it is, and with it the word embeddings.
        head_rate: highest learning rate of the head.
        masked: share of the words to be named; of these 80 % are masked, 10 % other words, 10 % left.
    """

    model: Path
    trained: Literal["all", "head"] = "all"
    head_rate: float = 2e-3
    masked: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.masked < 1:
            raise ValueError(f"masked must be a share of the words but is {self.masked}. Give one such as 0.15.")


def main(words: list[str] | None = None) -> None:
    course = tyro.cli(MaskedCourse, args=words, description=__doc__)
    torch.set_num_threads(course.threads)
    torch.manual_seed(course.seed)
    trained, held_out = divided(course)
    model, tokenizer, new = opened(course)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=course.masked)
    rows, measured = (encoded(tokenizer, lines, max_length=course.max_length) for lines in (trained, held_out))
    if new:
        start_at_frequencies(model, rows, tokenizer.all_special_ids)
    before = measure(model, collator, measured, ahead=0, seed=course.seed)
    train(model, collator, rows, course, ahead=0, head_rate=course.head_rate)
    after = measure(model, collator, measured, ahead=0, seed=course.seed)
    save(model, tokenizer, course, {"lines": len(trained), "before": before, "after": after})


def opened(course: MaskedCourse) -> tuple[Any, Any, bool]:
    """The encoder with a head, new where it has none, its tokenizer, and whether the head is new.

    Raises:
        ValueError: there is no such directory, it holds another kind of model, or the text does not fit into it.
    """
    if not (course.model / "config.json").is_file():
        raise ValueError(f"An encoder needs a directory with config.json but {course.model} is none. Give --model.")
    config = AutoConfig.from_pretrained(course.model)
    if config.model_type not in KINDS:
        raise ValueError(
            f"Masked words need an encoder ({' or '.join(KINDS)}) but {course.model} is of kind {config.model_type}. "
            "Give --model another directory; scripts/train_decoder.py trains decoders."
        )
    tokenizer = AutoTokenizer.from_pretrained(course.model)
    if tokenizer.mask_token is None:
        raise ValueError(f"The tokenizer in {course.model} has no mask token but masked words need one. Add it.")
    logging.set_verbosity_error()  # that the head is new is the purpose, no fault
    logging.disable_progress_bar()
    model, loaded = AutoModelForMaskedLM.from_pretrained(course.model, output_loading_info=True)
    check_room(model, course)
    model.base_model.requires_grad_(course.trained == "all")
    return model.to(course.device), tokenizer, bool(loaded["missing_keys"])


@torch.no_grad()
def start_at_frequencies(model: Any, rows: list[list[int]], special: list[int]) -> None:
    """Give a new head the bias with which it names each word as often as the text does, one more than it is there."""
    bias = model.get_output_embeddings().bias
    counts = torch.bincount(torch.tensor([token for row in rows for token in row]), minlength=len(bias)).float()
    counts[special] = 0
    bias.copy_((counts + 1).div((counts + 1).sum()).log())


def check_room(model: Any, course: MaskedCourse) -> None:
    """Raise a ValueError unless a line fits into the model."""
    room = model.config.max_position_embeddings - 2 * (model.config.model_type == "roberta")
    if course.max_length > room:
        raise ValueError(f"A line may have {room} tokens but max_length is {course.max_length}. Give at most {room}.")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"train_masked_lm: error: {error}")
