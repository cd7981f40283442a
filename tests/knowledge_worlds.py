"""Small tasks of facts and text with random tokens, for tests of knowledge-critical subnetworks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from styles import random_batch

import tlprune as tp
from tlprune.task import Batch, Stream, Tokenisation

LENGTH = 6
TEMPLATES = ("{head} is {tail}", "so {head} is {tail}", "why is {head} {tail}")


def facts(count: int, *, seed: int, templates: tuple[int, ...] = (0,)) -> Batch:
    """Random prompts that end with their tail, read in front of it; each fact in every one of some templates."""
    examples = count * len(templates)
    batch = random_batch(examples, LENGTH, seed=seed)
    return replace(
        batch,
        positions=batch.positions - 1,
        answers=batch.clean.ids[:, -1:],
        labels=torch.tensor(templates * count),
        groups=torch.arange(count).repeat_interleave(len(templates)),
    )


def text(blocks: int, *, seed: int) -> Batch:
    """Random blocks, read everywhere; half of the first block's answers are left out."""
    batch = random_batch(blocks, LENGTH, seed=seed)
    answers = batch.clean.ids[:, 1:].clone()
    answers[0, :2] = -100
    positions = torch.arange(LENGTH - 1).repeat(blocks, 1)
    return replace(batch, positions=positions, answers=answers, foils=torch.full_like(answers, -100))


def small_world() -> tp.Task:
    streams = {
        "main": Stream(facts(5, seed=1), facts(5, seed=2), facts(5, seed=3, templates=(1, 2))),
        "control": Stream(facts(7, seed=4), facts(3, seed=5), facts(4, seed=6, templates=(0, 1))),
        "text": Stream(*(text(3, seed=seed) for seed in (7, 8, 9))),
    }
    return tp.Task("world", streams, Tokenisation(prepend_bos=False), label_names=TEMPLATES)


def random_weights(model: Any, *, share: float = 0.1, unit: Any = "weight", seed: int = 0) -> tp.Circuit:
    sites = tp.weights(model, "blocks.[12].attn.W_*|blocks.[12].mlp.W_*", unit=unit)
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(seed)) < share
    return tp.Circuit(sites, kept)
