"""Selection as an integer program: the best circuit of a size all of whose edges lie on paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.incidence import rows, writers_of_edges
from tlprune.scores import Scores, check_count
from tlprune.selection.ranked import By, check_by, graph_of, ranking, taken


@dataclass(frozen=True)
class Connected:
    """The circuit of the highest total score among those whose every edge lies on a path from embeddings to logits.

    ``max sum_e s_e x_e`` over ``x_e`` in {0, 1} with ``sum_e x_e = count`` (or at most ``count``). With ``y_n`` in
    {0, 1} for "node ``n`` lies on a path", every edge from ``w`` into ``n`` has ``x_e <= y_w`` and ``x_e <= y_n``, and
    ``y_n`` is at most the number of kept edges into ``n``, and at most that of kept edges out of it. A graph without
    cycles needs no more for paths from end to end. An edge into a key/value head needs one of the heads that share
    it.

    Solved by branch and bound (HiGHS, through scipy). What was proven is in the circuit's provenance: ``gap`` is the
    distance to the best bound as a part of the total, 0 where nothing can be better.

    Source: Nikankin et al., "BlackboxNLP-2025 MIB Shared Task: Improving Circuit Faithfulness via Better Edge
    Selection" (2025).

    Attributes:
        by: what is added up, as of :class:`~tlprune.Top`: scores, or their size.
        size: ``"exactly"`` ``count`` edges, or ``"at_most"``, so that none is kept that would lower the total.
        seconds: after these the best circuit so far is taken.
        tolerance: a circuit is taken when its gap is no larger.

    Example:
        >>> from tlprune.graph import Architecture
        >>> from tlprune.sites import Sites
        >>> scores = Scores(Sites((Graph(Architecture(1, 1, 1)),)), torch.tensor([9, 8, 7, 0, 6, 0.5, 0.3, 0.6]))
        >>> found = Connected().select(scores, 3)
        >>> found.edges, found.n_effective, found.provenance["selection"]["gap"]
        (['input->a0.h0<q>', 'input->a0.h0<k>', 'a0.h0->logits'], 3, 0.0)
    """

    by: By = "signed"
    size: Literal["exactly", "at_most"] = "exactly"
    seconds: float = 300.0
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        check_by(self.by)
        if self.size not in ("exactly", "at_most"):
            raise ValueError(f"size must be 'exactly' or 'at_most' but is {self.size!r}. Choose one of these.")
        if self.seconds <= 0 or self.tolerance < 0:
            raise ValueError(
                f"An integer program needs time and a gap of 0 or more but got {self.seconds} seconds and a tolerance "
                f"of {self.tolerance}. Leave them out for 300 seconds and 0."
            )

    def select(self, scores: Scores, count: int) -> Circuit:
        """The best circuit of the size.

        Raises:
            ValueError: no circuit was found in time.
        """
        graph = graph_of(scores, type(self).__name__)
        check_count(count, scores.sites)
        if count == 0:
            return taken(self, scores, torch.zeros(len(graph), dtype=torch.bool), count=count, gap=0.0)
        found = _solved(graph, ranking(scores, self.by), count, self)
        if found.x is None:
            raise ValueError(
                f"A connected circuit of {count:,} edges was not found in {self.seconds:g} seconds ({found.message}). "
                "Give Connected more: seconds=..., or use tp.Pruned(tp.Greedy(), size='effective')."
            )
        kept = torch.from_numpy(found.x[: len(graph)]).round().bool()
        return taken(self, scores, kept, count=count, gap=float(found.mip_gap or 0.0))


def _solved(graph: Graph, values: Float[Tensor, "edge"], count: int, settings: Connected) -> Any:
    """HiGHS' answer, with the edges first and the nodes behind them."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    program = _Program(graph)
    scale = float(values.abs().max()) or 1.0  # the solver's tolerances are absolute
    costs = np.concatenate([-values.double().numpy() / scale, np.zeros(program.n_nodes)])
    size = np.concatenate([np.ones(len(graph)), np.zeros(program.n_nodes)])[None]
    least = count if settings.size == "exactly" else 0
    return milp(
        costs,
        integrality=np.ones_like(costs),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(program.matrix(), ub=0), LinearConstraint(size, least, count)],
        options={"time_limit": settings.seconds, "mip_rel_gap": settings.tolerance},
    )


class _Program:
    """Rows ``a`` of ``a x <= 0`` over edges and, behind them, the nodes that are no embeddings."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.inner = len(graph.embeddings)
        self.n_nodes = len(graph.writers) - self.inner
        self.writers = writers_of_edges(graph).tolist()
        self.entries: list[tuple[int, int, float]] = []
        self.height = 0
        self._add_edges()
        self._add_nodes()

    def matrix(self) -> Any:
        from scipy.sparse import coo_array

        places, columns, numbers = zip(*self.entries, strict=True)
        shape = (self.height, len(self.graph) + self.n_nodes)
        return coo_array((numbers, (places, columns)), shape=shape).tocsr()

    def _add(self, *entries: tuple[int, float]) -> None:
        self.entries += [(self.height, column, number) for column, number in entries]
        self.height += 1

    def _node(self, writer: int) -> int:
        return len(self.graph) + writer - self.inner

    def _add_edges(self) -> None:
        """An edge needs the node it comes from, and one of those that it goes into."""
        for row in rows(self.graph):
            ends = [(self._node(node), -1.0) for node in row.nodes if node < len(self.graph.writers)]
            for edge in row.edges:
                if self.writers[edge] >= self.inner:
                    self._add((edge, 1.0), (self._node(self.writers[edge]), -1.0))
                if ends:
                    self._add((edge, 1.0), *ends)

    def _add_nodes(self) -> None:
        """A node needs an edge out, and an edge in unless embeddings that are always kept reach it."""
        out: dict[int, list[int]] = {}
        into: dict[int, list[int]] = {}
        for edge, writer in enumerate(self.writers):
            out.setdefault(writer, []).append(edge)
        for row in rows(self.graph):
            for node in row.nodes:
                into.setdefault(node, []).extend(row.edges)
        for node in range(self.inner, len(self.graph.writers)):
            for edges in (out, into) if self.inner else (out,):
                self._add((self._node(node), 1.0), *((edge, -1.0) for edge in edges[node]))
