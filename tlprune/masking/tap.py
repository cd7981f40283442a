"""One run with every edge kept, in which the gradient at each reader can be told apart.

With all masks at 1 every reader of a place sees the same residual stream, so nothing is mixed: the stream is a running
sum of what writers send, and ordinary autograd gives what each reader sends back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tlprune.backends.activations import Activations, Backend, Point, Projection
from tlprune.graph import Graph, Readers

# What writers send instead of what they compute, by their point; of heads, in front of the backend's output weight.
Changes = Mapping[Point, Tensor]


@dataclass(frozen=True)
class Read:
    """What one set of readers took from the stream.

    Attributes:
        readers: which.
        parts: tensors of the run that only these readers use: q, k and v, each ``(example, pos, head, d_head)``, or
            the stream, ``(example, pos, d_model)``.
        stream: what they read, without gradient.
        projection: from the stream to q, k and v.
    """

    readers: Readers
    parts: tuple[Tensor, ...]
    stream: Float[Tensor, "example pos d_model"]
    projection: Projection | None = None


@dataclass
class Sent:
    """What writers sent in a run, in the order in which they did; none of it has a gradient."""

    embeddings: list[Tensor] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)
    mlps: list[Tensor] = field(default_factory=list)

    def activations(self) -> Activations:
        """The same as activations, the sum of the embeddings as their only stream."""
        total = sum(self.embeddings[1:], self.embeddings[0])
        return Activations(tuple(self.embeddings), tuple(self.heads), tuple(self.mlps), (total,))


class Tap:
    """A run of the model itself, or of the model with some writers changed (a ``Steering``).

    Args:
        backend: the model; not a post-norm one, whose stream is no sum.
        graph: decides which readers there are.
        lead: the number of examples and of positions.
        changes: what some writers send, instead of what they compute.
        scales: what the norm before attention divides by, ``(example, pos, 1)``, by layer; by default its input's own.
    """

    def __init__(
        self,
        backend: Backend,
        graph: Graph,
        lead: Sequence[int],
        *,
        changes: Changes | None = None,
        scales: Mapping[int, Tensor] | None = None,
    ) -> None:
        assert not graph.architecture.post_norm, "its stream is no sum"
        self.backend, self.graph = backend, graph
        self.changes, self.scales = changes or {}, scales or {}
        exact = torch.promote_types(backend.dtype, torch.float32)
        self.stream = torch.zeros(*lead, backend.d_model, dtype=exact, device=backend.device)
        self.entering = self.stream
        self.constants = backend.constants()
        self.sent = Sent()
        self.reads: list[Read] = []

    # ---- writers

    def embedding(self, index: int, value: Tensor) -> None:
        separate = self.graph.convention.embeddings == "separate"
        value = self._changed((("embed", "pos_embed")[index] if separate else "input", 0), value).detach()
        self.sent.embeddings.append(value)
        # What comes before is not asked for, so the gradients' graph begins here.
        self._add(value.clone().requires_grad_() if torch.is_grad_enabled() else value)

    def heads(self, layer: int, z: Tensor) -> None:
        z = self._changed(("heads", layer), z)
        self.sent.heads.append(z.detach())
        self._add(z.flatten(2) @ self.backend.output_weight(layer).flatten(0, 1))

    def mlp(self, layer: int, output: Tensor) -> None:
        output = self._changed(("mlp", layer), output)
        self.sent.mlps.append(output.detach())
        self._add(output)

    def _changed(self, point: Point, value: Tensor) -> Tensor:
        return self.changes[point].expand_as(value) if point in self.changes else value

    def _add(self, value: Tensor) -> None:
        self.stream = self.stream + value

    # ---- readers

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        readers, stream = self._next("attention", layer)
        self.entering = self.stream
        projection = self.backend.projection(layer, self.graph.convention)
        if layer in self.scales:
            projection = replace(projection, scale=self.scales[layer].flatten(0, 1))
        q, k, v = project(projection, stream)
        self.reads.append(Read(readers, (q, k, v), stream.detach(), projection))
        return q, k, v

    def mlp_input(self, layer: int) -> Tensor:
        return self._branch("mlp", layer)

    def final(self) -> Tensor:
        return self._branch("logits", self.graph.architecture.n_layers)

    def _branch(self, kind: str, layer: int) -> Tensor:
        readers, stream = self._next(kind, layer)
        branch = stream.to(self.backend.dtype).view_as(stream)
        self.reads.append(Read(readers, (branch,), branch.detach()))
        return branch

    def _next(self, kind: str, layer: int) -> tuple[Readers, Tensor]:
        """The readers that are due, and the stream that they see."""
        readers = self.graph.readers[len(self.reads)]
        if (readers.kind, readers.layer) != (kind, layer):
            raise RuntimeError(f"The model asked for {kind} of layer {layer} where {readers.names[0]} was due.")
        beside_attention = kind == "mlp" and self.graph.architecture.parallel
        stream = self.entering if beside_attention else self.stream
        return readers, stream + self.constants[len(self.reads)].to(stream.dtype)

    def check_complete(self) -> None:
        """Raise unless every writer wrote and every reader read exactly once."""
        shape = self.graph.architecture
        written = (len(self.sent.heads), len(self.sent.mlps))
        if len(self.reads) != len(self.graph.readers) or written != (shape.n_layers, shape.n_layers * shape.has_mlp):
            raise RuntimeError(
                f"{len(self.reads)} of {len(self.graph.readers)} sets of readers, and attention and MLP of {written} "
                f"of {shape.n_layers} layers, were met during the run, so a hook did not fire. Is part of the model "
                "skipped or replaced?"
            )


def project(projection: Projection, stream: Float[Tensor, "example pos d_model"]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each ``(example, pos, head, d_head)``, of readers that see one stream."""
    tokens = projection.normalise(stream.flatten(0, 1)[None])[0].to(projection.weights[0].dtype)
    q, k, v = (
        F.linear(tokens, weight.mT.flatten(0, 1), bias.flatten()).view(*stream.shape[:2], *bias.shape)
        for weight, bias in zip(projection.weights, projection.biases, strict=True)
    )
    return q, k, v
