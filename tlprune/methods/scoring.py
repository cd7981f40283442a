"""What methods share that give every site a score: the sites, the size, the selection, the provenance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.masking.ablation import Ablation
from tlprune.masking.masks import kept_at
from tlprune.masking.sites import attention_edges as attention_sites
from tlprune.masking.sites import edges as edge_sites
from tlprune.masking.sites import follow
from tlprune.masking.sites import nodes as node_sites
from tlprune.methods.ablations import ablation_for
from tlprune.methods.alive import alive
from tlprune.methods.provenance import provenance_of
from tlprune.scores import Scores, check_count
from tlprune.selection import Selection, Top
from tlprune.sites import Sites
from tlprune.task import Discovery, Task


class Scoring(ABC):
    """A method that scores sites. Its circuit is what its ``selection`` takes of the scores.

    A subclass gives :meth:`sites`, :meth:`count` and :meth:`values`, and has a field ``selection``.
    """

    selection: Selection

    @abstractmethod
    def sites(self, model: Any) -> Sites:
        """Where it scores."""

    @abstractmethod
    def count(self, sites: Sites) -> int:
        """How many sites its circuit keeps; a ValueError if there are not so many."""

    @abstractmethod
    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        """A number for every site, on the CPU; positive where it helps."""

    def score(
        self, model: Any, task: Task | Discovery, *, ablation: Ablation | None = None, progress: bool = False
    ) -> Scores:
        """A score for every site; positive where it helps.

        Args:
            model: a TransformerLens model; left as it was.
            task: prompt pairs; only train and validation examples are used.
            ablation: what replaces an ablated site; by default :class:`~tlprune.Resample`. ``Mean()`` without reference
                prompts goes over the training prompts, corrupted.
            progress: whether to show a progress bar.
        """
        discovery = task.discovery if isinstance(task, Task) else task
        sites, ablation = follow(self.sites(model), model, discovery), ablation_for(discovery, ablation)
        self.count(sites)
        provenance = provenance_of(self, model, discovery=discovery, sites=sites, ablation=ablation)
        values, samples = self.sampled(model, discovery, sites, ablation, progress=progress)
        check_numbers(values)
        return Scores(sites, values, provenance, samples)

    def sampled(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> tuple[Float[Tensor, "site"], Float[Tensor, "sample site"] | None]:
        """The values, and those of parts of the examples where the method has them: what ``Consistent`` draws from."""
        return self.values(model, discovery, sites, ablation, progress=progress), None

    def find(
        self, model: Any, task: Task | Discovery, *, ablation: Ablation | None = None, progress: bool = False
    ) -> Circuit:
        """The circuit that the selection takes of the scores; the arguments are those of :meth:`score`.

        Raises:
            ValueError: of edges, no path leads from an embedding to the logits; the smallest number that has one is
                named.
        """
        scores = self.score(model, task, ablation=ablation, progress=progress)
        count = self.count(scores.sites)
        return alive(self.selection.select(scores, count), scores, count=count, selection=self.selection)


@dataclass(frozen=True, kw_only=True)
class EdgeScoring(Scoring):
    """A method that scores edges.

    Attributes:
        sparsity: fraction of the edges to remove, in (0, 1).
        edges: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        embeddings: ``"merged"``, ``"separate"`` or ``"kept"``, as of :class:`~tlprune.Convention`.
        kv: under grouped-query attention, k and v readers per key/value head or per query head.
        qkv: ``"split"``, or ``"joined"``: an edge into a head carries q, k and v together.
        heads: ``"split"``, or ``"joined"``: all heads of a layer are one node.
    """

    sparsity: float = 0.95
    edges: int | None = None
    selection: Selection = field(default=Top())
    embeddings: Literal["merged", "separate", "kept"] = "merged"
    kv: Literal["shared", "per_query_head"] = "shared"
    qkv: Literal["split", "joined"] = "split"
    heads: Literal["split", "joined"] = "split"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity, self.edges)

    def sites(self, model: Any) -> Sites:
        return edge_sites(model, embeddings=self.embeddings, kv=self.kv, qkv=self.qkv, heads=self.heads)

    def count(self, sites: Sites) -> int:
        return size(self.edges, self.sparsity, sites)


@dataclass(frozen=True, kw_only=True)
class NodeScoring(Scoring):
    """A method that scores writers: embeddings, heads and MLPs.

    Attributes:
        sparsity: fraction of the nodes to remove, in (0, 1).
        nodes: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        pattern: names of the writers that are scored, as of :func:`~tlprune.nodes`.
    """

    sparsity: float = 0.95
    nodes: int | None = None
    selection: Selection = field(default=Top())
    pattern: str = "*"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity, self.nodes)

    def sites(self, model: Any) -> Sites:
        return node_sites(model, self.pattern)

    def count(self, sites: Sites) -> int:
        return size(self.nodes, self.sparsity, sites)


@dataclass(frozen=True, kw_only=True)
class AttentionScoring(Scoring):
    """A method that scores attention edges.

    Attributes:
        sparsity: fraction of the attention edges to remove, in (0, 1).
        attention_edges: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        pattern: names of readers of keys and values, as of :func:`~tlprune.attention_edges`.
        spans: names of the task's spans.
        pairs: source and query spans, such as ``"s1->end"``; by default all.
        kv: under grouped-query attention, keys and values per key/value head or per query head.
    """

    sparsity: float = 0.95
    attention_edges: int | None = None
    selection: Selection = field(default=Top())
    pattern: str = "*"
    spans: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    kv: Literal["shared", "per_query_head"] = "shared"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity, self.attention_edges)

    def sites(self, model: Any) -> Sites:
        return attention_sites(model, self.pattern, spans=self.spans, pairs=self.pairs, kv=self.kv)

    def count(self, sites: Sites) -> int:
        return size(self.attention_edges, self.sparsity, sites)


def check_numbers(values: Tensor) -> None:
    """Raise a FloatingPointError for scores that are not numbers."""
    if bool(values.isnan().any()):
        raise FloatingPointError(
            f"{int(values.isnan().sum()):,} of {len(values):,} scores are not numbers, so the model's activations or "
            "gradients overflow on these examples. Load it in float32, or look for infinities in its weights."
        )


def check_sparsity(sparsity: float, count: int | None) -> None:
    """Raise a ValueError unless the sparsity is used and possible, or a count takes its place."""
    if count is None and not 0 < sparsity < 1:
        raise ValueError(f"Sparsity must lie between 0 and 1 but is {sparsity}. {_fraction(sparsity)}")


def _fraction(sparsity: float) -> str:
    """What to give instead of a percentage."""
    percent = sparsity if 1 < sparsity < 100 else 95
    return f"For {percent:g}% removed give {percent / 100:g}."


def size(count: int | None, sparsity: float, sites: Sites) -> int:
    """How many of these sites are kept: the count, if there is one, or what the sparsity leaves."""
    if count is None:
        return kept_at(sparsity, len(sites))
    check_count(count, sites)
    return count
