"""What replacing each attention edge between named spans would do to a loss, to first order or along a path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.learning.objectives import LogitDifference
from tlprune.masking.ablation import Ablation
from tlprune.masking.installing import refuse_installed
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.methods.effects import bar, check_batch_size, check_objective, check_points
from tlprune.methods.scoring import AttentionScoring
from tlprune.sites import Sites
from tlprune.task import Batch, Discovery


@dataclass(frozen=True, kw_only=True)
class AttentionEAP(AttentionScoring):
    """Score what each head moves from one span to another, by its keys or values, by the gradient of its mask.

    ``score(e) = -dL/dm_e`` with all masks at 1, the mean over training examples, in the objective's unit; positive
    where the attention edge helps. For values at span ``s`` and queries in span ``t`` that is ``sum_{p in t, j in s}
    A_pj (v~_j - v_j) . dL/dz_p``, with the attention ``A`` of the clean run; for keys the attention itself changes. It
    is what replacing the edge alone would do (:class:`~tlprune.AttentionPatching`), to first order: a saturated softmax
    has no gradient by its keys, although it needs them. The scores of a reader for all pairs add up to its score
    without spans.

    ``steps`` above 1 takes the mean of the gradients where *all* masks are ``k / steps``, for ``k`` from 1 to
    ``steps``. In the limit the scores then add up to what is lost with every attention edge replaced, ``L(none) -
    L(full)``; :class:`~tlprune.KL` from the full model, flat where all are kept, needs it.

    The scores stand beside those of edges at spans, ``tp.EAP(spans=...)``, in one unit.

    Attributes:
        sparsity: fraction of the attention edges to remove, in (0, 1).
        attention_edges: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        pattern: names of readers of keys and values, as of :func:`~tlprune.attention_edges`.
        spans: names of the task's spans.
        pairs: source and query spans, such as ``"s1->end"``; by default all.
        kv: under grouped-query attention, keys and values per key/value head or per query head.
        objective: ``L``; any one objective.
        steps: points of the path at which the gradient is taken.
        batch_size: examples per forward and backward pass.

    Raises:
        ValueError: the objective is a sum or of the complement, or flat at the only point.

    Source: Haklay et al., "Position-aware Automatic Circuit Discovery" (2025), on edges between positions. The sign is
    such that positive helps.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("adder")
        >>> method = AttentionEAP(attention_edges=2, spans=planted.task.span_names)
        >>> method.find(planted.model, planted.task).names
        ['a0.h2<v>@y->end', 'a0.h3<v>@x->end']
    """

    objective: Any = field(default=LogitDifference())
    steps: int = 1
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_objective(self.objective)
        check_batch_size(self.batch_size)
        check_points(self.objective, self.steps)

    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        refuse_installed(model)
        masked = Masked(model, Masks(sites), ablation)
        examples = discovery.train(self.objective.on).to(masked.backend.device)
        cache, total = masked.cache(examples), torch.zeros(len(sites), dtype=_exact(masked))
        for batch in bar(list(examples.split(self.batch_size)), progress):
            options = {"replaced": cache.replaced(batch), "reference": cache.reference(batch)}
            for step in range(1, self.steps + 1):
                slope = self._slope(masked, step / self.steps, batch, **options)
                total -= slope.cpu() * len(batch) / len(examples) / self.steps
        return total

    def _slope(
        self, masked: Masked, at: float, batch: Batch, *, replaced: Any, reference: Tensor
    ) -> Float[Tensor, "site"]:
        """``dL/dm`` of a batch where all masks have one value."""
        mask = torch.full((len(masked.sites),), at, dtype=_exact(masked), device=masked.backend.device)
        logits = masked(batch, mask=mask.requires_grad_(), replaced=replaced)
        return torch.autograd.grad(self.objective(logits, batch, reference), mask)[0]


def _exact(masked: Masked) -> torch.dtype:
    return torch.promote_types(masked.backend.dtype, torch.float32)
