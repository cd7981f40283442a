"""BERT with classes and GPT-2 written out from Hugging Face's weights, with torch alone: heads and MLPs gated by name.

A gated head or MLP sends ``mu + m (x - mu)``. Nothing here is shared with the library or with TransformerLens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Gates:
    """Mask values by name (``a0.h1``, ``m0``) and what replaces; without means everything is kept and noted."""

    values: Mapping[str, Tensor | float] = field(default_factory=dict)
    means: Mapping[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        self.seen[name] = value
        return self.means[name] + self.values[name] * (value - self.means[name]) if name in self.means else value


def bert(model: Any, ids: Tensor, real: Tensor, types: Tensor, gates: Gates) -> Tensor:
    """Logits of a BertForSequenceClassification."""
    w, shape, epsilon = model.state_dict(), model.config, model.config.layer_norm_eps

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], epsilon)

    table = "bert.embeddings."
    x = w[f"{table}word_embeddings.weight"][ids] + w[f"{table}token_type_embeddings.weight"][types]
    x = norm(f"{table}LayerNorm", x + w[f"{table}position_embeddings.weight"][: ids.shape[1]])
    for layer in range(shape.num_hidden_layers):
        block, heads = f"bert.encoder.layer.{layer}.", shape.num_attention_heads
        q, k, v = (
            linear(f"{block}attention.self.{part}", x).unflatten(-1, (heads, -1)) for part in ("query", "key", "value")
        )
        z = attended(q, k, v, (real == 0)[:, None, None, :])
        z = torch.stack([gates(f"a{layer}.h{head}", z[:, :, head]) for head in range(heads)], 2)
        x = norm(f"{block}attention.output.LayerNorm", x + linear(f"{block}attention.output.dense", z.flatten(2)))
        inner = F.gelu(linear(f"{block}intermediate.dense", x))
        mlp = gates(f"m{layer}", linear(f"{block}output.dense", inner))
        x = norm(f"{block}output.LayerNorm", x + mlp)
    return linear("classifier", torch.tanh(linear("bert.pooler.dense", x[:, 0])))


def gpt2(model: Any, ids: Tensor, gates: Gates) -> Tensor:
    """Logits of a GPT2LMHeadModel at every position; padding on the right is seen by no real token."""
    w, shape, epsilon = model.state_dict(), model.config, model.config.layer_norm_epsilon

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], epsilon)

    length = ids.shape[1]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:length]
    for layer in range(shape.n_layer):
        block = f"transformer.h.{layer}."
        parts = linear(f"{block}attn.c_attn", norm(f"{block}ln_1", x)).chunk(3, -1)
        z = attended(*(part.unflatten(-1, (shape.n_head, -1)) for part in parts), later)
        z = torch.stack([gates(f"a{layer}.h{head}", z[:, :, head]) for head in range(shape.n_head)], 2)
        x = x + linear(f"{block}attn.c_proj", z.flatten(2))
        inner = F.gelu(linear(f"{block}mlp.c_fc", norm(f"{block}ln_2", x)), approximate="tanh")
        x = x + gates(f"m{layer}", linear(f"{block}mlp.c_proj", inner))
    return norm("transformer.ln_f", x) @ w["lm_head.weight"].T


def attended(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    scores = torch.einsum("eqhd,ekhd->ehqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("ehqk,ekhd->eqhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def means_over(seen: Mapping[str, Tensor], real: Tensor) -> dict[str, Tensor]:
    """The mean over all real tokens of all prompts, of each head and MLP."""
    return {name: value[real.bool()].mean(0) for name, value in seen.items()}
