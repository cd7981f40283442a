"""The selection of the best sites that are sure to have a path."""

from __future__ import annotations

from dataclasses import dataclass

from tlprune.circuit import Circuit
from tlprune.connecting import connected
from tlprune.scores import Scores, check_count, first
from tlprune.selection.ranked import By, check_by, graph_of, ranking, taken


@dataclass(frozen=True)
class TopConnected:
    """The edges of the highest score, with a path from an embedding to the logits in any case.

    Where the ``count`` best have a path it is they: the same as :class:`~tlprune.Top`. Else the path of at most
    ``count`` edges whose worst edge is best comes first, and the others follow by score. So the circuit always has
    ``count`` edges, some on a path; :class:`~tlprune.Connected` has all of its edges on paths, and
    ``Pruned(size="effective")`` just ``count`` of them. By span a path is one in the sense of
    :meth:`~tlprune.Graph.effective`: it moves between spans in attention alone, and ends where the logits are read.

    Attributes:
        by: as of :class:`~tlprune.Top`: the score, or its size.

    Example:
        >>> import torch
        >>> from tlprune.graph import Architecture, Graph
        >>> from tlprune.sites import Sites
        >>> scores = Scores(Sites((Graph(Architecture(1, 1, 1)),)), torch.tensor([9, 8, 7, 0, 6, 0.5, 0.3, 0.6]))
        >>> TopConnected().select(scores, 4).edges
        ['input->a0.h0<q>', 'input->a0.h0<k>', 'a0.h0->m0', 'm0->logits']
    """

    by: By = "signed"

    def __post_init__(self) -> None:
        check_by(self.by)

    def select(self, scores: Scores, count: int) -> Circuit:
        """``count`` edges, some of them on a path.

        Raises:
            ValueError: ``count`` is 0, for a path has at least one edge.
        """
        graph_of(scores, type(self).__name__, by_span=True)
        check_count(count, scores.sites)
        if count < 1:
            raise ValueError(
                "A path from the embeddings to the logits has at least 1 edge but 0 were asked for. Ask for more."
            )
        values = ranking(scores, self.by)
        return taken(self, scores, connected(scores.sites, first(values, count), values), count=count)
