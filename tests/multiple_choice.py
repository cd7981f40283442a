"""A tiny random GPT-2 with a tokenizer, and questions whose answer is to be learned."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import torch

import tlprune as tp
from tlprune.tasks.questions import Questions

RIGHT, WRONG = ["red", "green"], ["blue", "white", "black"]
THINGS = ["ball", "box", "cup", "hat", "key", "leaf", "moon", "nail"]
WORDS = ["<pad>", "<unk>", "which", "is", "named", "?", "then", "and", *RIGHT, *WRONG, *THINGS]


@cache
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


def decoder(*, seed: int = 0) -> Any:
    """A TransformerLens model of a new GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=24, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config).eval()
    return tp.from_huggingface(model, tokenizer=tokenizer())


def questions(count: int, *, seed: int = 0) -> Questions:
    """``which is named ? ball and hat``: red or green is right, whatever is asked, among two or three others."""
    rng, found = Random(seed), {}
    while len(found) < count:
        right, others = rng.choice(RIGHT), rng.sample(WRONG, rng.randint(2, 3))
        choices = rng.sample([right, *others], len(others) + 1)
        words = rng.choices(THINGS, k=rng.randint(1, 4))
        found["which is named ? " + " and ".join(words)] = (tuple(choices), choices.index(right))
    choices, labels = zip(*found.values(), strict=True)
    return Questions("colours", tuple(found), choices, labels)
