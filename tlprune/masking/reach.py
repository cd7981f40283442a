"""What a difference between circuits can change: which readers see it, which writers pass it on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tlprune.graph import Graph, Readers


@dataclass(frozen=True)
class Reach:
    """How changes spread through a model.

    Attributes:
        graph: its edges.
        coupled: a norm behind attention divides the sum of a block's heads (Gemma 2), so that what one head sends
            depends on all heads of its block.
    """

    graph: Graph
    coupled: bool = False

    def needed(self, kept: Bool[Tensor, "edge"]) -> Bool[Tensor, "writer"]:
        """Writers from which a path of kept edges leads to the logits."""
        needed = torch.zeros(len(self.graph.writers), dtype=torch.bool)
        for readers in reversed(self.graph.readers):
            needed[: readers.width] |= (self.live(readers, needed)[:, None] & readers.block(kept)).any(0)
        return needed

    def live(self, readers: Readers, needed: Bool[Tensor, "writer"]) -> Bool[Tensor, "reader"]:
        """Which readers the logits can depend on; no edge into another one makes any difference."""
        if self._shared(readers):
            return needed[self.graph.writers_of(readers)].any().expand(len(readers.names))
        return self.graph.readers_of(readers, needed)

    def fed(self, readers: Readers, rows: Bool[Tensor, "reader"]) -> Bool[Tensor, "writer"]:
        """Which of the writers that these readers feed send something else if some rows see something else."""
        reached = self.graph.writers_reached(readers, rows)
        return reached.any().expand(len(reached)) if self._shared(readers) else reached

    def elsewhere(self, kept: Bool[Tensor, "edge"]) -> Bool[Tensor, "writer"]:
        """Writers that can reach the logits through attention, and so from other positions than the answer's."""
        needed, elsewhere = self.needed(kept), torch.zeros(len(self.graph.writers), dtype=torch.bool)
        for readers in reversed(self.graph.readers):
            mlp = readers.kind == "mlp" and bool(elsewhere[self.graph.writers_of(readers)].any())
            if readers.kind == "attention" or mlp:
                live = self.live(readers, needed)
                elsewhere[: readers.width] |= (live[:, None] & readers.block(kept)).any(0)
        return elsewhere

    def _shared(self, readers: Readers) -> bool:
        return self.coupled and readers.kind == "attention"


@dataclass(frozen=True)
class Change:
    """What candidates change at one set of readers.

    Attributes:
        readers: the set.
        other: rows whose edges some candidate has not as the current circuit has them.
        carried: other rows that see a writer that changed.
        same: rows that see what they see in the current circuit, and feed the same writers as those that do not.
        writers: numbers of the writers that send something else.
        answers: what they send is read at the answer positions alone, because no attention reads it.
    """

    readers: Readers
    other: Int[Tensor, "_"]
    carried: Int[Tensor, "_"]
    same: Int[Tensor, "_"]
    writers: Int[Tensor, "_"]
    answers: bool


def changes(
    reach: Reach, current: Bool[Tensor, "edge"], candidates: Bool[Tensor, "candidate edge"]
) -> dict[tuple[str, int], Change]:
    """Everything that differs between some candidates and the current circuit, as far as the logits depend on it.

    Args:
        reach: how changes spread.
        current: the circuit whose activations are known.
        candidates: the circuits that are to be run.

    Returns:
        The sets of readers in the order of the model, by kind and layer; those without a change are left out, but for
        the logits.
    """
    union, found = candidates.any(0), {}
    needed, elsewhere = reach.needed(union), reach.elsewhere(union)
    changed = torch.zeros_like(needed)
    for readers in reach.graph.readers:
        live = reach.live(readers, needed)
        other = live & (readers.block(candidates) != readers.block(current)).any(-1).any(0)
        carried = live & ~other & (readers.block(union) & changed[: readers.width]).any(1)
        if readers.kind == "logits" or bool((other | carried).any()):
            change = _change(reach, readers, other, carried, needed, elsewhere)
            found[readers.kind, readers.layer] = change
            changed[change.writers] = True
    return found


def _change(
    reach: Reach, readers: Readers, other: Tensor, carried: Tensor, needed: Tensor, elsewhere: Tensor
) -> Change:
    if readers.kind == "logits":
        none = torch.zeros(0, dtype=torch.long)
        return Change(readers, _where(other), _where(~other), none, none, answers=True)
    own = reach.graph.writers_of(readers)
    fed = reach.fed(readers, other | carried)
    feeding, senders = torch.zeros_like(needed), torch.zeros_like(needed)
    feeding[own], senders[own] = fed, fed & needed[own]
    same = reach.graph.readers_of(readers, feeding if reach.coupled else senders) & ~other & ~carried
    answers = readers.kind == "mlp" and not elsewhere[own].any()
    return Change(readers, _where(other), _where(carried), _where(same), _where(senders), answers)


def _where(marked: Tensor) -> Tensor:
    return marked.nonzero().flatten()
