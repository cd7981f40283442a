"""Exact patching: what the loss of each single edge or node does, by running the model without it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.learning.hard_metric import HardMetric
from tlprune.learning.objectives import LogitDifference
from tlprune.learning.resumed_trials import reach_of, trials_of
from tlprune.masking.ablation import Ablation, Resample
from tlprune.masking.cache import reference_predictions
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.methods.effects import bar, check_batch_size, check_objective, losses_under, reference_of
from tlprune.methods.scoring import AttentionScoring, EdgeScoring, NodeScoring, Scoring
from tlprune.sites import Sites
from tlprune.task import Batch, Discovery

Direction = Literal["noising", "denoising"]
_EXAMPLES = 32  # prompts whose activations are held while edge after edge is tried
_AT_ONCE = 256  # masks that are held in memory


@dataclass(frozen=True, kw_only=True)
class _Patching(Scoring, ABC):
    """What exact patching of edges and of nodes share."""

    objective: Any = field(default=LogitDifference())
    direction: Direction = "noising"
    batch_size: int = 512

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
        clean = discovery.train(self.objective.on)
        if self.direction == "noising":
            return self.rises(model, clean, clean, sites, ablation, progress=progress)
        return -self.rises(model, _exchanged(clean, ablation), clean, sites, ablation, progress=progress)

    @abstractmethod
    def rises(
        self, model: Any, examples: Batch, clean: Batch, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        """How much higher the objective is without each site; ``clean`` has what the full model is asked about."""


@dataclass(frozen=True, kw_only=True)
class EdgePatching(_Patching, EdgeScoring):
    """Replace every edge alone and measure the objective: what gradients only estimate.

    ``score(e) = L(all edges but e) - L(all edges)``, the mean over training examples, in the objective's unit (logits
    or nats); positive where the edge helps. Only the edge's own reader sees the replacement at first hand; everything
    behind that reader, and nothing else, is computed anew, for many edges in one run. Exact, and the slowest of the
    scores.

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
        qkv: ``"split"``, or ``"joined"``: an edge into a head carries q, k and v together.
        heads: ``"split"``, or ``"joined"``: all heads of a layer are one node.
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

    def rises(
        self, model: Any, examples: Batch, clean: Batch, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        size = min(_EXAMPLES, self.batch_size)
        parts = bar(list(zip(examples.split(size), clean.split(size), strict=True)), progress)
        shares = [
            len(part) / len(examples) * self._rises_of(HardMetric(model, sites, ablation, part, self.objective), asked)
            for part, asked in parts
        ]
        return torch.stack(shares).sum(0)

    def _rises_of(self, metric: HardMetric, clean: Batch) -> Float[Tensor, "site"]:
        """On examples that fit in one run."""
        reference = reference_predictions(metric.backend, clean.to(metric.backend.device))
        metric.parts = [replace(part, reference=reference) for part in metric.parts]
        whole = metric(torch.ones(len(metric.graph), dtype=torch.bool))
        trials = trials_of(metric, reach_of(metric), batch_size=self.batch_size)
        found = []
        for readers in metric.graph.readers:
            places = torch.arange(readers.start, readers.start + readers.n_edges)
            for part in places.split(trials.most):
                found += trials.values(_without(part, len(metric.graph)).bool())
        exact = torch.promote_types(metric.backend.dtype, torch.float32)
        return torch.tensor(found, dtype=torch.float64).sub(whole).to(exact)


@dataclass(frozen=True, kw_only=True)
class _WholeRuns(_Patching, ABC):
    """Exact patching by whole runs of the model, one for each site."""

    def rises(
        self, model: Any, examples: Batch, clean: Batch, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        masked = Masked(model, Masks(sites), ablation)
        examples, clean = examples.to(masked.backend.device), clean.to(masked.backend.device)
        reference = reference_of(masked.cache(clean), clean, batch_size=self.batch_size)
        options = {"cache": masked.cache(examples), "reference": reference, "batch_size": self.batch_size}
        (whole,) = losses_under(masked, torch.ones(1, len(sites)), examples, self.objective, **options)
        found = [
            losses_under(masked, _without(part, len(sites)), examples, self.objective, **options)
            for part in bar(torch.arange(len(sites)).split(_AT_ONCE), progress)
        ]
        return torch.cat(found) - whole


@dataclass(frozen=True, kw_only=True)
class AttentionPatching(_WholeRuns, AttentionScoring):
    """Replace what one head moves from one span to another, by keys or by values, alone, and measure the objective.

    ``score(e) = L(all but e) - L(full)``, the mean over training examples, in the objective's unit; positive where the
    attention edge helps. Exact: what :class:`~tlprune.AttentionEAP` estimates. One run of the model per site and batch
    of examples, in which attention is run once for each span of queries.

    ``direction="denoising"`` restores the clean keys or values in the run on the twin instead: ``L(twin's run) -
    L(twin's run with e clean)``. It needs :class:`~tlprune.Resample`.

    Attributes:
        sparsity: fraction of the attention edges to remove, in (0, 1).
        attention_edges: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        pattern: names of readers of keys and values, as of :func:`~tlprune.attention_edges`.
        spans: names of the task's spans.
        pairs: source and query spans, such as ``"s1->end"``; by default all.
        kv: under grouped-query attention, keys and values per key/value head or per query head.
        objective: ``L``; any one objective, :class:`~tlprune.KL` too.
        direction: ``"noising"`` or ``"denoising"``.
        batch_size: pairs of site and example per forward pass.

    Raises:
        ValueError: the objective is a sum or of the complement; denoising under another ablation.

    Source: Haklay et al., "Position-aware Automatic Circuit Discovery" (2025), on edges between positions.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> method = AttentionPatching(attention_edges=1, spans=planted.task.span_names, pairs=("copied->end",))
        >>> method.find(planted.model, planted.task).names
        ['a1.h1<v>@copied->end']
    """

    def __post_init__(self) -> None:
        AttentionScoring.__post_init__(self)
        self.check()


@dataclass(frozen=True, kw_only=True)
class NodePatching(_WholeRuns, NodeScoring):
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
