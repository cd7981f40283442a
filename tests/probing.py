"""Labelled prompts with prompt tokens in them, a prompt of random vectors, and predictivity by its definition."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.activations import Wanted
from tlprune.backends.prompting import embedded_tokens
from tlprune.models.planted import Planted
from tlprune.models.planted_tasks import ASK
from tlprune.task import Batch, Stream, Task, Tokenisation, Tokens

PROMPT = 3


def vocabulary_of(model: Any) -> int:
    return embedded_tokens(backend_of(model).embedding)


def vectors(model: Any, seed: int, count: int = PROMPT) -> tp.Prompt:
    width = backend_of(model).d_model
    return tp.Prompt(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), "end")


def examples(model: Any, classes: Sequence[int], *, seed: int, side: str, count: int = 13) -> Batch:
    """Words of several lengths with a prompt behind them, in encoders in front; classes by chance, each three times."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary, encoder = vocabulary_of(model), backend_of(model).architecture.post_norm
    prompt = list(range(vocabulary, vocabulary + PROMPT))
    rows = []
    for length in torch.randint(1, 5, (count,), generator=generator).tolist():
        words = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        rows.append([*prompt, *words] if encoder else [*words, *prompt])
    which = torch.cat(
        [torch.arange(len(classes)).repeat(3), torch.randint(len(classes), (count,), generator=generator)]
    )
    answers = torch.tensor(classes)[which[:count], None]
    tokens = padded(rows, side)
    if encoder:
        last = torch.zeros(count, 1, dtype=torch.long)
    else:
        last = (tokens.ids == prompt[-1]).int().argmax(1, keepdim=True)
    return Batch(torch.arange(count), tokens, tokens, last, answers, torch.full_like(answers, -100))


def padded(rows: Sequence[Sequence[int]], side: str) -> Tokens:
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        part = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[place, part], mask[place, part] = torch.tensor(row), 1
    return Tokens(ids, mask)


def task_of(model: Any, classes: Sequence[int], *, side: str = "right") -> Task:
    splits = (examples(model, classes, seed=seed, side=side) for seed in (1, 2, 3))
    return Task("labelled", {"main": Stream(*splits)}, Tokenisation(prepend_bos=False))


# ---- the definition


def activations(model: Any, batch: Batch, probe: str) -> Tensor:
    """``(layer, example, prompt, neuron)``, each example run by itself and without padding."""
    return torch.stack([_of_one(model, batch, row, probe) for row in range(len(batch))], 1)


def _of_one(model: Any, batch: Batch, row: int, probe: str) -> Tensor:
    backend, first = backend_of(model), vocabulary_of(model)
    mask = batch.clean.attention_mask
    real = torch.ones_like(batch.clean.ids[row], dtype=torch.bool) if mask is None else mask[row].bool()
    ids = batch.clean.ids[row][real]
    layers = tuple(range(backend.architecture.n_layers))
    seen = backend.observe(Tokens(ids[None]), Wanted(streams=False, neurons=layers)).neurons
    values = torch.stack([seen[layer][0] for layer in layers])
    if probe == "prompt":
        return values[:, ids >= first]
    if probe == "answer":
        return values[:, [int(real[: int(batch.positions[row, 0])].sum())]]
    words = values[:, ids < first]
    return words.mean(1, keepdim=True) if probe == "mean" else words.amax(1, keepdim=True)


def brute_force(model: Any, task: Task, probe: str, prompts: Sequence[Any] = ()) -> tuple[Tensor, Tensor]:
    """Thresholds and accuracies of two classes, ``(trial, layer, prompt, neuron)``, from all activations at once."""
    trials = []
    for attached in [prompt.attached(model) for prompt in prompts] or [nullcontext()]:
        with attached:
            train, validation = task.discovery.train(), task.discovery.validation()
            trials.append(
                told_apart(*(activations(model, part, probe) for part in (train, validation)), train, validation)
            )
    baselines, accuracies = zip(*trials, strict=True)
    return torch.stack(baselines), torch.stack(accuracies)


def told_apart(seen: Tensor, checked: Tensor, train: Batch, validation: Batch) -> tuple[Tensor, Tensor]:
    high = max(train.answers.flatten().tolist())
    baseline = seen.double().mean(1)
    right = [
        (checked[:, row] > baseline) == (int(validation.answers[row, 0]) == high) for row in range(len(validation))
    ]
    return baseline, torch.stack(right).double().mean(0)


def rows_of_two(batch: Batch, first: int, second: int) -> Tensor:
    """As many examples of each of two classes, repeated until they are."""
    own = [(batch.answers[:, 0] == answer).nonzero()[:, 0] for answer in (first, second)]
    return torch.cat([rows.repeat(len(other)) for rows, other in (own, own[::-1])])


def asked_by_prompt(one: Planted) -> tuple[Task, tp.Prompt]:
    """The task whose last token is that of a prompt, whose vector is the embedding of the token that was there."""
    vector = backend_of(one.model).parameters()["embed.W_E"][ASK].detach()[None]
    first, streams = vocabulary_of(one.model), one.task.streams["main"]

    def prompted(batch: Batch) -> Batch:
        ids = batch.clean.ids.clone()
        ids[:, -1] = first
        return dataclasses.replace(batch, clean=tp.Tokens(ids))

    parts = (prompted(part) for part in (streams.train, streams.validation, streams.test))
    return dataclasses.replace(one.task, streams={"main": Stream(*parts)}), tp.Prompt(vector, "end")
