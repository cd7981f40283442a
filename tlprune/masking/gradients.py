"""Gradients of a loss by edge masks where everything is kept, from as many passes as the model itself takes.

dL/dm_rw = sum over examples and positions of (x_w - x~_w) . dL/dx_r,   all masks 1
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.backends.activations import Activations, Backend
from tlprune.graph import Convention, Graph
from tlprune.masking.checks import check_same
from tlprune.masking.held_gradients import held_gradients
from tlprune.masking.reader_gradients import ALL, ReaderGradients
from tlprune.masking.relevance import Rules
from tlprune.masking.tap import Changes, Tap
from tlprune.task import Tokens

Loss = Callable[[Float[Tensor, "example answer vocab"]], Float[Tensor, ""]]
Positions = Int[Tensor, "example answer"]
# The weight of a run, and what some writers send in it.
Run = tuple[float, Changes]
AS_IT_IS: tuple[Run, ...] = ((1.0, {}),)
_CHECKED: weakref.WeakKeyDictionary[Any, set[Convention]] = weakref.WeakKeyDictionary()


def edge_gradients(  # noqa: PLR0913
    backend: Backend,
    graph: Graph,
    tokens: Tokens,
    replaced: Activations,
    loss: Loss,
    *,
    positions: Positions | None = None,
    sent: Activations | None = None,
    runs: Sequence[Run] = AS_IT_IS,
    writers: slice = ALL,
    rules: Rules | None = None,
    groups: Sequence[Tensor] | None = None,
) -> Float[Tensor, "*group edge"]:
    """``dL/dm`` of every edge at ``m = 1``, as of :func:`~tlprune.masking.edges.run_edges`.

    A run is one forward and one backward pass of the model; at the end there is one matrix product per set of readers,
    however many runs there were.

    Args:
        backend: the model.
        graph: decides which edges there are.
        tokens: clean prompts.
        replaced: what an ablated writer sends, ``x~``.
        loss: of logits at ``positions``.
        positions: where logits are wanted; everywhere when ``None``.
        sent: ``x``; by default what writers send in the only run.
        runs: whose gradients are summed, each with its weight and with what some writers send in it instead of what
            they compute; by default one run of the model as it is.
        writers: whose edges are wanted, by their numbers in the graph; those of others are left at 0.
        rules: other gradients than those of the model's own functions.
        groups: sets of positions whose sums are wanted one by one, ``(group, edge)``, as numbers in all examples'
            positions one after the other; by default the sum over all.

    Raises:
        ValueError: groups of positions of a post-norm model.
    """
    assert sent is not None or len(runs) == 1
    rules = rules or Rules()
    if graph.architecture.post_norm and groups is not None:
        raise ValueError(
            "Gradients by span need a residual stream that is a sum, but this encoder normalises every sum. Score its "
            "edges without spans, or train masks by span: tp.EdgePruning(spans=...)."
        )
    if graph.architecture.post_norm:
        held = partial(
            held_gradients, backend, graph, tokens, replaced, loss, positions=positions, sent=sent, rules=rules
        )
        return of_writers(graph, torch.stack([weight * held(changes=own) for weight, own in runs]).sum(0), writers)
    gradients = ReaderGradients(backend, graph, writers)
    for weight, changes in runs:
        tap = Tap(backend, graph, tokens.ids.shape, changes=changes, scales=rules.beside.scales)
        with torch.enable_grad():
            logits = _tapped(tap, tokens, positions, rules)
            gradients.add(tap.reads, weight * loss(logits))
        sent = sent or tap.sent.activations()
    assert sent is not None
    if groups is None:
        return gradients.by_edge(sent, replaced)
    return torch.stack([gradients.by_edge(sent, replaced, tokens) for tokens in groups])


@torch.no_grad()
def clean_run(
    backend: Backend, graph: Graph, tokens: Tokens, positions: Positions | None
) -> tuple[Float[Tensor, "example answer vocab"], Activations]:
    """The model's logits and what its writers send: in one pass, or of a post-norm model in two."""
    if graph.architecture.post_norm:
        return backend.logits(tokens, positions), backend.observe(tokens)
    tap = Tap(backend, graph, tokens.ids.shape)
    logits = _tapped(tap, tokens, positions, Rules())
    return logits, tap.sent.activations()


def of_writers(graph: Graph, values: Float[Tensor, "edge"], writers: slice) -> Float[Tensor, "edge"]:
    """Values of the edges out of some writers, 0 for those of others."""
    first, last, _ = writers.indices(len(graph.writers))
    result = torch.zeros_like(values)
    for readers in graph.readers:
        readers.block(result)[:, first:last] = readers.block(values)[:, first:last]
    return result


def _tapped(tap: Tap, tokens: Tokens, positions: Positions | None, rules: Rules) -> Tensor:
    """Logits of a tapped run, which once per model and convention must be the model's own."""
    backend, convention = tap.backend, tap.graph.convention
    logits = backend.steer(tokens, rules.around(tap), convention, positions, rules.beside.edits)
    tap.check_complete()
    checked = _CHECKED.setdefault(backend.model, set())
    if convention not in checked and not tap.changes:
        with torch.no_grad():
            check_same(backend, logits.detach(), backend.logits(tokens, positions))
        checked.add(convention)
    return logits
