"""Edge attribution patching: what removing each edge would do to a loss, to first order."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tlprune.backends.activations import Activations, Backend
from tlprune.graph import Graph
from tlprune.masking.gradients import edge_gradients
from tlprune.methods.attribution import BatchLoss, GradientScoring, predictions, refuse_flat
from tlprune.task import Batch


@dataclass(frozen=True, kw_only=True)
class EAP(GradientScoring):
    """Edge attribution patching: ``(x~_w - x_w) . dL/dx_r``, two forward passes and one backward for all edges.

    To first order it is the change of the loss when edge ``w -> r`` alone is ablated: ``-dL/dm`` where all masks are 1,
    in the unit of the loss, summed over positions, the mean over training examples. It is exact where the loss is
    linear in what the reader sees. Where the model is saturated it misses what matters: an edge whose work another one
    would take over (an OR gate) has gradient 0.

    Attributes:
        sparsity: fraction of the edges to remove, in (0, 1).
        edges: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        embeddings: ``"merged"``, ``"separate"`` or ``"kept"``, as of :class:`~tlprune.Convention`.
        kv: under grouped-query attention, k and v readers per key/value head or per query head.
        qkv: ``"split"``, or ``"joined"``: an edge into a head carries q, k and v together.
        heads: ``"split"``, or ``"joined"``: all heads of a layer are one node.
        objective: the loss; not :class:`~tlprune.KL`, whose gradient is 0 where nothing is ablated.
        batch_size: examples per pass; what writers send is held for all of them at once, ``4 * writers * tokens *
            d_model`` bytes (77 MB for 8 prompts of 20 tokens in GPT-2 small).
        spans: names of the task's spans, each of which gives every edge a score of its own.

    Source: Syed, Rager, Conmy, "Attribution Patching Outperforms Automated Circuit Discovery" (2023); the sign is such
    that positive helps.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> EAP(edges=len(planted.circuit)).find(planted.model, planted.task) == planted.circuit
        True
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_flat("EAP", self.objective, "EAPIG, whose path leaves that point")

    def gradients(
        self, backend: Backend, graph: Graph, batch: Batch, replaced: Activations, loss: BatchLoss
    ) -> Float[Tensor, "*span edge"]:
        return edge_gradients(
            backend,
            graph,
            batch.clean,
            replaced,
            lambda logits: loss(logits, predictions(logits)),
            positions=batch.positions,
            groups=self.groups(batch),
        )
