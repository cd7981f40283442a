"""Minimality: what each site of a circuit is worth to it when it alone is removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.evaluation.bench import Bench, ablations_dict, ablations_text
from tlprune.evaluation.table import aligned
from tlprune.learning.bootstrap import bounds, finite, resampled_means
from tlprune.masking.ablation import Ablation
from tlprune.task import Batch, Task

_ROUNDING = 1e-6  # nats; a KL from float32 logits is not known better
_SHOWN = 10  # sites at either end of the table
_AT_ONCE = 256  # circuits whose masks are held in memory


@dataclass(frozen=True)
class Minimality:
    """The rise in KL, in nats, when one site alone is removed; printing it gives a table.

    Attributes:
        sites: names of the kept sites, in the order of the model.
        rise: mean KL without the site less mean KL with it, ``(kept,)``; negative where the circuit gets closer to
            the full model.
        low: lower end of its 95% paired bootstrap interval over examples, ``(kept,)``.
        high: upper end, ``(kept,)``.
        kl: the whole circuit's mean KL.
        ablation: what replaced ablated sites, as plain data.
        discovery: what replaced them when the circuit was found, where that is known.
    """

    sites: tuple[str, ...]
    rise: Float[Tensor, "kept"]
    low: Float[Tensor, "kept"]
    high: Float[Tensor, "kept"]
    kl: float
    ablation: Mapping[str, Any]
    discovery: Mapping[str, Any] | None

    @property
    def superfluous(self) -> list[str]:
        """Sites whose interval does not lie above zero: without one of them the circuit need not be worse."""
        return [site for site, low in zip(self.sites, self.low.tolist(), strict=True) if not low > _ROUNDING]

    def as_dict(self) -> dict[str, Any]:
        """Every site's figures as plain data."""
        columns = zip(self.sites, self.rise.tolist(), self.low.tolist(), self.high.tolist(), strict=True)
        rows = [
            {"site": site, "rise": finite(rise), "low": finite(low), "high": finite(high)}
            for site, rise, low, high in columns
        ]
        return {"kl": finite(self.kl), **ablations_dict(self.ablation, self.discovery), "sites": rows}

    def __str__(self) -> str:
        order = torch.argsort(self.rise, descending=True, stable=True).tolist()
        if len(order) > 2 * _SHOWN:
            order = [*order[:_SHOWN], None, *order[-_SHOWN:]]
        rows = [["...", "", ""] if place is None else self._row(place) for place in order]
        lines = aligned(["removed", "rise in KL (nats)", "95%"], rows)
        lines.append(
            f"{len(self.superfluous):,} of {len(self.sites):,} raise it by nothing certain; KL {self.kl:.4f} "
            f"nats with all; {ablations_text(self.ablation, self.discovery)}"
        )
        return "\n".join(lines)

    def _row(self, place: int) -> list[str]:
        low, high = float(self.low[place]), float(self.high[place])
        return [self.sites[place], f"{float(self.rise[place]):.5f}", f"[{low:.5f}, {high:.5f}]"]


def minimality(
    model: Any,
    circuit: Circuit,
    batch: Batch | Task,
    *,
    ablation: Ablation | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Minimality:
    """Remove each site of a circuit alone and measure how much further it then is from the full model.

    ``KL(full || C - {e}) - KL(full || C)`` for every site ``e``. Sites that back each other up have no rise one by
    one although the pair is needed, so this shows what one site is worth given the rest, not how small the circuit
    could be made.

    Source: Wang et al., "Interpretability in the Wild" (2022), section 4.3, with single sites for what is removed.

    Args:
        model: the model that the circuit is of.
        circuit: the sites to remove one by one; as many runs over the examples.
        batch: examples that no method saw, or the task.
        ablation: what replaces ablated sites; by default what did at discovery.
        seed: of the bootstrap.
        batch_size: pairs of circuit and example per forward pass.

    Raises:
        ValueError: the circuit belongs to another model, or is empty.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> tp.minimality(planted.model, planted.circuit, planted.task).superfluous
        []
    """
    if not len(circuit):
        raise ValueError("Minimality removes a circuit's sites one by one but this one has none. Give another circuit.")
    bench = Bench.of(model, circuit, batch, ablation=ablation)
    whole = bench.measure(circuit).figure("kl")
    rises = torch.cat([kl - whole for kl in _without_each(bench, circuit, batch_size)])
    low, high = bounds(resampled_means(rises.T, seed=seed))
    discovery, kl = circuit.provenance.get("ablation"), float(whole.mean())
    return Minimality(tuple(circuit.names), rises.mean(1), low, high, kl, bench.ablation, discovery)


def _without_each(bench: Bench, circuit: Circuit, batch_size: int) -> list[Float[Tensor, "kept example"]]:
    """KL per example of the circuit without each of its sites."""
    kept = circuit.kept.cpu()
    found = []
    for places in kept.nonzero().flatten().split(_AT_ONCE):
        without = kept.repeat(len(places), 1)
        without[torch.arange(len(places)), places] = False
        found.append(torch.stack([one.figure("kl") for one in bench.measure_each(without, batch_size=batch_size)]))
    return found
