"""A model of two skills in known neurons, and the tasks that need one each.

The last token is 1 or 2 in one task and 3 or 4 in the other. Neurons 5, 6 and 7, 8 of layer 0 see one of these tokens
each and write its answer, 11 to 14. Without them the embedding alone speaks, for the first answer of each task.
"""

from __future__ import annotations

from typing import Any

import torch
from styles import SHAPE, fresh

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.task import MAIN, Batch, Stream, Task, Tokenisation, Tokens

FIRST = {"one": 1, "other": 3}  # the first of the two tokens of each task
SKILLS = {"one": ["m0.n5", "m0.n6"], "other": ["m0.n7", "m0.n8"]}
WIDTH = SHAPE["d_mlp"]
_SLOT, _SPARE = 24, 28  # of the residual stream: where answers are written, and what nobody reads


@torch.no_grad()
def two_skills() -> Any:
    """The model: attention writes nothing, distracting neurons of both layers write where nobody reads."""
    model = fresh("no_norm")
    weights = backend_of(model).parameters()
    for name, weight in weights.items():
        if ".mlp." not in name:
            weight.zero_()
    weights["embed.W_E"][:, :_SLOT].copy_(torch.eye(SHAPE["d_vocab"])[:, :_SLOT])
    for token in range(1, 5):
        weights["unembed.W_U"][token, 11 if token < 3 else 13] = 0.5
        weights["unembed.W_U"][_SLOT + token - 1, 10 + token] = 1.0
    for layer in range(2):
        weights[f"blocks.{layer}.mlp.W_out"][:, :_SPARE] = 0
        weights[f"blocks.{layer}.mlp.b_out"].zero_()
    for token in range(1, 5):
        own = 4 + token
        weights["blocks.0.mlp.W_in"][:, own] = torch.eye(SHAPE["d_model"], dtype=torch.float64)[token]
        weights["blocks.0.mlp.b_in"][own] = 0
        weights["blocks.0.mlp.W_out"][own] = torch.eye(SHAPE["d_model"], dtype=torch.float64)[_SLOT + token - 1]
    return model


def skill_task(name: str, *, examples: int = 20, **options: Any) -> Task:
    """Prompts of three to five tokens, padded, answered at the last."""
    batches = [_batch(FIRST[name], examples, seed) for seed in (1, 2, 3)]
    return Task(f"skill {name}", {MAIN: Stream(*batches)}, Tokenisation(prepend_bos=False), **options)


def _batch(first: int, examples: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(10 * first + seed)
    ids = torch.randint(15, 24, (examples, 5), generator=generator)
    lengths = torch.randint(3, 6, (examples,), generator=generator)
    second = (torch.rand(examples, generator=generator) < 0.4).long()
    real = (torch.arange(5) < lengths[:, None]).long()
    rows = torch.arange(examples)
    ids[rows, lengths - 1] = first + second
    tokens = Tokens(ids * real, real)
    answers = (10 + first + second)[:, None]
    foils = (11 + first - second)[:, None]
    return Batch(rows, tokens, tokens, lengths[:, None] - 1, answers, foils)


def skill_scores(model: Any, name: str) -> tp.Scores:
    """0.9 for the neurons of one skill, up to 0.1 for all others, in an order of its own."""
    sites = tp.neurons(model)
    generator = torch.Generator().manual_seed(FIRST[name])
    values = 0.1 * torch.rand(len(sites), generator=generator)
    values[[sites.index(neuron) for neuron in SKILLS[name]]] = 0.9
    return tp.Scores(sites, values)
