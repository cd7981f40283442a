"""Edges and nodes by chance: what every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.masking.ablation import Ablation
from tlprune.masking.sites import edges as edge_sites
from tlprune.methods.scoring import EdgeScoring, NodeScoring
from tlprune.named import chosen
from tlprune.random_circuits import connected_order
from tlprune.sites import Sites
from tlprune.task import Discovery


@dataclass(frozen=True, kw_only=True)
class Random(EdgeScoring):
    """Edges by chance alone; the model and the examples are not looked at.

    Attributes:
        sparsity: fraction of the edges to remove, in (0, 1).
        edges: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        embeddings: ``"merged"``, ``"separate"`` or ``"kept"``, as of :class:`~tlprune.Convention`.
        kv: under grouped-query attention, k and v readers per key/value head or per query head.
        qkv: ``"split"``, or ``"joined"``: an edge into a head carries q, k and v together.
        heads: ``"split"``, or ``"joined"``: all heads of a layer are one node.
        spans: names of the task's spans, at each of which an edge is one of its own.
        shape: ``"connected"``: edges in an order in which a random connected circuit grows, so that those of any size
            are one, but for an edge; by span, those that no prompt of the task has on a path come last; ``"free"``:
            all edges in random order, of which few of a small circuit lie on any path.
        seed: of the choices.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> Random(edges=20).find(planted.model, planted.task).n_effective >= 19
        True
    """

    shape: Literal["connected", "free"] = "connected"
    seed: int = 0
    spans: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in ("connected", "free"):
            raise ValueError(f"shape must be 'connected' or 'free' but is {self.shape!r}. Choose one of these.")

    def sites(self, model: Any) -> Sites:
        return edge_sites(
            model, embeddings=self.embeddings, kv=self.kv, qkv=self.qkv, heads=self.heads, spans=self.spans
        )

    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        return _falling(self._order(sites))

    def _order(self, sites: Sites) -> Int[Tensor, "site"]:
        if self.shape == "connected":
            return connected_order(sites.edges, seed=self.seed)
        return _shuffled(len(sites), self.seed)


@dataclass(frozen=True, kw_only=True)
class RandomNodes(NodeScoring):
    """Heads and MLPs by chance alone, each as likely as another; the model and the examples are not looked at.

    Of one seed, what a higher sparsity keeps is part of what a lower one keeps.

    Attributes:
        sparsity: fraction of the nodes to remove, in (0, 1).
        nodes: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        pattern: names of the writers to choose among, as of :func:`~tlprune.nodes`; by default all heads and MLPs.
        include: names of those that go last, such as ``"m*"`` for random heads beside all MLPs, which a method that
            trains masks often keeps; they count as kept.
        seed: of the choices.

    Raises:
        ValueError: a number is out of range; or in :meth:`find`, a name matches nothing.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> few, more = (RandomNodes(nodes=count).find(planted.model, planted.task) for count in (2, 5))
        >>> len(few), set(few.names) < set(more.names)
        (2, True)
    """

    pattern: str = "a*|m*"
    include: str | None = None
    seed: int = 0

    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        values = _falling(_shuffled(len(sites), self.seed))
        return values if self.include is None else values + len(sites) * chosen(sites, self.include)


def _falling(order: Int[Tensor, "site"]) -> Float[Tensor, "site"]:
    """Scores that rank sites in this order, from their number down to 1."""
    values = torch.empty(len(order))
    values[order] = torch.arange(len(order), 0, -1, dtype=values.dtype)
    return values


def _shuffled(count: int, seed: int) -> Int[Tensor, "site"]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
