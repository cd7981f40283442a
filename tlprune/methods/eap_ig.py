"""Edge attribution patching with integrated gradients: gradients along a path from the ablated model to the full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends.activations import Activations, Backend, Point
from tlprune.graph import Graph
from tlprune.masking.gradients import clean_run, edge_gradients
from tlprune.masking.tap import Changes
from tlprune.methods.attribution import BatchLoss, GradientScoring, predictions, refuse_flat
from tlprune.task import Batch

Path = Literal["inputs", "activations"]
Points = Literal["right", "left", "middle", "ends"]


@dataclass(frozen=True, kw_only=True)
class EAPIG(GradientScoring):
    """Edge attribution patching with integrated gradients: ``(x~_w - x_w) . mean_k dL/dx_r``, over points of a path.

    ``x`` is the clean run's and ``x~`` what replaces it, in all points. A point ``a`` in [0, 1] of the path is

    - ``"inputs"``: the model on the embeddings ``x~ + a (x - x~)``. The edges out of the input then add up, in the
      limit of many points, to ``L(x~ as input) - L(x)``.
    - ``"activations"``: the model in which all heads of one layer, or one MLP, or the input, send ``x~ + a (x - x~)``,
      and the gradient is for their edges alone. The edges out of each of these then add up to the loss with all of it
      ablated, less ``L``. That takes ``(2 layers + 1) * steps`` passes.

    Which points:

    - ``"right"``: ``1/n, 2/n, ..., 1``, as the paper has it, and the authors' code for activations.
    - ``"left"``: ``0, 1/n, ..., (n-1)/n``, as the authors' code has it for inputs since 2025, and so MIB.
    - ``"middle"``: ``1/2n, 3/2n, ..., (2n-1)/2n``, whose error falls with the square of ``n``.
    - ``"ends"``: ``0, 1/n, ..., 1``, the first and last with half the weight. With one step it is the mean of the
      gradients of the clean and the corrupted run, which the authors' code calls clean-corrupted.

    Attributes:
        sparsity: fraction of the edges to remove, in (0, 1).
        edges: how many to keep; instead of ``sparsity``.
        selection: which circuit of this size is taken.
        embeddings: ``"merged"``, ``"separate"`` or ``"kept"``, as of :class:`~tlprune.Convention`.
        kv: under grouped-query attention, k and v readers per key/value head or per query head.
        qkv: ``"split"``, or ``"joined"``: an edge into a head carries q, k and v together.
        heads: ``"split"``, or ``"joined"``: all heads of a layer are one node.
        objective: the loss; :class:`~tlprune.KL` will do, too, but not at the clean end alone.
        batch_size: examples per pass; what writers send is held for all of them at once.
        spans: names of the task's spans, each of which gives every edge a score of its own.
        path: from ablated to full, of what.
        points: where on it.
        steps: how many points, ``n``; with ``points="ends"`` one more.

    Source: Hanna, Pezzelle, Belinkov, "Have Faith in Faithfulness" (2024), equation 3; of activations, Marks et al.,
    "Sparse Feature Circuits" (2024), and Mueller et al., "MIB" (2025). The sign is such that positive helps.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("or")
        >>> method = EAPIG(edges=len(planted.circuit), objective=tp.KL())
        >>> method.find(planted.model, planted.task) == planted.circuit
        True
    """

    path: Path = "inputs"
    points: Points = "right"
    steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("path", self.path, ("inputs", "activations"))
        _check_choice("points", self.points, ("right", "left", "middle", "ends"))
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1 but is {self.steps}. The paper takes 5.")
        if (self.points, self.steps) == ("right", 1):
            refuse_flat("EAPIG at the clean end alone", self.objective, "more steps")

    def gradients(
        self, backend: Backend, graph: Graph, batch: Batch, replaced: Activations, loss: BatchLoss
    ) -> Float[Tensor, "*span edge"]:
        logits, sent = clean_run(backend, graph, batch.clean, batch.positions)
        reference, result = predictions(logits), torch.zeros((), device=backend.device)
        for writers, changed in self._paths(graph):
            result = result + edge_gradients(
                backend,
                graph,
                batch.clean,
                replaced,
                lambda logits: loss(logits, reference),
                positions=batch.positions,
                groups=self.groups(batch),
                sent=sent,
                runs=[(weight, between(graph, changed, sent, replaced, at)) for weight, at in self.weighted_points()],
                writers=writers,
            )
        return result

    def weighted_points(self) -> list[tuple[float, float]]:
        """Weights, with sum 1, and points.

        Example:
            >>> EAPIG(steps=2, points="left").weighted_points(), EAPIG(steps=1, points="ends").weighted_points()
            ([(0.5, 0.0), (0.5, 0.5)], [(0.5, 0.0), (0.5, 1.0)])
        """
        if self.points == "ends":
            return [(1 / self.steps / (1 + (k in (0, self.steps))), k / self.steps) for k in range(self.steps + 1)]
        shift = {"right": 1.0, "left": 0.0, "middle": 0.5}[self.points]
        return [(1 / self.steps, (k + shift) / self.steps) for k in range(self.steps)]

    def _paths(self, graph: Graph) -> Iterator[tuple[slice, list[Point]]]:
        """What moves together, and whose edges its path is for."""
        count, shape = len(graph.embeddings), graph.architecture
        inputs = _embedding_points(graph)
        if self.path == "inputs":
            yield slice(None), inputs
            return
        if count:
            yield slice(0, count), inputs
        for layer in range(shape.n_layers):
            first = graph.attention_writers(layer)
            yield slice(first, first + shape.n_heads), [("heads", layer)]
            if shape.has_mlp:
                yield slice(first + shape.n_heads, first + shape.n_heads + 1), [("mlp", layer)]


def _embedding_points(graph: Graph) -> list[Point]:
    separate = graph.convention.embeddings == "separate"
    return [(name, 0) for name in graph.embeddings] if separate else [("input", 0)]


def between(graph: Graph, changed: list[Point], sent: Activations, replaced: Activations, at: float) -> Changes:
    """What some writers send at a point of their path, ``x~ + at (x - x~)``."""
    found = {}
    for kind, layer in changed:
        own, other = (_part(graph, activations, kind, layer) for activations in (sent, replaced))
        found[kind, layer] = other + at * (own - other)
    return found


def _part(graph: Graph, activations: Activations, kind: str, layer: int) -> Tensor:
    if kind in ("heads", "mlp"):
        return activations.outgoing[layer] if kind == "heads" else activations.mlps[layer]
    if kind == "input" and activations.streams:
        return activations.streams[0]
    return activations.embeddings[graph.embeddings.index(kind) if kind != "input" else 0]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)} but is {value!r}. Choose one of these.")
