"""Masks: one gate for each site, and the circuit that they decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tlprune.circuit import Circuit
from tlprune.connecting import connecting_size, filled
from tlprune.effective import effective_sites
from tlprune.gates import Gate, HardConcrete
from tlprune.graph import Graph
from tlprune.pieces import expected_count
from tlprune.scores import Scores
from tlprune.sites import Sites


class Masks(nn.Module):
    """A trainable mask over sites. An optimiser and a state_dict of it hold masks and nothing of the model.

    Args:
        sites: where the masks go, such as ``tp.edges(model)`` or ``tp.heads(model) + tp.mlps(model)``.
        gate: the distribution of each mask value.
        start: first ``log_alpha`` of each site; by default the gate's own, the same for all.
        among: a circuit of the same sites. All others are closed for good: their ``log_alpha`` is minus infinity,
            budgets do not count them, and no circuit of these masks has them.
        always: a circuit of sites that are open for good: their ``log_alpha`` is infinity, budgets count them as kept,
            and every circuit of these masks has them.

    Raises:
        ValueError: ``start``, ``among`` or ``always`` is of other sites, ``among`` keeps nothing, or a site is in
            ``always`` and not in ``among``.

    Attributes:
        log_alpha: the gate's location for every site, ``(site,)``; higher is more likely kept.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> masks = Masks(Sites((Graph(Architecture(2, 2, 2)),)))
        >>> len(masks.log_alpha), len(masks.circuit(sparsity=0.75)), round(masks.density, 2)
        (46, 12, 0.97)
        >>> few = Masks(masks.sites, among=masks.circuit(sparsity=0.75))
        >>> len(few.log_alpha[few.part()]), len(few.circuit()), few.circuit(edges=3) - masks.circuit(sparsity=0.75)
        (12, 12, Circuit(0 of 46 edges, 0 effective; embeddings merged, kv shared))
    """

    def __init__(
        self,
        sites: Sites,
        gate: Gate | None = None,
        *,
        start: Float[Tensor, "site"] | None = None,
        among: Circuit | None = None,
        always: Circuit | None = None,
    ) -> None:
        super().__init__()
        self.sites, self.start, self.among, self.always = sites, start, among, always
        self.gate: Gate = gate or HardConcrete()
        _check_same_sites(sites, start, among)
        _check_always(sites, among, always)
        values = torch.full((len(sites),), float(self.gate.initial)) if start is None else start.float().cpu().clone()
        if among is not None:
            values[~among.kept] = -torch.inf
        if always is not None:
            values[always.kept] = torch.inf
        self.log_alpha = nn.Parameter(values)

    def part(self, kind: str | None = None) -> slice | Int[Tensor, "open"]:
        """Where the sites lie that a circuit may have, of one kind or of all, in a flat vector over all sites."""
        part = slice(None) if kind is None else self.sites.part(kind)
        if self.among is None:
            return part
        places = torch.arange(len(self.sites))[part]
        return places[self.among.kept[part]]

    @property
    def graph(self) -> Graph:
        """The graph of its edges; a ValueError if the sites are not edges."""
        return self.sites.graph

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "site"]:
        """One draw of every mask value."""
        return self.gate.sample(self.log_alpha, generator)

    @property
    def expected_kept(self) -> Float[Tensor, ""]:
        """Expected number of sites whose mask value is not 0."""
        return expected_count(self.gate.expected_kept, self.log_alpha)

    @property
    def density(self) -> float:
        """Expected fraction of sites that are kept, of those that may be."""
        return float(self.expected_kept.detach()) / len(self.log_alpha[self.part()])

    def scores(self, provenance: Mapping[str, Any] | None = None) -> Scores:
        """The sites ranked by how likely they are kept; their score is ``log_alpha``.

        Sites that no circuit may have come last, one below the lowest of the others; those that every circuit has come
        first, one above the highest.
        """
        values = self.log_alpha.detach().cpu().clone()
        learned = values[values.isfinite()] if bool(values.isfinite().any()) else torch.zeros(1)
        if self.among is not None:
            values[~self.among.kept] = learned.min() - 1
        if self.always is not None:
            values[self.always.kept] = learned.max() + 1
        return Scores(self.sites, values, provenance or {})

    def circuit(
        self,
        *,
        sparsity: float | None = None,
        threshold: float | None = None,
        provenance: Mapping[str, Any] | None = None,
        **counts: int | None,
    ) -> Circuit:
        """The hard circuit: exact counts, the part ``1 - sparsity`` of each kind, or all soft values above a number.

        Without any of these, as many of each kind as its gates expect to keep. A number of edges is not spent on what
        carries nothing: of those most likely kept, the ones on no path from an embedding to the logits make room for
        the next that lie on one, and the provenance says how many did (``"on_no_path"``). Where a whole path is
        missing, the best one that has no more edges is kept (:class:`~tlprune.TopConnected`): ``"connected"`` has the
        number of edges that would have done without.

        Args:
            sparsity: fraction of each kind to remove, in (0, 1).
            threshold: keep what has a soft mask value above it.
            provenance: where the circuit comes from; plain data.
            counts: how many to keep by kind, such as ``edges=170``; other kinds keep what their gates expect.

        Raises:
            ValueError: more than one of the three ways is used, a number is out of range, or it is more than may be
                kept or fewer than always are.
        """
        counts = {kind: count for kind, count in counts.items() if count is not None}
        if sum((sparsity is not None, threshold is not None, bool(counts))) > 1:
            raise ValueError("circuit() takes one of a count, sparsity and threshold but got several. Give one.")
        if threshold is not None:
            return Circuit(self.sites, self.gate.soft(self.log_alpha.detach()).cpu() > threshold, provenance or {})
        for kind in counts:
            self.sites.part(kind)
        kept = torch.cat([self._top(kind, sparsity, counts.get(kind)).kept for kind in self.sites.kinds])
        if "edges" not in self.sites.kinds:
            return Circuit(self.sites, kept, provenance or {})
        return self._filled(kept, provenance or {})

    def _filled(self, kept: Bool[Tensor, "site"], provenance: Mapping[str, Any]) -> Circuit:
        fixed = 0 if self.always is None else self.always.count("edges")
        able = None if self.among is None else self.among.kept
        found = filled(self.sites, kept, self.scores().values, able=able, fixed=fixed)
        if torch.equal(found, kept):
            return Circuit(self.sites, kept, provenance)
        note: dict[str, Any] = {"on_no_path": int((kept & ~found).sum())}
        if not bool(effective_sites(self.sites, kept)[self.sites.part("edges")].any()):
            scores = self.scores().of("edges")
            note["connected"] = {"smallest_top": connecting_size(scores.sites.edges, scores.values)}
        return Circuit(self.sites, found, {**provenance, **note})

    def _top(self, kind: str, sparsity: float | None, count: int | None) -> Circuit:
        if sparsity is not None:
            count = kept_at(sparsity, len(self.sites.group(kind)))
        if count is None:
            part = self.log_alpha[self.part(kind)].detach()
            count = round(float(expected_count(self.gate.expected_kept, part)))
        if self.among is not None and count > (most := self.among.count(kind)):
            raise ValueError(
                f"These masks may keep {most:,} {kind}, those of the circuit that they are among, but {count:,} were "
                "asked for. Ask for fewer, or start from a larger circuit."
            )
        if self.always is not None and count < (least := self.always.count(kind)):
            raise ValueError(
                f"These masks always keep {least:,} {kind} but {count:,} were asked for. Ask for more, or let more of "
                "them go."
            )
        return self.scores().of(kind).top(count)


def _check_same_sites(sites: Sites, start: Tensor | None, among: Circuit | None) -> None:
    if start is not None and len(start) != len(sites):
        raise ValueError(f"Masks over {sites} start at one number for each but got {len(start):,}. Score these sites.")
    if among is not None and (among.sites != sites or not len(among)):
        raise ValueError(
            f"Masks over {sites} can be among the sites of a circuit of the same sites that keeps some, but this one "
            f"is {among!r}. Find it with the same model, selection and convention."
        )


def _check_always(sites: Sites, among: Circuit | None, always: Circuit | None) -> None:
    if always is None:
        return
    if always.sites != sites or (among is not None and bool((always.kept & ~among.kept).any())):
        raise ValueError(
            f"Masks over {sites} can always keep sites of a circuit of the same sites, and only such as may be kept, "
            f"but this one is {always!r}. Take it from among those that are open."
        )


def kept_at(sparsity: float, total: int) -> int:
    """How many of ``total`` sites remain at a sparsity in (0, 1).

    Example:
        >>> kept_at(0.9, 1701)
        170
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"Sparsity must lie between 0 and 1 but is {sparsity}. For 95% removed give 0.95.")
    return round((1 - sparsity) * total)
