"""Attention edges the slow way: TransformerLens' own hooks, one run of the model for each layer and query position."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

Hooks = list[tuple[str, Callable[..., Any]]]


def plain_crossed(
    model: Any, tokens: Any, gates: Mapping[str, Tensor], spans: Tensor, other: Mapping[str, Tensor]
) -> Tensor:
    """Logits of a run in which each query sees keys and values mixed for the span that it is in.

    Args:
        model: a HookedTransformer.
        tokens: the prompts.
        gates: masks by name, such as ``"a1.h0<v>@0->2"``, with numbers for spans; others are 1.
        spans: the number of each position's span.
        other: keys and values of the replacing run, by the names of TransformerLens' hooks.
    """
    written: Hooks = []
    for layer in range(model.cfg.n_layers):
        z = None
        for position in range(tokens.ids.shape[1]):
            parts = {f"blocks.{layer}.attn.hook_{part}": part for part in "kv"}
            hooks = [
                (name, partial(mixed, gates, f"a{layer}", part, spans, spans[:, position], other[name]))
                for name, part in parts.items()
            ]
            seen = run(model, tokens, [*written, *hooks], [f"blocks.{layer}.attn.hook_z"])[1][0]
            z = torch.zeros_like(seen) if z is None else z
            z = torch.cat([z[:, :position], seen[:, position : position + 1], z[:, position + 1 :]], 1)
        written.append((f"blocks.{layer}.attn.hook_z", partial(instead, z)))
    return run(model, tokens, written, [])[0]


def mixed(
    gates: Mapping[str, Tensor],
    layer: str,
    part: str,
    spans: Tensor,
    query: Tensor,
    other: Tensor,
    own: Tensor,
    **_: Any,
) -> Tensor:
    """Position by position and head by head, ``m own + (1 - m) other`` under the mask for a query's span."""
    rows = []
    kind = f"{layer}.kv" if f"{layer}.kv0<{part}>" in {name.partition("@")[0] for name in gates} else f"{layer}.h"
    for example in range(own.shape[0]):
        for position in range(own.shape[1]):
            for head in range(own.shape[2]):
                pair = f"{int(spans[example, position])}->{int(query[example])}"
                gate = gates.get(f"{kind}{head}<{part}>@{pair}", torch.ones((), dtype=own.dtype))
                replaced = other.expand_as(own)[example, position, head]
                rows.append(gate * own[example, position, head] + (1 - gate) * replaced)
    return torch.stack(rows).view_as(own)


def instead(value: Tensor, _: Tensor, **__: Any) -> Tensor:
    return value


def run(model: Any, tokens: Any, hooks: Hooks, names: list[str]) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what some hooks see, with gradients."""
    seen: dict[str, Tensor] = {}
    keep = [(name, lambda value, hook: seen.__setitem__(hook.name, value)) for name in names]
    logits = model.run_with_hooks(tokens.ids, attention_mask=tokens.attention_mask, fwd_hooks=[*hooks, *keep])
    return logits, [seen[name] for name in names]


def keys_and_values(model: Any, tokens: Any, hooks: Hooks) -> dict[str, Tensor]:
    """Those of a run with some hooks, by the names of TransformerLens' hooks."""
    names = [f"blocks.{layer}.attn.hook_{part}" for layer in range(model.cfg.n_layers) for part in "kv"]
    with torch.no_grad():
        return dict(zip(names, run(model, tokens, hooks, names)[1], strict=True))


def silent(model: Any) -> Hooks:
    """Hooks under which no writer sends anything."""
    names = ["hook_embed", "hook_pos_embed"]
    for layer in range(model.cfg.n_layers):
        names += [f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out"]
    return [(name, lambda value, hook: torch.zeros_like(value)) for name in names if name in model.hook_dict]


@contextmanager
def per_query_head(model: Any, *, wanted: bool) -> Any:
    """Keys and values come for each query head, where that is wanted."""
    before = model.cfg.ungroup_grouped_query_attention
    model.cfg.ungroup_grouped_query_attention = wanted
    try:
        yield
    finally:
        model.cfg.ungroup_grouped_query_attention = before
