"""The selection of the best edges that spends none on what lies on no path, where another one could."""

from __future__ import annotations

from dataclasses import dataclass

from tlprune.circuit import Circuit
from tlprune.connecting import filled
from tlprune.scores import Scores, check_count, first
from tlprune.selection.ranked import By, check_by, graph_of, ranking, taken


@dataclass(frozen=True)
class TopConnected:
    """The edges of the highest score, less those on no path, whose place the next best take that lie on one.

    Where all of the ``count`` best lie on paths it is they: the same as :class:`~tlprune.Top`. An edge on no path
    carries nothing, so else just ``count`` edges are taken of more, as many of them effective as fit (``filled`` of
    ``tlprune.connecting``); where not even that has a path from an embedding to the logits, the path of at most
    ``count`` edges whose worst edge is best comes first, and the others follow by score. The circuit always has
    ``count`` edges; ``Pruned(size="effective")`` takes the trouble to make all of them effective. By span a path is one
    in the sense of :meth:`~tlprune.Graph.effective`: it moves between spans in attention alone, and ends where the
    logits are read.

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
        return taken(self, scores, filled(scores.sites, first(values, count), values), count=count)
