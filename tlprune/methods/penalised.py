"""What subnetwork probing and uniform gradient sampling share: one price for what is kept, and no target."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

from tlprune.gates import Gate
from tlprune.learning.budgets import Penalty
from tlprune.learning.objectives import KL
from tlprune.learning.optimiser import Optimiser
from tlprune.masking.ablation import Ablation
from tlprune.masking.masks import Masks
from tlprune.masking.sites import edges as edge_sites
from tlprune.masking.sites import nodes as node_sites
from tlprune.methods.mask_training import MaskTraining
from tlprune.scores import check_count
from tlprune.sites import Sites
from tlprune.task import Discovery

HEADS_AND_MLPS = "a*|m*"


@dataclass(frozen=True, kw_only=True)
class Penalised(MaskTraining):
    """Masks over edges, or over heads and MLPs, under ``objective + regularisation * (expected fraction kept)``.

    A subclass has a :meth:`gate` and an :meth:`optimiser`.

    Attributes:
        level: ``"edges"``, or ``"nodes"``: every head and MLP.
        regularisation: the price of keeping all sites instead of none, in units of the objective (nats).
        edges: how many edges to keep, those whose gates are most likely open; by default all with ``log_alpha > 0``.
        nodes: the same of nodes.
        objective: what training lowers beside the price.
        embeddings: of edges: ``"merged"``, ``"separate"`` or ``"kept"``, as of :class:`~tlprune.Convention`.
        kv: of edges: under grouped-query attention, k and v readers per key/value head or per query head.
        qkv: of edges: ``"split"``, or ``"joined"``: an edge into a head carries q, k and v together.
        heads: of edges: ``"split"``, or ``"joined"``: all heads of a layer are one node.
        steps: training steps.
        rate: learning rate of the masks.
        samples: mask samples per step, each for an equal part of the batch.
        batch_size: examples per step.
        validate_every: steps between hard measurements on validation examples.
        seed: of mask samples and example order.
    """

    level: Literal["edges", "nodes"] = "edges"
    regularisation: float = 10.0
    edges: int | None = None
    nodes: int | None = None
    objective: Any = field(default=KL())
    embeddings: Literal["merged", "separate", "kept"] = "merged"
    kv: Literal["shared", "per_query_head"] = "shared"
    qkv: Literal["split", "joined"] = "split"
    heads: Literal["split", "joined"] = "split"
    steps: int = 300
    rate: float = 0.1
    samples: int = 4
    batch_size: int = 32
    validate_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.level not in ("edges", "nodes"):
            raise ValueError(f"level must be 'edges' or 'nodes' but is {self.level!r}. Choose one of these.")
        other = "nodes" if self.level == "edges" else "edges"
        if getattr(self, other) is not None:
            raise ValueError(
                f"Masks over {self.level} keep a number of {self.level} but were given {other}={getattr(self, other)}. "
                f"Give {self.level}=, or level={other!r}."
            )
        if not (math.isfinite(self.regularisation) and self.regularisation >= 0):
            raise ValueError(
                f"The price of what is kept must be at least 0 and finite but is {self.regularisation}. Raise it from "
                "0 for fewer sites."
            )
        for name in ("steps", "samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 but is {getattr(self, name)}. Give a positive number.")

    @abstractmethod
    def gate(self) -> Gate:
        """The gate of every site."""

    @abstractmethod
    def optimiser(self) -> Optimiser:
        """How the masks are trained."""

    def sites(self, model: Any) -> Sites:
        if self.level == "nodes":
            return node_sites(model, HEADS_AND_MLPS)
        return edge_sites(model, embeddings=self.embeddings, kv=self.kv, qkv=self.qkv, heads=self.heads)

    def keep(self, sites: Sites) -> dict[str, int]:
        count = self.edges if self.level == "edges" else self.nodes
        if count is None:
            return {}
        check_count(count, sites)
        return {self.level: count}

    def masks(self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool) -> Masks:
        return Masks(sites, self.gate())

    def plan(self, masks: Masks) -> dict[str, Any]:
        return {
            "objective": self.objective,
            "budget": Penalty(self.regularisation),
            "steps": self.steps,
            "batch_size": self.batch_size,
            "optimiser": self.optimiser(),
            "validate_every": self.validate_every,
            "seed": self.seed,
        }
