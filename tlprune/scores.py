"""Scores: a number for every site, from which circuits of any size are taken."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.files import brief, read_saved, write_tensors, write_whole
from tlprune.graph import Graph
from tlprune.sites import Sites

FORMAT, VERSION = "scores", 1


@dataclass(frozen=True, eq=False)
class Scores:
    """A number for every site; higher means that it helps more.

    Attributes:
        sites: the places that have scores.
        values: one score per site, ``(site,)``.
        provenance: how the scores were made; plain data.
        samples: the same scores from each of several examples, parts of the data, or seeds, ``(sample, site)``, of
            which ``values`` are the mean; ``None`` where they are not known apart.

    Raises:
        ValueError: there is not one value per site, or one is not a number.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(1, 1, 1))
        >>> scores = Scores(Sites((graph,)), torch.tensor([0.1, -3.0, 0.2, 0.0, 0.4, 0.5, 0.3, 0.6]))
        >>> scores.top(2).edges, len(scores.top(fraction=0.5)), scores.top(threshold=0.45).edges == scores.top(2).edges
        (['input->logits', 'm0->logits'], 4, True)
        >>> scores.absolute.top(1).edges
        ['input->a0.h0<k>']
    """

    sites: Sites
    values: Float[Tensor, "site"]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    samples: Float[Tensor, "sample site"] | None = None

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.sites),):
            raise ValueError(
                f"Scores of {self.sites!r} need one value for each of {len(self.sites):,} sites but got shape "
                f"{tuple(self.values.shape)}. Score the sites of the same model."
            )
        if self.samples is not None and self.samples.shape[1:] != self.values.shape:
            raise ValueError(
                f"Samples of scores need one value for each of {len(self.sites):,} sites but have shape "
                f"{tuple(self.samples.shape)}. Give them as (sample, site)."
            )
        missing = int(self.values.isnan().sum())
        if missing:
            first = self.sites.name(int(self.values.isnan().nonzero()[0]))
            raise ValueError(
                f"Scores order sites, so each needs a number, but {missing:,} of {len(self.sites):,} are NaN, "
                f"{first} the first. Look for examples whose loss is no number, or give such sites the lowest score."
            )

    @staticmethod
    def mean_of(scores: Sequence[Scores]) -> Scores:
        """The mean of several scores of the same sites, each of which becomes a sample.

        Args:
            scores: from parts of the data, or under several seeds.

        Raises:
            ValueError: there are none, or they are of different sites.

        Example:
            >>> from tlprune.graph import Architecture
            >>> sites = Sites((Graph(Architecture(1, 1, 1)),))
            >>> both = Scores.mean_of([Scores(sites, torch.zeros(8)), Scores(sites, torch.ones(8))])
            >>> both["m0->logits"], both.samples.shape
            (0.5, torch.Size([2, 8]))
        """
        if len({one.sites for one in scores}) != 1:
            raise ValueError(
                f"A mean needs scores of the same sites but got {len(scores)}, of "
                f"{', '.join(sorted({str(one.sites) for one in scores})) or 'nothing'}. Score one model with one "
                "convention."
            )
        samples = torch.stack([one.values for one in scores])
        origins = [dict(one.provenance) for one in scores]
        shared = {key: value for key, value in origins[0].items() if all(o.get(key) == value for o in origins)}
        provenance = {**shared, "operation": "mean", "of": origins}
        return Scores(scores[0].sites, samples.mean(0), provenance, samples)

    @property
    def graph(self) -> Graph:
        """The graph of its edges; a ValueError if the sites are not edges."""
        return self.sites.graph

    def beside(self, other: Scores) -> Scores:
        """These scores and those of sites of another kind, to be ranked together: both in one unit.

        Args:
            other: of other sites of the same model, such as attention edges beside edges at the same spans.

        Raises:
            ValueError: both are of one kind, or of other spans.

        Example:
            >>> from tlprune.graph import Architecture
            >>> from tlprune.sites import Nodes
            >>> edges = Scores(Sites((Graph(Architecture(1, 1, 1)),)), torch.zeros(8))
            >>> edges.beside(Scores(Sites((Nodes("heads", ("a0.h0",)),)), torch.ones(1))).top(1).names
            ['a0.h0']
        """
        origins = [dict(self.provenance), dict(other.provenance)]
        shared = {key: value for key, value in origins[0].items() if origins[1].get(key) == value}
        values = torch.cat([self.values, other.values])
        return Scores(self.sites + other.sites, values, {**shared, "operation": "beside", "of": origins})

    def __getitem__(self, name: str) -> float:
        return float(self.values[self.sites.index(name)])

    @property
    def absolute(self) -> Scores:
        """The same sites ranked by size alone, helpful or harmful."""
        return Scores(self.sites, self.values.abs(), self.provenance)

    def of(self, kind: str) -> Scores:
        """The scores of the sites of one kind."""
        part = self.sites.part(kind)
        samples = None if self.samples is None else self.samples[:, part]
        return Scores(Sites((self.sites.group(kind),)), self.values[part], self.provenance, samples)

    def without_spans(self) -> Scores:
        """Each site's scores at all spans, added up; without spans the scores themselves.

        Scores of :class:`~tlprune.EAP`, :class:`~tlprune.EAPIG` and :class:`~tlprune.RelP` by span add up to those
        without. Where gates end (:class:`~tlprune.EdgePruning`) are no such parts; their sum is just a ranking.

        Example:
            >>> from tlprune.graph import Architecture
            >>> sites = Sites((Graph(Architecture(1, 1, 1)),)).with_spans(["s"])
            >>> Scores(sites, torch.arange(16.0)).without_spans().values.tolist()
            [8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 22.0]
        """
        if not self.sites.spans:
            return self
        samples = None if self.samples is None else self._summed(self.samples)
        return Scores(self.sites.without_spans(), self._summed(self.values), self.provenance, samples)

    def _summed(self, values: Float[Tensor, "*sample site"]) -> Float[Tensor, "*sample bare"]:
        parts = ((values[..., part], len(self.sites.bare(kind))) for kind, part in self.sites.parts.items())
        return torch.cat([own.unflatten(-1, (-1, count)).sum(-2) for own, count in parts], -1)

    def top(
        self, count: int | None = None, *, fraction: float | None = None, threshold: float | None = None
    ) -> Circuit:
        """The sites of the highest score; ties go to the one that comes first in the model.

        Args:
            count: how many.
            fraction: or which part of all, in [0, 1].
            threshold: or all above this score.

        Raises:
            ValueError: not exactly one of the three is given, or it is out of range.
        """
        if sum(choice is not None for choice in (count, fraction, threshold)) != 1:
            raise ValueError("top() takes exactly one of count, fraction and threshold. Give one: scores.top(100).")
        values = self.values.detach().cpu()
        if threshold is not None:
            return Circuit(self.sites, values > threshold, self.provenance)
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"A fraction lies between 0 and 1 but is {fraction}. For the top tenth give 0.1.")
        number = round(fraction * len(self.sites)) if fraction is not None else int(count or 0)
        check_count(number, self.sites)
        return Circuit(self.sites, first(values, number), self.provenance)

    def save(self, path: str | Path) -> None:
        """Write the scores: ``.json`` gives each site's name and score, ``.safetensors`` the numbers and samples."""
        path = Path(path)
        data = {"format": f"tlprune-{FORMAT}", "version": VERSION, "sites": self.sites.as_dict()}
        data |= {"provenance": dict(self.provenance)}
        if path.suffix == ".safetensors":
            samples = {} if self.samples is None else {"samples": self.samples}
            return write_tensors(path, {"values": self.values, **samples}, data)
        names = (self.sites.name(index) for index in range(len(self.sites)))
        scores = dict(zip(names, self.values.tolist(), strict=True))
        return write_whole(path, json.dumps({**data, "scores": scores}, indent=1) + "\n")

    @staticmethod
    def load(path: str | Path) -> Scores:
        """Read scores that :meth:`save` wrote.

        Raises:
            ValueError: the file is missing, not of scores, of another version, or not whole.
        """
        path = Path(path)
        tensors, data = read_saved(path, FORMAT, VERSION)
        try:
            sites = Sites.from_dict(data["sites"])
            values = tensors["values"] if tensors else torch.tensor(_in_order(sites, data["scores"]))
            return Scores(sites, values, data["provenance"], tensors.get("samples"))
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"{path} does not hold whole scores ({brief(error)}). Save them again.") from error


def _in_order(sites: Sites, scores: Mapping[str, float]) -> list[float]:
    if len(scores) != len(sites):
        raise ValueError(f"there are {len(scores):,} scores of {len(sites):,} sites")
    names = [sites.name(index) for index in range(len(sites))]
    if set(names) != set(scores):
        raise ValueError(f"{len(set(names) ^ set(scores))} names are missing or unknown")
    return [scores[name] for name in names]


def first(values: Float[Tensor, "site"], count: int) -> Bool[Tensor, "site"]:
    """The ``count`` highest; of equal ones those that come first. Nothing is sorted, so 10^8 values are no burden.

    Example:
        >>> first(torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0]), 3).tolist()
        [True, True, False, True, False]
    """
    if not 0 < count < len(values):
        return torch.full((len(values),), count > 0)
    numbers = torch.promote_types(values.dtype, torch.float32)
    lowest = np.partition(values.detach().to("cpu", numbers).numpy(), len(values) - count)[len(values) - count]
    kept = values.cpu() > float(lowest)
    equal = (values.cpu() == float(lowest)).nonzero().flatten()
    kept[equal[: count - int(kept.sum())]] = True
    return kept


def check_count(count: int, sites: Sites) -> None:
    """Raise a ValueError unless ``count`` of these sites can be kept."""
    if not 0 <= count <= len(sites):
        raise ValueError(
            f"The number of {' + '.join(sites.kinds)} must lie between 0 and {len(sites):,} but is {count:,}. "
            "Choose a number within this range."
        )
