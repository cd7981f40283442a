"""ACDC: remove one edge after the other, from the logits back, where the metric hardly rises."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from tlprune.circuit import Circuit
from tlprune.learning.hard_metric import HardMetric, stream_of
from tlprune.learning.objectives import KL, Objective, Sum
from tlprune.learning.resumed_trials import reach_of, trials_of
from tlprune.masking.ablation import Ablation
from tlprune.masking.sites import edges as edge_sites
from tlprune.methods.ablations import ablation_for
from tlprune.methods.acdc_checkpoint import restore, save
from tlprune.methods.acdc_search import Search
from tlprune.methods.provenance import plain, provenance_of
from tlprune.scores import Scores
from tlprune.task import Batch, Discovery, Task

# How far runs of many candidates and of single ones may be apart, relative to the metric's size and to 1 at least.
ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-6, torch.bfloat16: 0.05, torch.float16: 0.01}
EVERY = 60  # seconds between checkpoints
SPREAD = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class ACDC:
    """Remove every edge without which the metric rises by less than a threshold, given what was removed before.

    Edges are tried one after the other in the reverse order of the graph: readers from the logits back, within a block
    all v, then all k, then all q, each from the last head to the first, and for each reader its writers from the last
    to the first. What a removed edge carries is replaced as the ablation says. The metric without an edge is compared
    with that of the current circuit, not with that of the full model.

    The circuit's size follows from the threshold. The decisions are those of the paper's algorithm, which runs the
    model for each edge (``tlprune.methods.acdc_plain``); what makes them fast is in docs/architecture.md. A removed
    edge into a node does not remove that node's edges out, so ``circuit.effective`` may be smaller.

    Attributes:
        threshold: least rise of the metric for which an edge stays, in its unit (nats for KL): the paper's tau.
        objective: the metric, lower for a better circuit.
        examples: how many of the training examples are used, the first ones; ``None`` for all.
        embeddings: ``"merged"``, ``"separate"`` or ``"kept"``, as of :class:`~tlprune.Convention`.
        kv: under grouped-query attention, k and v readers per key/value head or per query head.
        qkv: ``"split"``, or ``"joined"``: an edge into a head carries q, k and v together.
        heads: ``"split"``, or ``"joined"``: all heads of a layer are one node.
        batch_size: most prompts in one run, the same one under several candidates counting as several.

    Source: Conmy et al., "Towards Automated Circuit Discovery for Mechanistic Interpretability" (NeurIPS 2023).

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> ACDC(threshold=0.1).find(planted.model, planted.task) == planted.circuit
        True
    """

    threshold: float = 0.01
    objective: Objective | Sum = field(default=KL())
    examples: int | None = 50
    embeddings: Literal["merged", "separate", "kept"] = "merged"
    kv: Literal["shared", "per_query_head"] = "shared"
    qkv: Literal["split", "joined"] = "split"
    heads: Literal["split", "joined"] = "split"
    batch_size: int = 512

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        stream_of(self.objective)
        for name, least in {"examples": self.examples, "batch_size": self.batch_size}.items():
            if least is not None and least < 1:
                raise ValueError(f"{name} must be at least 1 but is {least}. Leave it out for the default.")

    def find(
        self,
        model: Any,
        task: Task | Discovery,
        *,
        ablation: Ablation | None = None,
        checkpoint: str | Path | None = None,
        progress: bool = False,
    ) -> Circuit:
        """The circuit at the threshold.

        Args:
            model: a TransformerLens model; left as it was.
            task: prompt pairs; only training examples are used.
            ablation: what replaces a removed edge; by default :class:`~tlprune.Resample`. ``Mean()`` without reference
                prompts goes over the training prompts, corrupted.
            checkpoint: a file for the decisions so far, from which a search that was stopped goes on.
            progress: whether to show a progress bar.
        """
        (circuit,) = self.sweep(
            model, task, (self.threshold,), ablation=ablation, checkpoint=checkpoint, progress=progress
        )
        return circuit

    def sweep(
        self,
        model: Any,
        task: Task | Discovery,
        thresholds: Sequence[float],
        *,
        ablation: Ablation | None = None,
        checkpoint: str | Path | None = None,
        progress: bool = False,
    ) -> list[Circuit]:
        """The circuit at each of several thresholds, the same as found one by one, in the order given.

        Thresholds share all decisions up to the first edge that one keeps and another removes.

        Args:
            model: a TransformerLens model; left as it was.
            task: prompt pairs; only training examples are used.
            thresholds: in place of the method's own.
            ablation: what replaces a removed edge, as for :meth:`find`.
            checkpoint: a file for the decisions so far, from which a sweep that was stopped goes on.
            progress: whether to show a progress bar.
        """
        for threshold in thresholds:
            check_threshold(threshold)
        discovery = task.discovery if isinstance(task, Task) else task
        sites, ablation = (
            edge_sites(model, embeddings=self.embeddings, kv=self.kv, qkv=self.qkv, heads=self.heads),
            ablation_for(discovery, ablation),
        )
        about = provenance_of(self, model, discovery=discovery, sites=sites, ablation=ablation)
        examples = self._first(discovery.train(stream_of(self.objective)))
        metric = HardMetric(model, sites, ablation, examples, self.objective, batch_size=self.batch_size)
        reach = reach_of(metric)
        trials = trials_of(metric, reach, batch_size=self.batch_size)
        search = Search.of(trials, metric, reach, thresholds, rounding=ROUNDING[metric.backend.precision])
        settings = {**about, "thresholds": sorted(set(thresholds)), "versions": None}
        run(search, settings, checkpoint=None if checkpoint is None else Path(checkpoint), progress=progress)
        counts = {"counts": asdict(search.counts)}
        return [
            Circuit(
                sites, search.done[threshold], {**about, "method": plain(replace(self, threshold=threshold)), **counts}
            )
            for threshold in thresholds
        ]

    def score(
        self,
        model: Any,
        task: Task | Discovery,
        *,
        thresholds: Sequence[float] | None = None,
        ablation: Ablation | None = None,
        progress: bool = False,
    ) -> Scores:
        """For each edge the largest threshold at which it is kept, and 0 where there is none.

        Args:
            model: a TransformerLens model; left as it was.
            task: prompt pairs; only training examples are used.
            thresholds: which are tried; by default nine from a hundredth to a hundred times the method's own.
            ablation: what replaces a removed edge, as for :meth:`find`.
            progress: whether to show a progress bar.
        """
        chosen = sorted(thresholds or [share * self.threshold for share in SPREAD])
        circuits = self.sweep(model, task, chosen, ablation=ablation, progress=progress)
        values = torch.zeros(len(circuits[0].sites))
        for threshold, circuit in zip(chosen, circuits, strict=True):
            values[circuit.kept] = threshold
        about = {**circuits[0].provenance, "method": plain(self), "thresholds": chosen}
        return Scores(circuits[0].sites, values, about)

    def _first(self, batch: Batch) -> Batch:
        """The examples that are used."""
        return batch if self.examples is None else next(batch.split(self.examples))


def run(search: Search, settings: dict[str, Any], *, checkpoint: Path | None, progress: bool) -> None:
    """Decide all edges, from a checkpoint on if there is one, and write it every minute and at every end."""
    if checkpoint is not None and checkpoint.exists():
        restore(checkpoint, search, settings)
    write = (lambda: None) if checkpoint is None else lambda: save(checkpoint, search, settings)
    written = time.monotonic()
    try:
        with tqdm(total=search.total, initial=search.decided, disable=not progress, unit="edge") as bar:
            for _ in search:
                bar.update(search.decided - bar.n)
                if time.monotonic() - written > EVERY:
                    write()
                    written = time.monotonic()
    finally:
        write()


def check_threshold(threshold: float) -> None:
    """Raise a ValueError unless a threshold is a positive number."""
    if not (math.isfinite(threshold) and threshold > 0):
        raise ValueError(
            f"A threshold is the least rise of the metric for which an edge stays, a positive number, but is "
            f"{threshold}. Give the rise that matters, such as 0.01 nats."
        )
