"""Tiny random models, one for each way in which architectures differ, and what tests compare them with."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.activations import Backend
from tlprune.graph import Convention, Graph
from tlprune.models.transformer_lens import build, build_bridge, has_hooked_transformer
from tlprune.task import Batch, Tokens

SHAPE = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 48, "d_vocab": 29, "n_ctx": 16}
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 8}
LLAMA = {"normalization_type": "RMS", "final_rms": True, "gated_mlp": True, "act_fn": "silu", "n_key_value_heads": 2}

STYLES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layers": 3, "normalization_type": "LN", "act_fn": "gelu_new"},
    "lnpre": {"normalization_type": "LNPre", "act_fn": "gelu"},
    "llama": {"n_layers": 3, **LLAMA, **ROTARY},
    "rmspre": {"normalization_type": "RMSPre", "act_fn": "silu"},
    "parallel": {"normalization_type": "LN", "act_fn": "gelu_new", "parallel_attn_mlp": True, **ROTARY},
    "attention_only": {"normalization_type": "LN", "attn_only": True},
    "no_norm": {"normalization_type": None, "act_fn": "relu"},
    "qk_norm": {"use_qk_norm": True, **LLAMA, **ROTARY},
    "softcap": {
        "normalization_type": "RMS", "final_rms": True, "act_fn": "gelu_new", "attn_scores_soft_cap": 3.0,
        "output_logits_soft_cap": 4.0, **ROTARY,
    },
    "gemma2": {
        **LLAMA, **ROTARY, "act_fn": "gelu_pytorch_tanh", "use_normalization_before_and_after": True,
        "attn_scores_soft_cap": 3.0, "output_logits_soft_cap": 4.0, "use_local_attn": True, "window_size": 3,
        "attn_types": ["local", "global"],
    },
}  # fmt: skip
# Heads are masked in front of this norm and edges carry what is behind it, so node masks of heads are no edge masks.
NORMED_HEADS = {style for style, options in STYLES.items() if options.get("use_normalization_before_and_after")}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Errors of sums of a hundred terms, relative to the largest logit: some hundred units in the last place.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def fresh(style: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A new random model; every parameter is random, biases and the gains of norms too.

    On TransformerLens 4 it is a bridge of TransformerLens' own model, which has no parallel blocks and no q/k-norm.
    """
    options = SHAPE | STYLES[style] | changes
    if options.get("attn_only"):
        options.pop("d_mlp")
    make = build if has_hooked_transformer() else build_bridge
    model = make(**options, dtype=dtype, device="cpu", init_weights=False, model_name=style).to(
        dtype, print_details=False
    )
    randomise(model, seed=sum(map(ord, style)))
    return model.eval()


@torch.no_grad()
def randomise(model: Any, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in backend_of(model).parameters().items():
        # Drawn in float64, so that a model in another precision has the same weights, rounded.
        noise = 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(1 + noise if ".ln" in f".{name}" and name.endswith("w") else noise)
    if model.cfg.use_normalization_before_and_after:
        for block in model.blocks:
            block.attn.b_O.zero_()  # under a norm it would be no constant, and is refused


@cache
def _kept_backend(style: str, dtype: torch.dtype) -> Backend:
    return backend_of(fresh(style, dtype))


def backend_of_style(style: str, dtype: torch.dtype = torch.float64) -> Backend:
    """The backend of a style's one model, for tests that leave it as it is."""
    return _kept_backend(style, dtype)


def model_of(style: str, dtype: torch.dtype = torch.float64) -> Any:
    return backend_of_style(style, dtype).model


def conventions(style: str) -> list[Convention]:
    """Every convention that a style tells apart."""
    found = [Convention(embeddings) for embeddings in ("merged", "separate", "kept")]
    found.append(Convention(qkv="joined"))
    if "n_key_value_heads" in STYLES[style]:
        found += [Convention(embeddings, "per_query_head") for embeddings in ("merged", "kept")]
    return found


CASES = [(style, convention) for style in STYLES for convention in conventions(style)]
NAMES = [
    f"{style}-{convention.embeddings}-{convention.kv}" + "-joined" * (convention.qkv == "joined")
    for style, convention in CASES
]


def random_tokens(seed: int, examples: int = 3, length: int = 6) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    return Tokens(torch.randint(SHAPE["d_vocab"], (examples, length), generator=generator))


CLEAN, CORRUPT, OTHERS = random_tokens(1), random_tokens(2), random_tokens(3, examples=5)


def random_batch(examples: int = 3, length: int = 6, *, seed: int = 0) -> Batch:
    """Random pairs whose answers are read at the last position."""
    generator = torch.Generator().manual_seed(seed)
    answers = torch.randint(SHAPE["d_vocab"], (examples, 1), generator=generator)
    return Batch(
        index=torch.arange(examples),
        clean=random_tokens(10 * seed + 1, examples, length),
        corrupt=random_tokens(10 * seed + 2, examples, length),
        positions=torch.full((examples, 1), length - 1),
        answers=answers,
        foils=(answers + 1) % SHAPE["d_vocab"],
    )


def random_mask(graph: Graph, *lead: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Mask values in (0.1, 0.9), ready for gradients."""
    generator = torch.Generator().manual_seed(seed)
    values = 0.1 + 0.8 * torch.rand(*lead, graph.n_edges, generator=generator, dtype=torch.float64)
    return values.to(dtype).requires_grad_()


def probe(logits: Tensor, *, seed: int = 5) -> Tensor:
    """A number that depends on every logit, to differentiate."""
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (logits * weight.to(logits.dtype)).sum() / logits.numel()


def refuses_choice(message: str) -> Any:
    """A word that is none of the choices is an error of ours, or of the type checker where tests run under it."""
    if "typecheck" in sys.modules:
        return pytest.raises(TypeError, match="Type-check error")
    return pytest.raises(ValueError, match=message)


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected number and to 1 at least."""
    assert actual.shape == expected.shape
    difference = (actual - expected).detach().abs().max()
    return float(difference / expected.detach().abs().max().clamp(min=1))
