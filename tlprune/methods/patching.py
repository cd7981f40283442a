"""Exact patching: what the loss of each single edge or node does, by running the model without it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.learning.objectives import LogitDifference
from tlprune.masking.ablation import Ablation, Resample
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.methods.effects import bar, check_batch_size, check_objective, losses_under, reference_of
from tlprune.methods.scoring import EdgeScoring, NodeScoring, Scoring
from tlprune.sites import Sites
from tlprune.task import Batch, Discovery

Direction = Literal["noising", "denoising"]
_AT_ONCE = 256  # masks that are held in memory


@dataclass(frozen=True, kw_only=True)
class _Patching(Scoring):
    """What exact patching of edges and of nodes share."""

    objective: Any = field(default=LogitDifference())
    direction: Direction = "noising"
    batch_size: int = 256

    def check(self) -> None:
        check_objective(self.objective)
        check_batch_size(self.batch_size)
        if self.direction not in ("noising", "denoising"):
            raise ValueError(
                f"direction must be 'noising' or 'denoising' but is {self.direction!r}. Choose one of these."
            )

    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        masked = Masked(model, Masks(sites), ablation)
        clean = discovery.train(self.objective.on).to(masked.backend.device)
        reference = reference_of(masked.cache(clean), clean, batch_size=self.batch_size)
        examples = clean if self.direction == "noising" else _exchanged(clean, ablation)
        options = {"cache": masked.cache(examples), "reference": reference, "batch_size": self.batch_size}
        (whole,) = losses_under(masked, torch.ones(1, len(sites)), examples, self.objective, **options)
        places = torch.arange(len(sites)).split(_AT_ONCE)
        found = [
            losses_under(masked, _without(part, len(sites)), examples, self.objective, **options)
            for part in bar(places, progress)
        ]
        change = torch.cat(found) - whole
        return change if self.direction == "noising" else -change


@dataclass(frozen=True, kw_only=True)
class EdgePatching(_Patching, EdgeScoring):
    """Replace every edge alone and measure the objective: what gradients only estimate.

    ``score(e) = L(all edges but e) - L(all edges)``, the mean over training examples, in the objective's unit (logits
    or nats); positive where the edge helps. Only the edge's own reader sees the replacement at first hand; everything
    behind that reader is computed anew. One run of the model per edge and batch of examples: exact, and the slowest of
    the scores.

    What is backed up scores 0: either input of an OR gate can be lost alone. ``direction="denoising"`` asks the
    opposite, ``score(e) = L(twin's run) - L(twin's run with e clean)``, which sees both inputs of an OR gate and none
    of an AND gate. It needs :class:`~tlprune.Resample`. (An edge alone restored into the empty *circuit* would be no
    measure: its writer sees nothing clean, so it carries nothing but the embeddings' ``input->logits``.)

    Attributes:
        sparsity: fraction of the edges to remove, in (0, 1).
        edges: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        embeddings: ``"merged"``, ``"separate"`` or ``"kept"``, as of :class:`~tlprune.Convention`.
        kv: under grouped-query attention, k and v readers per key/value head or per query head.
        objective: ``L``; any one objective, :class:`~tlprune.KL` too.
        direction: ``"noising"``: one edge replaced in the clean run; ``"denoising"``: one edge clean in the run on the
            twin.
        batch_size: pairs of edge and example per forward pass.

    Raises:
        ValueError: the objective is a sum or of the complement; denoising under another ablation.

    Source: Wang et al., "Interpretability in the Wild" (2022), path patching with single edges; Heimersheim and Nanda,
    "How to use and interpret activation patching" (2024), on the two directions.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> EdgePatching(edges=2).find(planted.model, planted.task) == planted.circuit
        True
    """

    def __post_init__(self) -> None:
        EdgeScoring.__post_init__(self)
        self.check()


@dataclass(frozen=True, kw_only=True)
class NodePatching(_Patching, NodeScoring):
    """Replace every writer alone and measure the objective: activation patching of embeddings, heads and MLPs.

    ``score(n) = L(without n) - L(full)``, the mean over training examples, in the objective's unit; positive where the
    node helps. What reads the node sees its replacement, and everything behind is computed anew. One run of the model
    per node and batch of examples.

    ``direction="denoising"`` restores the node's clean value in the run on the twin instead: ``L(twin's run) - L(twin's
    run with n clean)``. It needs :class:`~tlprune.Resample`.

    Attributes:
        sparsity: fraction of the nodes to remove, in (0, 1).
        nodes: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        pattern: names of the writers that are scored, as of :func:`~tlprune.nodes`.
        objective: ``L``; any one objective, :class:`~tlprune.KL` too.
        direction: ``"noising"`` or ``"denoising"``.
        batch_size: pairs of node and example per forward pass.

    Raises:
        ValueError: the objective is a sum or of the complement; denoising under another ablation.

    Source: Vig et al., "Causal Mediation Analysis for Interpreting Neural NLP" (2020); Meng et al., "Locating and
    Editing Factual Associations in GPT" (2022).

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> NodePatching(nodes=2).find(planted.model, planted.task).names == planted.circuit.nodes
        True
    """

    def __post_init__(self) -> None:
        NodeScoring.__post_init__(self)
        self.check()


def _without(places: Int[Tensor, "mask"], count: int) -> Float[Tensor, "mask site"]:
    """A mask for each place, with all sites but this one."""
    masks = torch.ones(len(places), count)
    masks[torch.arange(len(places)), places] = 0
    return masks


def _exchanged(examples: Batch, ablation: Ablation) -> Batch:
    """Twins as prompts and prompts as twins, so that a site that is replaced becomes clean."""
    if not isinstance(ablation, Resample):
        raise ValueError(
            f"Denoising restores a clean activation in the run on the twin, so it needs Resample ablation, but got "
            f"{ablation.as_dict()['name']}. Leave ablation out, or use direction='noising'."
        )
    return replace(examples, clean=examples.corrupt, corrupt=examples.clean)
