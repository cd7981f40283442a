"""What methods share that train masks: one run, of which a circuit and scores are two readings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.learning.fit import fit
from tlprune.masking.ablation import Ablation
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.sites import follow
from tlprune.methods.ablations import ablation_for
from tlprune.methods.alive import alive
from tlprune.methods.provenance import provenance_of
from tlprune.scores import Scores
from tlprune.sites import Sites
from tlprune.task import Discovery, Task

MORE_LIKELY_KEPT = 0.5  # soft mask values above it have log_alpha above 0


class MaskTraining(ABC):
    """A method that trains masks. A subclass gives :meth:`sites`, :meth:`keep`, :meth:`masks` and :meth:`plan`."""

    @abstractmethod
    def sites(self, model: Any) -> Sites:
        """Where the masks go."""

    @abstractmethod
    def keep(self, sites: Sites) -> Mapping[str, int]:
        """How many sites of each kind the circuit keeps; of no kind where the gates decide.

        Raises:
            ValueError: there are not so many.
        """

    @abstractmethod
    def masks(self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool) -> Masks:
        """The masks before the first step."""

    def ablation(self, discovery: Discovery, given: Ablation | None) -> Ablation:
        """What replaces an ablated site, where the user said nothing or a ``Mean()`` without prompts."""
        return ablation_for(discovery, given)

    def examples(self, discovery: Discovery) -> Discovery:
        """What is trained on, where a method takes some streams alone or reads prompts elsewhere; as it is."""
        return discovery

    @abstractmethod
    def plan(self, masks: Masks) -> Mapping[str, Any]:
        """What :func:`~tlprune.fit` is told: objective, budget, steps, batch size, optimiser, seed."""

    def circuit(self, masks: Masks, provenance: Mapping[str, Any]) -> Circuit:
        """What :meth:`find` gives: so many sites as :meth:`keep` says, or what is more likely kept than not."""
        keep = self.keep(masks.sites)
        if keep:
            return masks.circuit(**keep, provenance=provenance)
        return masks.circuit(threshold=MORE_LIKELY_KEPT, provenance=provenance)

    def scores(self, masks: Masks, provenance: Mapping[str, Any]) -> Scores:
        """What :meth:`score` gives: where each gate ended."""
        return masks.scores(provenance)

    def find(
        self,
        model: Any,
        task: Task | Discovery,
        *,
        ablation: Ablation | None = None,
        metrics: str | Path | None = None,
        checkpoint: str | Path | None = None,
        micro_batch: int | None = None,
        progress: bool = False,
    ) -> Circuit:
        """Train the gates and return the hard circuit.

        Processes that ``accelerate launch`` or ``torchrun`` started share the training, as of :func:`~tlprune.steps`.

        Args:
            model: a TransformerLens model; left as it was.
            task: prompt pairs; only train and validation examples are used.
            ablation: what replaces an ablated site; by default :meth:`ablation` says. ``Mean()`` without reference
                prompts goes over training prompts. The parameters of a :class:`~tlprune.Constant` are
                trained in place, with the masks.
            metrics: a file for one JSON record per step.
            checkpoint: a file for the state of training, from which a run that was stopped goes on.
            micro_batch: examples that are run at once, at most, for the same result; by default as many as fit into
                memory.
            progress: whether to show a progress bar.

        Raises:
            ValueError: of edges, no path leads from an embedding to the logits, where gates alone decide the size.
        """
        options = {"metrics": metrics, "checkpoint": checkpoint, "micro_batch": micro_batch}
        masks, provenance = self._trained(model, task, ablation, progress=progress, **options)
        found, keep = self.circuit(masks, provenance), self.keep(masks.sites)
        return alive(found, self.scores(masks, provenance), count=keep.get("edges"))

    def score(
        self,
        model: Any,
        task: Task | Discovery,
        *,
        ablation: Ablation | None = None,
        metrics: str | Path | None = None,
        checkpoint: str | Path | None = None,
        micro_batch: int | None = None,
        progress: bool = False,
    ) -> Scores:
        """Train the gates and return where each ends: its ``log_alpha``, higher where it is more likely kept.

        The arguments are those of :meth:`find`, which does the same training.
        """
        options = {"metrics": metrics, "checkpoint": checkpoint, "micro_batch": micro_batch}
        return self.scores(*self._trained(model, task, ablation, progress=progress, **options))

    def _trained(
        self, model: Any, task: Task | Discovery, ablation: Ablation | None, *, progress: bool, **options: Any
    ) -> tuple[Masks, dict[str, Any]]:
        discovery = task.discovery if isinstance(task, Task) else task
        sites, ablation = follow(self.sites(model), model, discovery), self.ablation(discovery, ablation)
        keep, examples = self.keep(sites), self.examples(discovery)
        provenance = provenance_of(self, model, discovery=discovery, sites=sites, ablation=ablation)
        masks = self.masks(model, discovery, sites, ablation, progress=progress).to(backend_of(model).device)
        masked = Masked(model, masks, ablation)
        fit(masked, examples, **self.plan(masks), keep=keep or None, progress=progress, **options)
        return masks, {**provenance, "ablation": ablation.as_dict()}  # whose constants, if it has any, were trained
