"""Masks that stay on a model for a while, whatever runs it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from tlprune.masking.beside import Beside
from tlprune.masking.edges import EdgeCall, edge_call
from tlprune.masking.nodes import node_edits
from tlprune.masking.post_norm_edges import PostNormCall
from tlprune.masking.workspace import Pool
from tlprune.task import Tokens

# Models under installed masks, for which no plain run can be had.
_INSTALLED: weakref.WeakSet[Any] = weakref.WeakSet()


def refuse_installed(model: Any) -> None:
    """Raise a RuntimeError for a model that has masks installed."""
    if model in _INSTALLED:
        raise RuntimeError(
            "This model has masks installed, so a masked call would take its replacements from a masked model. Call "
            "the model itself within the block, or the masked one after it."
        )


@contextmanager
def installed_masks(masked: Any) -> Iterator[Any]:
    """The model of a :class:`~tlprune.Masked` with its hard masks on it, until the block ends."""
    refuse_installed(masked.model)
    refuse_what_needs_prompts(masked, "An installed mask")
    backend, sites = masked.backend, masked.sites
    any_prompt = Tokens(torch.zeros(1, 1, dtype=torch.long, device=backend.device))
    replaced = masked.ablation.replaced(backend, any_prompt, None, masked.wanted)
    parts = masked.parts(masked.hard_values(), None)
    edits = node_edits(sites, parts, replaced, backend.architecture)
    outputs = masked.outputs() and [weight.clone() for weight in masked.outputs()]
    with ExitStack() as stack, torch.no_grad():
        if "weights" in parts:
            stack.enter_context(backend.installed_weights(masked.scaled(parts)))
        if "edges" in parts:
            pool, beside = Pool(most=1), Beside(edits, outputs, mlps="stored")

            def start(lead: tuple[int, ...]) -> EdgeCall | PostNormCall:
                return edge_call(backend, sites.graph, lead, parts["edges"], replaced, pool=pool, beside=beside)

            stack.enter_context(backend.steered(_Renewed(start), sites.graph.convention, edits))
        else:
            stack.enter_context(backend.edited(edits))
        stack.callback(_INSTALLED.discard, backend.model)
        _INSTALLED.add(backend.model)
        yield backend.model


def refuse_what_needs_prompts(masked: Any, what: str) -> None:
    """Raise a ValueError for masks whose effect depends on prompts that are not known yet."""
    origin = masked.ablation.as_dict()
    if masked.ablation.varies == "per_example" or origin.get("over") == "examples":
        raise ValueError(
            f"{what} meets new tokens, for which {origin['name']} ablation has no replacement. Use "
            "Zero(), or Mean(reference) over positions."
        )
    if masked.sites.spans or masked.norm == "frozen":
        raise ValueError(
            f"{what} meets new tokens, which belong to no known span and have no clean run to take norms "
            "from. Build it without spans, and with norm='recomputed'."
        )


class _Renewed:
    """A ``Steering`` that starts anew with each run of the model."""

    def __init__(self, start: Callable[[tuple[int, ...]], EdgeCall | PostNormCall]) -> None:
        self.start = start
        self.call: EdgeCall | PostNormCall | None = None

    @property
    def running(self) -> EdgeCall | PostNormCall:
        assert self.call is not None
        return self.call

    def embedding(self, index: int, value: Tensor) -> None:
        if index == 0:
            self.call = self.start(tuple(value.shape[:2]))
        self.running.embedding(index, value)

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.running.attention(layer)

    def heads(self, layer: int, z: Tensor) -> None:
        self.running.heads(layer, z)

    def mlp_input(self, layer: int) -> Tensor:
        return self.running.mlp_input(layer)

    def mlp(self, layer: int, output: Tensor) -> None:
        self.running.mlp(layer, output)

    def final(self) -> Tensor:
        stream = self.running.final()
        self.running.check_complete()
        self.call = None
        return stream
