"""Circuits of one model by sparsity and seed, and what they have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.sites import Sites


class Run(NamedTuple):
    """Which search a subnetwork is of.

    Attributes:
        sparsity: fraction of the sites that was to be removed.
        seed: of the method; ``None`` where chance has no part in it.
    """

    sparsity: float
    seed: int | None

    def __str__(self) -> str:
        return f"{100 * self.sparsity:g}%" + ("" if self.seed is None else f", seed {self.seed}")


@dataclass(frozen=True)
class Subnetworks(Mapping[Run, Circuit]):
    """Circuits of the same sites of one model, by sparsity and seed: ``found[0.5, 42]``.

    Attributes:
        circuits: the subnetworks, in the order of sparsity and seed.

    Raises:
        ValueError: there are none, or they have different sites or models.

    Example:
        >>> import tlprune as tp
        >>> sites = tp.heads(tp.planted("induction").model)
        >>> one, two = (tp.Circuit.from_names(sites, names) for names in (["a0.h2", "a1.h1"], ["a0.h2", "a1.h3"]))
        >>> found = Subnetworks({Run(0.75, 0): one, Run(0.75, 1): two})
        >>> found[0.75, 1].names, found.core(0.75).names
        (['a0.h2', 'a1.h3'], ['a0.h2'])
        >>> found.counts(0.75).tolist()
        [0, 0, 2, 0, 0, 1, 0, 1]
    """

    circuits: Mapping[Run, Circuit]

    def __post_init__(self) -> None:
        if not self.circuits:
            raise ValueError("Subnetworks need at least one circuit but got none. Find some: tp.subnetworks(...).")
        in_order = sorted(self.circuits.items(), key=lambda item: (item[0][0], item[0][1] or 0))
        object.__setattr__(self, "circuits", {Run(*run): circuit for run, circuit in in_order})
        weights = {str(one.provenance.get("model", {}).get("weights")) for one in self.values()}
        if len({one.sites for one in self.values()}) > 1 or len(weights) > 1:
            raise ValueError(
                f"Subnetworks need the same sites of one model but have "
                f"{' and '.join(sorted({str(one.sites) for one in self.values()}))}, of models with weights "
                f"{', '.join(sorted(weights))}. Keep each model's apart."
            )

    def __getitem__(self, run: tuple[float, int | None]) -> Circuit:
        return self.circuits[Run(*run)]

    def __iter__(self) -> Iterator[Run]:
        return iter(self.circuits)

    def __len__(self) -> int:
        return len(self.circuits)

    def __repr__(self) -> str:
        return f"Subnetworks({len(self)} of {self.sites}; {', '.join(map(str, self))})"

    @property
    def sites(self) -> Sites:
        """What could be kept."""
        return next(iter(self.values())).sites

    @property
    def sparsities(self) -> tuple[float, ...]:
        """The sparsities, lowest first."""
        return tuple(dict.fromkeys(run.sparsity for run in self))

    def at(self, sparsity: float | None = None) -> Subnetworks:
        """Those of one sparsity; all for ``None``.

        Raises:
            ValueError: there are none.
        """
        if sparsity is None:
            return self
        if sparsity not in self.sparsities:
            known = ", ".join(f"{one:g}" for one in self.sparsities)
            raise ValueError(f"There are subnetworks of sparsity {known} but {sparsity:g} was asked for. Name one.")
        return Subnetworks({run: circuit for run, circuit in self.items() if run.sparsity == sparsity})

    def counts(self, sparsity: float | None = None) -> Int[Tensor, "site"]:
        """How many of the subnetworks keep each site."""
        return torch.stack([circuit.kept for circuit in self.at(sparsity).values()]).sum(0)

    def core(self, sparsity: float | None = None) -> Circuit:
        """The sites that all of the subnetworks keep: of one sparsity, or of all.

        Source: Bhaskar, Friedman, Chen, "The Heuristic Core" (ACL 2024), section 5.
        """
        among = self.at(sparsity)
        first = next(iter(among.values()))
        origin = {key: first.provenance[key] for key in ("model", "task", "ablation") if key in first.provenance}
        of = [str(run) for run in among]
        return first.like(self.counts(sparsity) == len(among), {**origin, "operation": "core", "of": of})

    def save(self, folder: str | Path) -> None:
        """Write each circuit to ``sparsity-0.5/seed-42.json`` and so on."""
        for run, circuit in self.items():
            path = path_of(Path(folder), run)
            path.parent.mkdir(parents=True, exist_ok=True)
            circuit.save(path)

    @staticmethod
    def load(folder: str | Path) -> Subnetworks:
        """Read all circuits of a folder that :meth:`save`, or a search, wrote.

        Raises:
            ValueError: there are none, or one of them is not whole.
        """
        paths = [
            path for name in ("seed-*", "circuit") for path in sorted(Path(folder).glob(f"sparsity-*/{name}.json"))
        ]
        if not paths:
            raise ValueError(f"{folder} must hold subnetworks but has none. Give the folder of tp.subnetworks(...).")
        return Subnetworks({_run_of(path): Circuit.load(path) for path in paths})


def path_of(folder: Path, run: Run) -> Path:
    """Where the subnetwork of a search is in a folder."""
    name = "circuit" if run.seed is None else f"seed-{run.seed}"
    return folder / f"sparsity-{run.sparsity!r}" / f"{name}.json"


def _run_of(path: Path) -> Run:
    seed = path.stem.removeprefix("seed-")
    return Run(float(path.parent.name.removeprefix("sparsity-")), None if seed == "circuit" else int(seed))
