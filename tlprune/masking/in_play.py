"""What of a run under edge masks is in play: writers that somebody hears, readers that differ from others.

A mask value of exactly 0 or 1 that needs no gradient is no choice any more. A writer of which no reader that matters
hears anything needs no place in the buffers. Heads of a block that everybody after them hears whole are summed into one
place, as the model's own stream has them. Readers that see nothing of any writer see one stream, and so do those that
see everything. What is left shrinks with the circuit.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.graph import Graph, Readers
from tlprune.masking.reach import Reach

LEAST_DECIDED = 0.5  # the fraction of edges that are exactly 0 or 1 below which a closer look is not worth it
LEAST_PRODUCTS = 1 << 26  # products of masks and differences in a run that is worth it
# Mask values to go by in a run without numbers, whose own nobody knows.
ASSUMED: ContextVar[Tensor | None] = ContextVar("ASSUMED", default=None)


@dataclass(frozen=True)
class Places:
    """Where in the buffers the writers of a block go.

    Attributes:
        first: the first place.
        own: heads with a place each; ``None``: all.
        summed: heads that share the place behind these.
        mlp: the MLP's, if anybody hears it.
    """

    first: int
    own: Int[Tensor, "own"] | None
    summed: Int[Tensor, "summed"] | None
    mlp: int | None


@dataclass(frozen=True)
class Rows:
    """Readers of a block of which some see the same.

    Attributes:
        chosen: a reader for each stream that is seen.
        of: for each reader the place of its stream among these; of joined ones for q, k and v of each.
    """

    chosen: Int[Tensor, "stream"]
    of: Int[Tensor, "reader"]


class Everything:
    """A run in which all is in play: a place for each writer, a stream for each reader.

    Embeddings that no mask is for take the first place.

    Args:
        graph: the edges.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.shape = graph, graph.architecture
        self.always = int(graph.convention.embeddings == "kept")
        self.count = self.always + len(graph.writers)

    def embedding(self, index: int) -> int | None:
        """The place of an embedding."""
        return index

    def places(self, layer: int) -> Places:
        """Those of a block's writers."""
        first = self.graph.attention_writers(layer) + self.always
        return Places(first, None, None, first + self.shape.n_heads)

    def block(self, readers: Readers, mask: Float[Tensor, "*lead edge"]) -> Float[Tensor, "*lead reader place"]:
        """Masks of what is in the buffers when these readers read."""
        own = readers.block(mask)
        return F.pad(own, (self.always, 0), value=1.0) if self.always else own

    def rows(self, readers: Readers) -> Rows | None:
        """Which of a block's readers see one stream; ``None``: each sees its own."""
        if self.graph.convention.qkv == "split":
            return None
        own = torch.arange(len(readers.names))
        return Rows(own, own.repeat(3))

    def matter(self, readers: Readers) -> bool:
        """Whether anything depends on what these readers see."""
        return True


class InPlay(Everything):
    """What is in play where many edges are decided.

    Args:
        graph: the edges; of single heads.
        values: their mask values; those of exactly 0 and 1 need no gradient.
        coupled: whether each head of a block moves the others, so that all matter if one is heard.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(2, 2, 2))
        >>> values = torch.zeros(len(graph))
        >>> values[[graph.index("input->a1.h0<q>"), graph.index("a1.h0->logits")]] = 1
        >>> play = InPlay(graph, values)
        >>> [writer for writer, heard in zip(graph.writers, play.heard, strict=True) if heard], play.count
        (['input', 'a1.h0'], 2)
        >>> play.rows(graph.readers[2])  # the six readers of a1 see two streams
        Rows(chosen=tensor([0, 1]), of=tensor([0, 1, 1, 1, 1, 1]))
    """

    def __init__(self, graph: Graph, values: Float[Tensor, "edge"], *, coupled: bool = False) -> None:
        super().__init__(graph)
        self.reach = Reach(graph, coupled)
        values = values.detach().cpu()
        self.closed, self.open = values == 0, values == 1
        self.heard, self.whole, self.needed = self._traced()
        embeddings = range(len(graph.embeddings))
        self.embeddings = [index for index in embeddings if self.heard[index]]
        # Of each place its writer, one further on; 0 is a column of ones.
        self.columns = [0] * self.always + [index + 1 for index in self.embeddings]
        self.blocks: list[Places] = []
        self.widths: dict[Readers, int] = {}
        for readers in graph.readers:
            if readers.kind == "attention":
                self.widths[readers] = len(self.columns)
                self._place(readers.layer)
            else:
                self.widths[readers] = self._width(readers)
        self.count = len(self.columns)

    def _traced(self) -> tuple[Bool[Tensor, "writer"], Bool[Tensor, "writer"], dict[Readers, Bool[Tensor, "reader"]]]:
        """Writers that are heard, those heard whole by all that matter, and the readers that matter."""
        heard = self.reach.needed(~self.closed)
        needed = {readers: self.reach.live(readers, heard) for readers in self.graph.readers}
        whole = heard.clone()
        for readers, own in needed.items():
            whole[: readers.width] &= readers.block(self.open)[own].all(0)
        return heard, whole, needed

    def _place(self, layer: int) -> None:
        first, heads = self.graph.attention_writers(layer), self.shape.n_heads
        heard, whole = self.heard[first : first + heads], self.whole[first : first + heads]
        whole = whole if int(whole.sum()) > 1 else torch.zeros_like(whole)  # one alone is no sum
        own, summed = (flags.nonzero().flatten() for flags in (heard & ~whole, whole))
        start = len(self.columns)
        self.columns += (first + 1 + own).tolist() + [0] * bool(len(summed))
        mlp = None
        if self.shape.has_mlp and self.heard[first + heads]:
            mlp = len(self.columns)
            self.columns.append(first + heads + 1)
        self.blocks.append(Places(start, None if len(own) == heads else own, summed if len(summed) else None, mlp))

    def _width(self, readers: Readers) -> int:
        """Places filled before an MLP or the logits read."""
        if readers.kind == "logits":
            return len(self.columns)
        places = self.blocks[readers.layer]
        if self.shape.parallel:
            return places.first
        return len(self.columns) if places.mlp is None else places.mlp

    def embedding(self, index: int) -> int | None:
        if self.always:
            return 0
        return self.embeddings.index(index) if index in self.embeddings else None

    def places(self, layer: int) -> Places:
        return self.blocks[layer]

    def block(self, readers: Readers, mask: Float[Tensor, "edge"]) -> Float[Tensor, "reader place"]:
        columns = torch.tensor(self.columns[: self.widths[readers]], device=mask.device, dtype=torch.long)
        return F.pad(readers.block(mask), (1, 0), value=1.0)[:, columns]

    def rows(self, readers: Readers) -> Rows | None:
        needed, closed = self.needed[readers], readers.block(self.closed).all(1)
        alike = [closed | ~needed]
        alike.append(readers.block(self.open).all(1) & ~alike[0])
        own = ~(alike[0] | alike[1])
        chosen, of = own.nonzero().flatten().tolist(), torch.empty(len(own), dtype=torch.long)
        of[own] = torch.arange(len(chosen))
        for same in alike:
            if same.any():
                of[same] = len(chosen)
                # What a reader that does not matter sees is nobody's concern, but others may stand for the same stream.
                chosen.append(int((same & closed if (same & closed).any() else same).nonzero()[0]))
        if len(chosen) == len(own):
            return super().rows(readers)
        of = of.repeat(3) if self.graph.convention.qkv == "joined" else of
        return Rows(torch.tensor(chosen), of)

    def matter(self, readers: Readers) -> bool:
        return bool(self.needed[readers].any())


def in_play(graph: Graph, mask: Tensor, *, size: int, coupled: bool) -> Everything:
    """What is in play under masks whose values of exactly 0 and 1 need no gradient.

    Args:
        graph: the edges.
        mask: their values; with leading axes everything is in play.
        size: numbers in one stream, of all tokens.
        coupled: whether each head of a block moves the others.
    """
    if mask.is_meta:
        assumed = ASSUMED.get()
        if assumed is None or len(assumed) != len(graph):
            return Everything(graph)
        mask = assumed
    if mask.dim() > 1 or size * len(graph) < LEAST_PRODUCTS:
        return Everything(graph)
    decided = ((mask == 0) | (mask == 1)).float().mean()
    return InPlay(graph, mask, coupled=coupled) if float(decided) >= LEAST_DECIDED else Everything(graph)
