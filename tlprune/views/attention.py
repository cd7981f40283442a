"""The attention patterns of a circuit's heads on one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.masking.patterns import attention_patterns
from tlprune.views.prompt import Prompt, circuitsvis, pieces_of, tokens_of


@torch.no_grad()
def head_patterns(
    model: Any, circuit: Circuit, prompt: Prompt, *, heads: Sequence[str] | None = None
) -> dict[str, Float[torch.Tensor, "pos source"]]:
    """Where the heads of a circuit attend in the model's own run: ``softmax(q k^T)``, a row for each query.

    Args:
        model: a TransformerLens model.
        circuit: whose heads are shown, ``circuit.heads``.
        prompt: one prompt: ids, :class:`~tlprune.task.Tokens` of one row, or words.
        heads: these of them, such as ``["a9.h6"]``.

    Raises:
        ValueError: the circuit has no heads or not these, there is more than one prompt, or the model normalises its
            sums.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> patterns = head_patterns(planted.model, planted.circuit, planted.task.test.clean.ids[0])
        >>> [(name, tuple(pattern.shape), round(float(pattern[-1].sum()), 3)) for name, pattern in patterns.items()]
        [('a1.h1', (8, 8), 1.0)]
    """
    chosen, tokens, backend = _chosen(circuit, heads), tokens_of(model, prompt), backend_of(model)
    graph = Graph.of(model)
    if graph.architecture.post_norm:
        raise ValueError(
            "Patterns are read off the streams of models that normalise what a block reads but this one normalises its "
            "sums. Take them from TransformerLens' own cache."
        )
    found = attention_patterns(backend, graph, tokens, backend.observe(tokens))
    places = {name: tuple(int(part) for part in name[1:].split(".h")) for name in chosen}
    return {name: found[layer][0, :, head].cpu() for name, (layer, head) in places.items()}


def _chosen(circuit: Circuit, heads: Sequence[str] | None) -> list[str]:
    own = circuit.heads
    chosen = own if heads is None else list(heads)
    if not chosen or not {*chosen} <= {*own}:
        raise ValueError(
            f"Patterns are of heads in the circuit, which are {', '.join(own) or 'none'}, but these were asked for: "
            f"{', '.join(chosen) or 'none'}. Give a circuit with heads, and some of these."
        )
    return chosen


def attention_view(model: Any, circuit: Circuit, prompt: Prompt, *, heads: Sequence[str] | None = None) -> Any:
    """The patterns of :func:`head_patterns` as a view of CircuitsVis, which a notebook shows by itself.

    Its page loads CircuitsVis' program from a server (unpkg.com); without a network a notebook takes the copy in the
    package.

    Args:
        model: a TransformerLens model.
        circuit: whose heads are shown.
        prompt: one prompt.
        heads: these of them.

    Raises:
        ModuleNotFoundError: circuitsvis is not installed.
        ValueError: as of :func:`head_patterns`.
    """
    shown = circuitsvis("attention")
    patterns = head_patterns(model, circuit, prompt, heads=heads)
    pieces = pieces_of(model, tokens_of(model, prompt))
    return shown.attention_heads(torch.stack([*patterns.values()]), pieces, attention_head_names=[*patterns])
