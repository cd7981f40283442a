from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from tlprune.models.testbed_prompts import BEHAVIOURS, DIRECTORY, held_out_pairs, right_answers
from tlprune.tasks import from_pairs


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DIRECTORY)


@pytest.fixture(scope="module")
def model():
    return GPT2LMHeadModel.from_pretrained(DIRECTORY).eval()


def test_the_testbed_is_small():
    assert sum(file.stat().st_size for file in DIRECTORY.iterdir()) < 5_000_000


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@torch.no_grad()
def test_the_testbed_completes_prompts_it_never_saw(model, tokenizer, behaviour):
    pairs = held_out_pairs(behaviour, count=300, seed=7)
    batch = from_pairs(behaviour, tokenizer, train=pairs[:1], validation=pairs[:1], test=pairs).test
    logits = model(batch.clean.ids, attention_mask=batch.clean.attention_mask).logits
    best = logits[torch.arange(300), batch.positions[:, 0]].argmax(dim=-1)
    right = [
        token in right_answers(behaviour, pair)
        for token, pair in zip(tokenizer.convert_ids_to_tokens(best.tolist()), pairs, strict=True)
    ]
    assert sum(right) >= 297


@pytest.mark.parametrize("behaviour", ["ioi", "gendered-pronoun", "induction"])
@torch.no_grad()
def test_the_testbed_depends_on_what_the_twin_replaces(model, tokenizer, behaviour):
    pairs = held_out_pairs(behaviour, count=300, seed=8)
    batch = from_pairs(behaviour, tokenizer, train=pairs[:1], validation=pairs[:1], test=pairs).test
    logits = model(batch.corrupt.ids, attention_mask=batch.corrupt.attention_mask).logits
    best = logits[torch.arange(300), batch.positions[:, 0]].argmax(dim=-1)
    # Where nothing is repeated, a guess among the six or more words of an induction prompt is right now and then.
    assert (best == batch.answers[:, 0]).float().mean() < 0.15
