"""Finding a subnetwork for each sparsity and seed, so that a stopped study goes on where it was."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.masking.ablation import Ablation
from tlprune.masking.means import Mean, MeasuredMean
from tlprune.methods.ablations import ablation_for
from tlprune.methods.heuristic_core import HeuristicCore
from tlprune.methods.provenance import check_settings, plain
from tlprune.methods.scoring import Scoring
from tlprune.scores import Scores
from tlprune.studies.collection import Run, Subnetworks, path_of, run_of
from tlprune.task import Discovery, Task

MEANS = "means.safetensors"
SEEDS = tuple(range(42, 54))  # of the released subnetworks


def subnetworks(
    model: Any,
    task: Task | Discovery,
    method: Any | None = None,
    *,
    sparsities: Sequence[float] = (0.5,),
    seeds: Sequence[int] = SEEDS,
    ablation: Ablation | None = None,
    out: str | Path | None = None,
    tell: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Subnetworks:
    """A subnetwork of a model for each sparsity and seed.

    Args:
        model: a TransformerLens model; left as it was.
        task: only train and validation examples are used.
        method: with fields ``sparsity`` and, unless chance has no part in it, ``seed``; by default
            :class:`~tlprune.HeuristicCore` with the paper's settings.
        sparsities: fractions to remove.
        seeds: of the method; one that has none gives one subnetwork for each sparsity.
        ablation: what replaces what is removed; by default :class:`~tlprune.Mean` over the clean training prompts,
            measured once; ``Mean()`` without prompts goes over the corrupted ones, as everywhere.
        out: a folder for circuits, their training records and the means. Called again with the same settings the search
            goes on where it stopped: finished circuits are read, a training that was stopped goes on from its
            checkpoint.
        tell: is called with a line for each subnetwork.
        progress: whether to show a progress bar for each search.

    Raises:
        ValueError: the folder holds subnetworks of another method, task, model or ablation; or as the method raises.

    Source: Bhaskar, Friedman, Chen, "The Heuristic Core" (ACL 2024), section 3.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("induction")
        >>> pruning = tp.HeuristicCore(recipe="short", steps=40)
        >>> found = subnetworks(planted.model, planted.task, pruning, sparsities=[0.8], seeds=[0, 1])
        >>> found.core().names == planted.circuit.heads
        True
    """
    discovery = task.discovery if isinstance(task, Task) else task
    method, folder = method or HeuristicCore(), None if out is None else Path(out)
    runs = list(searches(method, sparsities, seeds))
    chosen = _measured(model, ablation_for(discovery, ablation or Mean(discovery.train().clean)), folder)
    search = _Search(model, discovery, chosen, folder, progress)
    search.check(method)
    found = {}
    for place, (run, own) in enumerate(runs):
        found[run] = search.one(run, own)
        if tell is not None:
            tell(f"{place + 1} of {len(runs)}: {run}: {found[run]}")
    return Subnetworks(found)


def searches(method: Any, sparsities: Sequence[float], seeds: Sequence[int]) -> Iterator[tuple[Run, Any]]:
    """Each sparsity and seed, with the method of its search.

    Raises:
        ValueError: the method has no sparsity, or takes none of these; there are no sparsities or no seeds.
    """
    names = {field.name for field in dataclasses.fields(method)}
    if "sparsity" not in names or not sparsities or not seeds:
        raise ValueError(
            f"Subnetworks need a method with a sparsity, sparsities and seeds, but got {type(method).__name__}, "
            f"{list(sparsities)} and {list(seeds)}. Give some of each, such as tp.HeuristicCore(), [0.5] and [42, 43]."
        )
    for sparsity in sparsities:
        for seed in seeds if "seed" in names else (None,):
            run = Run(sparsity, seed)
            yield run, _method_of(run, method)


def _method_of(run: Run, method: Any) -> Any:
    """The method of one search; a count would go before the sparsity, so there is none."""
    names = {field.name for field in dataclasses.fields(method)}
    given = {name: None for name in ("nodes", "edges") if name in names}
    seed = {"seed": run.seed} if run.seed is not None and "seed" in names else {}
    return dataclasses.replace(method, sparsity=run.sparsity, **given, **seed)


def _measured(model: Any, ablation: Ablation, folder: Path | None) -> Ablation:
    """Means measured once, for all searches and for those who measure the subnetworks later."""
    if not isinstance(ablation, Mean):
        return ablation
    path = None if folder is None else folder / MEANS
    if path is not None and path.exists():
        found = MeasuredMean.load(path, reference=ablation.prompts)
        found.check_model(backend_of(model))
        return found
    found = ablation.measure(model)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
    return found


@dataclasses.dataclass(frozen=True)
class _Search:
    """What all searches of a study share."""

    model: Any
    discovery: Discovery
    ablation: Ablation
    folder: Path | None
    progress: bool
    scored: dict[str, Scores] = dataclasses.field(default_factory=dict)

    def one(self, run: Run, method: Any) -> Circuit:
        """The subnetwork of one search: read where it is there, else found and kept."""
        if self.folder is None:
            return self._found(method)
        path = path_of(self.folder, run)
        if path.exists():
            return Circuit.load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        files = {"metrics": path.with_suffix(".jsonl"), "checkpoint": path.with_suffix(".checkpoint")}
        known = inspect.signature(method.find).parameters
        files = {name: file for name, file in files.items() if name in known}
        found = self._found(method, **files)
        found.save(path)
        files.get("checkpoint", path.with_suffix(".checkpoint")).unlink(missing_ok=True)
        return found

    def _found(self, method: Any, **files: Path) -> Circuit:
        if isinstance(method, Scoring):
            scores = self._scores(method)
            return method.selection.select(scores, method.count(scores.sites))
        return method.find(self.model, self.discovery, ablation=self.ablation, progress=self.progress, **files)

    def _scores(self, method: Any) -> Scores:
        """What a method gives each site; the same whatever the size, so it is found once for all sparsities."""
        key = json.dumps(plain(dataclasses.replace(method, sparsity=0.5)))
        if key not in self.scored:
            found = method.score(self.model, self.discovery, ablation=self.ablation, progress=self.progress)
            self.scored[key] = found
        known = self.scored[key]
        return dataclasses.replace(known, provenance={**known.provenance, "method": plain(method)})

    def check(self, method: Any) -> None:
        """Raise a ValueError if any subnetwork of the folder has other settings, whatever its sparsity and seed."""
        for path in sorted(self.folder.glob("sparsity-*/*.json")) if self.folder is not None else ():
            own, known = _method_of(run_of(path), method), Circuit.load(path).provenance
            check_settings(known, path, own, self.model, self.discovery, self.ablation)
