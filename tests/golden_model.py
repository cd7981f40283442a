"""One tiny GPT-2 and its prompts, made of integers alone, so that every program makes the same ones.

Other tools were run on it by hand, outside of this project; what they said is in ``tests/golden``, with where it comes
from. Two layers of four heads have 110 edges.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tlprune.task import Batch, Tokens

SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "vocab_size": 29, "n_positions": 16}
SIZES |= {"bos_token_id": 0, "eos_token_id": 0}
EXAMPLES, POSITIONS = 6, 7


def golden(name: str) -> dict[str, Any]:
    """What a tool said, and its provenance."""
    return json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())


def scrambled(count: int, stream: int) -> Tensor:
    """Integers in [0, 2^31) that look random, from exact arithmetic on their place and the number of a stream."""
    values = torch.arange(count, dtype=torch.int64) * 1103515245 + stream * 40503 + 12345
    for shift, factor in ((15, 1812433253), (13, 1664525), (16, 1)):
        values = values % 2**31
        values = (values ^ (values >> shift)) * factor
    return values % 2**31


def golden_model(dtype: torch.dtype = torch.float64) -> Any:
    """A GPT-2 whose weights are numbers of float32, all of them used: gains and biases, too.

    The first number of every head writes what its block's output bias does, so that this bias can be moved into the
    heads' values: ``b_O = sum_h (1 / H) W_O^h[0]``.
    """
    config = transformers.GPT2Config(**SIZES)
    config._attn_implementation = "eager"
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for stream, (name, parameter) in enumerate(sorted(model.named_parameters())):
            uniform = scrambled(parameter.numel(), stream).double().reshape(parameter.shape) / 2**31 - 0.5
            is_gain = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(is_gain + 0.7 * uniform)
        for block in model.transformer.h:
            block.attn.c_proj.weight[:: SIZES["n_embd"] // SIZES["n_head"]] = block.attn.c_proj.bias
    return model.to(dtype)


def checksum(model: Any) -> str:
    """Of all weights as float32, by name."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode() + parameter.detach().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def golden_batch() -> Batch:
    """Prompts and twins of unrelated tokens, read at their last position."""
    clean, corrupt, answers = (
        (scrambled(EXAMPLES * length, 1000 + stream) % SIZES["vocab_size"]).reshape(EXAMPLES, length)
        for stream, length in enumerate((POSITIONS, POSITIONS, 1))
    )
    return Batch(
        index=torch.arange(EXAMPLES),
        clean=Tokens(clean),
        corrupt=Tokens(corrupt),
        positions=torch.full((EXAMPLES, 1), POSITIONS - 1),
        answers=answers,
        foils=(answers + 1) % SIZES["vocab_size"],
    )


def golden_mask(count: int, kind: str) -> Tensor:
    """One mask value per edge: each 0 or 1 (``"hard"``), or spread over [0, 1] (``"soft"``)."""
    values = scrambled(count, 2000).double() / 2**31
    return (values > 0.4).double() if kind == "hard" else values
