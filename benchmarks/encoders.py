"""An encoder of BERT-base shape with random weights, and what a pruning step of its heads and MLPs consists of."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers

import tlprune as tp
from benchmarks.training import Work, training_step
from tlprune.backends import backend_of
from tlprune.masking.cache import reference_predictions
from tlprune.task import Batch, Tokens

BATCH, TOKENS, CLASSES = 8, 32, 3
SETTING = f"BERT-base shape, random weights, {CLASSES} classes, {BATCH} pairs of {TOKENS} tokens"


@cache
def classifier(**changes: Any) -> Any:
    """A classifier of transformers; ``changes`` of its configuration make it another one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BertConfig(**{"num_labels": CLASSES, **changes})
        return transformers.BertForSequenceClassification(config).eval().requires_grad_(False)


@cache
def hooked() -> Any:
    """The classifier as TransformerLens' own encoder."""
    return tp.from_huggingface(classifier(), device="cpu").requires_grad_(False)


@cache
def bridged() -> Any:
    """The classifier behind a TransformerBridge."""
    return tp.bridge(classifier(), device="cpu")


def pairs(examples: int, tokens: int, *, vocabulary: int = 30522, seed: int = 0) -> Tokens:
    """Random pairs of sentences of equal length."""
    ids = torch.randint(1, vocabulary, (examples, tokens), generator=torch.Generator().manual_seed(seed))
    return Tokens(ids, None, (torch.arange(tokens) >= tokens // 2).long().expand_as(ids))


def examples() -> Batch:
    one, first = pairs(BATCH, TOKENS), torch.zeros(BATCH, 1, dtype=torch.long)
    return Batch(torch.arange(BATCH), one, one, first, first, first)


def plain_step(model: Any) -> Work:
    """Forward, KL to a stored reference, and backward to the output of the embedding, with frozen weights."""
    batch, backend = examples(), backend_of(model)
    stored = reference_predictions(backend, batch)

    def step() -> None:
        from_embedding = {("input", 0): lambda stream: stream.detach().requires_grad_()}
        log_probabilities = backend.run(batch.clean, from_embedding, batch.positions).log_softmax(-1)
        (stored.exp() * (stored - log_probabilities)).sum(-1).mean().backward()

    return step


def node_step(model: Any) -> Work:
    """A training step of masks on all heads and MLPs, others at means that were measured beforehand."""
    means = tp.Mean(pairs(BATCH, TOKENS, seed=1)).measure(model)
    return training_step(model, tp.heads(model) + tp.mlps(model), examples(), means)


def reference(model: Any) -> Work:
    """What a training step needs once of each example: predictions of the whole model."""
    batch, backend = examples(), backend_of(model)

    def work() -> None:
        reference_predictions(backend, batch)

    return work
