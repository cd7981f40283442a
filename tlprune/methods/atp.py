"""Attribution patching of nodes: what activation patching would find, to first order, all nodes at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.learning.objectives import LogitDifference
from tlprune.masking.ablation import Ablation
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.sites import nodes as node_sites
from tlprune.methods.effects import check_batch_size, check_objective, check_points, layer_of, slopes
from tlprune.methods.scoring import NodeScoring
from tlprune.sites import Sites
from tlprune.task import Batch, Discovery


@dataclass(frozen=True, kw_only=True)
class AtP(NodeScoring):
    """Score every writer by the gradient of the objective along its own replacement.

    ``score(n) = (x~_n - x_n) . dL/dx_n`` over all positions, the mean over training examples, in the objective's unit;
    positive where the node helps. It estimates :class:`~tlprune.NodePatching` with two forward passes and one backward
    for all nodes together, and equals it where the model is linear behind the node. A saturated softmax or a gate that
    others hold open has no gradient and is missed, and effects of opposite sign may cancel.

    ``steps`` above 1 averages the gradient over as many runs whose embeddings lie on the line from ``x~`` to ``x``, at
    ``k / steps`` for ``k`` from 1 to ``steps``, the clean run included: EAP-IG's path, on nodes. :class:`~tlprune.KL`
    from the full model is flat in the clean run and needs it.

    ``drop="layers"`` is AtP*'s GradDrop: once per layer without gradients through its heads and MLP, then the mean of
    the sizes, ``E_x mean_l |score_l(n)|`` over the layers that are not the node's own. It uncovers direct and indirect
    effects that cancel, takes a forward and backward per layer, and has no sign.

    AtP*'s other part, the QK fix, is of query and key nodes. Embeddings, heads and MLPs are what the residual stream is
    the sum of, and for such nodes AtP* takes the plain gradient too, so there is nothing to fix here.

    Attributes:
        sparsity: fraction of the nodes to remove, in (0, 1).
        nodes: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        pattern: names of the writers that are scored, as of :func:`~tlprune.nodes`.
        objective: ``L``; any one objective.
        steps: points of the path at which the gradient is taken.
        drop: ``"none"`` or ``"layers"``.
        batch_size: examples per forward and backward pass.

    Raises:
        ValueError: the objective is a sum or of the complement, or flat at the only point; gradients of layers are
            dropped in a model of one layer.

    Source: Nanda, "Attribution patching" (2023); Kramar et al., "AtP*" (2024, arXiv 2403.00745), sections 3.1 and 3.2;
    the path of Hanna et al., "Have faith in faithfulness" (2024, arXiv 2403.17806).

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> AtP(nodes=2).find(planted.model, planted.task).names == planted.circuit.nodes
        True
    """

    objective: Any = field(default=LogitDifference())
    steps: int = 1
    drop: Literal["none", "layers"] = "none"
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_objective(self.objective)
        check_batch_size(self.batch_size)
        check_points(self.objective, self.steps)
        if self.drop not in ("none", "layers"):
            raise ValueError(f"drop must be 'none' or 'layers' but is {self.drop!r}. Choose one of these.")

    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        everything = node_sites(model)  # the path goes through the embeddings, whatever is scored
        masked = Masked(model, Masks(everything), ablation)
        examples = discovery.train(self.objective.on).to(masked.backend.device)
        scored = [everything.index(sites.name(place)) for place in range(len(sites))]
        return self._over_layers(masked, examples, progress=progress)[scored]

    def _over_layers(self, masked: Masked, examples: Batch, *, progress: bool) -> Float[Tensor, "site"]:
        points = _path(masked.sites, self.steps)
        options = {"batch_size": self.batch_size, "progress": progress}
        if self.drop == "none":
            return slopes(masked, points, examples, self.objective, **options).sum(0)
        layers = [layer_of(masked.sites.name(place)) for place in range(len(masked.sites))]
        _check_layers(masked.backend.architecture.n_layers)
        total, counts = torch.zeros(len(layers)), torch.zeros(len(layers))
        for layer in range(masked.backend.architecture.n_layers):
            others = torch.tensor([own != layer for own in layers])
            sizes = slopes(masked, points, examples, self.objective, dropped=layer, **options).abs().sum(0)
            total, counts = total + others * sizes, counts + others
        return total / counts


def _path(sites: Sites, steps: int) -> Float[Tensor, "point site"]:
    """All kept but the embeddings, which come in step by step."""
    points = torch.ones(steps, len(sites), dtype=torch.float64)
    points[:, sites.index("input")] = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return points


def _check_layers(count: int) -> None:
    if count < 2:
        raise ValueError(
            "Dropping the gradients of one layer after the other needs at least 2 layers but this model has 1. Use "
            "drop='none'."
        )
