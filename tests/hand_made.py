"""A tiny BERT written by hand, of which one head alone decides the class, and its task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import tlprune as tp
from tlprune.task import Batch, Stream, Task, Tokenisation, Tokens

PAD, CLS, UP, DOWN, FILLER = range(5)
HEAD = "a0.h1"  # the one that decides
UNITS = ("a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")


def deciding_encoder() -> Any:
    """Class 1 if a prompt has more ``UP`` than ``DOWN``, else 0.

    ``UP`` and ``DOWN`` are 1 and -1 in the first direction. Head 1 of layer 0 attends to all alike and adds their mean
    to the first token, from which the class is read. All else writes nothing.
    """
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 3}
    config = BertConfig(vocab_size=5, max_position_embeddings=8, num_labels=2, pad_token_id=PAD, **shape)
    model = BertForSequenceClassification(config).double().eval()
    _write(model)
    return tp.from_huggingface(model, device="cpu")


@torch.no_grad()
def _write(model: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.fill_(float(name.endswith("LayerNorm.weight")))
    bert = model.bert
    words = bert.embeddings.word_embeddings.weight
    words[UP], words[DOWN] = torch.tensor([1.0, -1, 0, 0]), torch.tensor([-1.0, 1, 0, 0])
    words[CLS] = words[FILLER] = torch.tensor([0.0, 0, 1, -1])
    attention = bert.encoder.layer[0].attention
    attention.self.value.weight[2, 0] = 1.0  # the first number of head 1's two
    attention.output.dense.weight[:2, 2] = torch.tensor([1.0, -1.0])
    bert.pooler.dense.weight[0, 0] = 1.0
    model.classifier.weight[:, 0] = torch.tensor([-1.0, 1.0])


def prompts(labels: list[int]) -> Batch:
    """A prompt of each class, of two to five tokens; its twin is one of the other class."""
    return Batch(
        torch.arange(len(labels)),
        _tokens([(UP if label else DOWN, row) for row, label in enumerate(labels)]),
        _tokens([(DOWN if label else UP, row) for row, label in enumerate(labels)]),
        torch.zeros(len(labels), 1, dtype=torch.long),
        _column(labels),
        1 - _column(labels),
    )


def _tokens(signs: list[tuple[int, int]]) -> Tokens:
    rows = [[CLS, sign, *[FILLER] * (row % 4)] for sign, row in signs]
    ids = torch.tensor([row + [PAD] * (5 - len(row)) for row in rows])
    return Tokens(ids, (ids != PAD).long(), torch.zeros_like(ids))


def _column(labels: list[int]) -> Tensor:
    return torch.tensor(labels)[:, None]


def deciding_task(labels: list[int], name: str = "signs") -> Task:
    """A task with these labels in each of its splits."""
    stream = Stream(prompts(labels), prompts(labels), prompts(labels))
    return Task(name, {"main": stream}, Tokenisation(prepend_bos=False, predicted="prompt"))
