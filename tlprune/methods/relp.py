"""Relevance patching: attribution patching whose gradients follow the rules of layer-wise relevance propagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from tlprune.backends.activations import Activations, Backend
from tlprune.graph import Graph
from tlprune.masking.gradients import edge_gradients
from tlprune.masking.relevance import relevance_rules
from tlprune.methods.attribution import BatchLoss, GradientScoring, predictions, refuse_flat
from tlprune.task import Batch


@dataclass(frozen=True, kw_only=True)
class RelP(GradientScoring):
    """Relevance patching: ``(x~_w - x_w) . R_r``, with propagation coefficients ``R`` in place of gradients.

    Coefficients pass through what is not linear as through the factor that it multiplied by, instead of its slope,
    which for a saturated activation is 0: norms divide by a number, an activation function multiplies by
    ``f(x) / x``, of a gated product each factor takes half. Through linear maps they are gradients. Without biases, and
    with attention ``"frozen"``, a logit difference is conserved: under Zero ablation the edges out of the input add up
    to it, and so do the edges into the logits.

    It takes three forward passes and one backward for all edges: one of them measures norms.

    Attributes:
        sparsity: fraction of the edges to remove, in (0, 1).
        edges: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        embeddings: ``"merged"``, ``"separate"`` or ``"kept"``, as of :class:`~tlprune.Convention`.
        kv: under grouped-query attention, k and v readers per key/value head or per query head.
        qkv: ``"split"``, or ``"joined"``: an edge into a head carries q, k and v together.
        heads: ``"split"``, or ``"joined"``: all heads of a layer are one node.
        objective: the loss; not :class:`~tlprune.KL`, whose gradient is 0 where nothing is ablated.
        batch_size: examples per pass; what writers send is held for all of them at once.
        spans: names of the task's spans, each of which gives every edge a score of its own.
        attention: ``"gradient"``: coefficients pass through attention patterns as gradients do, which the authors' code
            has by default; ``"frozen"``: patterns are constants (their AH-rule), so that all edges into q and k have
            score 0.

    Source: Jafari, Eberle, Khakzar, Nanda, "RelP: Faithful and Efficient Circuit Discovery via Relevance Patching"
    (2025), arXiv 2508.21258; the sign is such that positive helps.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> RelP(edges=len(planted.circuit)).find(planted.model, planted.task) == planted.circuit
        True
    """

    attention: Literal["gradient", "frozen"] = "gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_flat("RelP", self.objective, "EAPIG, whose path leaves that point")
        if self.attention not in ("gradient", "frozen"):
            raise ValueError(
                f"attention must be 'gradient' or 'frozen' but is {self.attention!r}. Choose one of these."
            )

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
            rules=relevance_rules(backend, batch.clean, patterns=self.attention == "gradient"),
        )
