"""Small tasks for tiny random classifiers, subnetworks of these, and what they answer, written out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from encoders import MODELS, prompts
from plain_encoder import PlainEncoder
from torch import Tensor

import tlprune as tp
from tlprune.studies.collection import Run, Subnetworks
from tlprune.task import MAIN, Batch, Stream, Task, Tokenisation, Tokens


def batch_of(name: str, examples: int, seed: int, *, accepted: bool = False) -> Batch:
    """Random prompts of several lengths with random answers; with ``accepted`` the last two classes count as one."""
    classes = MODELS[name][1]["num_labels"]
    clean = prompts(name, seed, padding="right", examples=examples)
    answers = torch.randint(classes, (examples, 1), generator=torch.Generator().manual_seed(seed))
    meaning = torch.arange(classes).clamp(max=1)
    return Batch(
        index=torch.arange(examples),
        clean=clean,
        corrupt=clean,
        positions=torch.zeros(examples, 1, dtype=torch.long),
        answers=meaning[answers] if accepted else answers,
        foils=torch.full((examples, 1), -100),
        accepted=meaning[answers] == meaning if accepted else None,
    )


def task_of(
    name: str = "bert classes",
    *,
    examples: int = 13,
    seed: int = 0,
    accepted: bool = False,
    kinds: tuple[str, ...] = (),
) -> Task:
    """A task of these, whose test examples are of the kinds in turn."""
    train, validation, test = (batch_of(name, count, seed + count, accepted=accepted) for count in (9, 5, examples))
    labels = torch.arange(examples) % len(kinds) if kinds else None
    stream = Stream(train, validation, dataclasses.replace(test, labels=labels))
    return Task(f"quiz{seed}", {MAIN: stream}, Tokenisation(True, "right", "prompt"), label_names=kinds)


def subnetworks_of(model: Any, *, sparsities: tuple[float, ...] = (0.25, 0.5), seeds: tuple[int, ...] = (0, 1)) -> Any:
    """Random heads and MLPs of each size."""
    sites, found = tp.heads(model) + tp.mlps(model), {}
    for sparsity in sparsities:
        for seed in seeds:
            order = torch.randperm(
                len(sites), generator=torch.Generator().manual_seed(100 * seed + int(100 * sparsity))
            )
            kept = torch.ones(len(sites), dtype=torch.bool)
            kept[order[: round(sparsity * len(sites))]] = False
            found[Run(sparsity, seed)] = tp.Circuit(sites, kept)
    return Subnetworks(found)


def plain_answer(hf_model: Any, tokens: Tokens, row: int, kept: set[str]) -> Tensor:
    """Class logits of one example without its padding, where what is not kept sends 0."""
    length = int(tokens.lengths[row])
    types = None if tokens.token_types is None else tokens.token_types[row : row + 1, :length]
    own = Tokens(tokens.ids[row : row + 1, :length], None, types)
    plain = PlainEncoder(hf_model)
    stream = plain.input(own)
    for layer in range(len(plain.blocks)):
        heads = [head for head in range(plain.heads) if f"a{layer}.h{head}" in kept]
        read = dict.fromkeys("qkv", stream)
        total = sum((plain.attention(layer, head, read, None) for head in heads), stream)
        stream = plain.after_attention(layer, total)
        sent = plain.mlp(layer, stream) if f"m{layer}" in kept else 0
        stream = plain.after_mlp(layer, stream + sent)
    return plain.head(stream, None)[0, 0]
