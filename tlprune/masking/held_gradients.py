"""Gradients by edge masks for post-norm models, whose readers have streams of their own: from the masked run itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends.activations import Activations, Backend
from tlprune.graph import Graph
from tlprune.masking.post_norm_edges import PostNormCall
from tlprune.masking.relevance import Rules
from tlprune.masking.tap import Changes
from tlprune.task import Tokens


def held_gradients(
    backend: Backend,
    graph: Graph,
    tokens: Tokens,
    replaced: Activations,
    loss: Callable[[Tensor], Tensor],
    *,
    positions: Tensor | None,
    sent: Activations | None,
    changes: Changes,
    rules: Rules,
) -> Float[Tensor, "edge"]:
    """``dL/dm`` of every edge of a post-norm model at ``m = 1``, with the differences ``x - x~`` held where asked.

    Args:
        backend: the model.
        graph: its edges.
        tokens: clean prompts.
        replaced: what an ablated writer sends.
        loss: of logits at ``positions``.
        positions: where logits are wanted.
        sent: ``x`` of the differences; by default what writers send in this run.
        changes: what some writers send, instead of what they compute.
        rules: other gradients than those of the model's own functions.
    """
    mask = torch.ones(graph.n_edges, dtype=torch.promote_types(backend.dtype, torch.float32), device=backend.device)
    mask.requires_grad_()
    moved = {point: lambda _, value=value: value for point, value in changes.items()}
    beside = replace(rules.beside, edits={**rules.beside.edits, **moved})
    call = _Held(backend, graph, tokens.ids.shape, mask, replaced, beside=beside)
    call.held = None if sent is None else (sent, replaced)
    with torch.enable_grad():
        logits = backend.steer(tokens, rules.around(call), graph.convention, positions, beside.edits)
        call.check_complete()
        return torch.autograd.grad(loss(logits), mask)[0]


class _Held(PostNormCall):
    """A run in which everything is kept, so that what replaces a writer counts in no value, only in gradients.

    Attributes:
        held: what writers send and what replaces it, whose difference stands in for that of this run.
    """

    held: tuple[Activations, Activations] | None = None

    def embedding(self, index: int, value: Tensor) -> None:
        self._shift("embeddings", index, value)
        super().embedding(index, value)

    def heads(self, layer: int, z: Tensor) -> None:
        self._shift("heads", layer, z)
        super().heads(layer, z)

    def mlp(self, layer: int, output: Tensor) -> None:
        self._shift("mlps", layer, output)
        super().mlp(layer, output)

    def _shift(self, part: str, index: int, value: Tensor) -> None:
        """Replace by what lies as far from this run's value as the held ones lie from each other."""
        if self.held is not None:
            sent, instead = (getattr(activations, part)[index] for activations in self.held)
            found: Sequence[Tensor] = getattr(self.replaced, part)
            shifted = (*found[:index], value.detach() - (sent - instead), *found[index + 1 :])
            self.replaced = replace(self.replaced, **{part: shifted})
