"""The head importance score for pruning."""

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
from tlprune.methods.effects import check_batch_size, check_objective, check_slope, over_layer_norms, slopes
from tlprune.methods.scoring import NodeScoring
from tlprune.sites import Sites
from tlprune.task import Discovery


@dataclass(frozen=True, kw_only=True)
class HISP(NodeScoring):
    """Score heads by the mean *size* of the first-order effect of their replacement, normalised within each layer.

    ``I_h = E_x |(x~_h - x_h) . dL/dx_h|``, the dot product over all positions of an example, then ``I_h`` over the root
    of the sum of squares of its layer's. Under :class:`~tlprune.Zero` this is ``E_x |Att_h(x) . dL/dAtt_h(x)|``, the
    score of the paper; under :class:`~tlprune.Resample` it is the variant to which ACDC was compared, which takes the
    difference to the corrupted activation. Unlike :class:`~tlprune.AtP` it has no sign, so what helps on one half of
    the examples and harms on the other counts; and normalised scores of two layers say nothing of which layer matters.

    ACDC's comparison scored q, k and v of each head and the MLPs, normalised together. Writers are scored here, so a
    head has one score; MLPs join with ``pattern="a*|m*"``. Embeddings, with ``"*"``, are a layer of their own.

    Attributes:
        sparsity: fraction of the nodes to remove, in (0, 1).
        nodes: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        pattern: names of the writers that are scored, as of :func:`~tlprune.nodes`; by default all heads.
        objective: ``L``; any one objective that is not flat where everything is kept.
        normalise: ``"layer"``, or ``"none"`` for scores in the objective's unit.
        batch_size: examples per forward and backward pass.

    Raises:
        ValueError: the objective is a sum, of the complement, or flat.

    Source: Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?" (NeurIPS 2019), section 4.1; Conmy et al.,
    "Towards Automated Circuit Discovery" (NeurIPS 2023), section 4, for differences and MLPs.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("induction")
        >>> HISP(nodes=2).find(planted.model, planted.task).names == planted.circuit.heads
        True
    """

    pattern: str = "a*"
    objective: Any = field(default=LogitDifference())
    normalise: Literal["layer", "none"] = "layer"
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_objective(self.objective)
        check_slope(self.objective)
        check_batch_size(self.batch_size)
        if self.normalise not in ("layer", "none"):
            raise ValueError(f"normalise must be 'layer' or 'none' but is {self.normalise!r}. Choose one of these.")

    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        masked = Masked(model, Masks(sites), ablation)
        examples = discovery.train(self.objective.on).to(masked.backend.device)
        kept = torch.ones(1, len(sites))
        shares = slopes(masked, kept, examples, self.objective, batch_size=self.batch_size, progress=progress)
        sizes = shares.abs().sum(0)
        return sizes if self.normalise == "none" else over_layer_norms(sizes, sites)
