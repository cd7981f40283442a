"""Runs of several circuits that differ little from one whose activations are known: only what changes is computed.

For a reader ``r`` and candidate ``k``, with ``d`` what writers send in the current circuit, less what replaces it, and
``d_k`` the same in the candidate::

    x_rk = base_r + sum_w m_rwk d_w + sum_{w changed} m_rwk (d_wk - d_w)

``base`` is what reaches a reader with every edge ablated. The first sum is of the current circuit's numbers, without an
axis of candidates, and is shared by all candidates where their edges are the same. Candidates lie along the axis of
examples, candidate after candidate.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends.activations import Activations, Backend, Projection
from tlprune.graph import Graph
from tlprune.masking.reach import Change
from tlprune.task import Batch


class Standing:
    """The activations of some examples in the current circuit.

    Args:
        backend: the model; not one with norms behind its sums.
        graph: its edges.
        batch: the examples.
        replaced: what ablated writers send in them.

    Attributes:
        differences: ``x - x~`` of each writer.
        hooked: whether hooks of somebody else's are on the model.
    """

    def __init__(self, backend: Backend, graph: Graph, batch: Batch, replaced: Activations) -> None:
        self.backend, self.graph, self.batch, self.replaced = backend, graph, batch, replaced
        self.exact = torch.promote_types(backend.dtype, torch.float32)
        self.differences: Float[Tensor, "writer example pos d_model"] = torch.empty(0, 0, 0, 0)
        self.hooked = backend.is_hooked()
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Take the full model as the current circuit: its activations are those of the plain model."""
        clean = self.backend.observe(self.batch.clean)
        shape = (len(self.graph.writers), *clean.streams[0].shape)
        self.differences = torch.empty(shape, dtype=self.backend.dtype, device=self.backend.device)
        self._fill(clean)
        always = clean.streams[0] - self.replaced.streams[0] if self.graph.convention.embeddings == "kept" else 0
        self.bases = [(stream + always).to(self.exact).expand(shape[1:]) for stream in self.replaced.streams]

    def _fill(self, clean: Activations) -> None:
        for slot, (value, instead) in enumerate(self._embeddings(clean)):
            self.differences[slot] = value - instead
        for layer in range(self.graph.architecture.n_layers):
            first, heads = self.graph.attention_writers(layer), self.graph.architecture.n_heads
            sent = clean.outgoing[layer] - self.replaced.outgoing[layer]
            self.differences[first : first + heads] = through(sent, self.backend.output_weight(layer))
            if self.graph.architecture.has_mlp:
                self.differences[first + heads] = clean.mlps[layer] - self.replaced.mlps[layer]

    def _embeddings(self, clean: Activations) -> list[tuple[Tensor, Tensor]]:
        if self.graph.convention.embeddings == "separate":
            return list(zip(clean.embeddings, self.replaced.embeddings, strict=True))
        return [(clean.streams[0], self.replaced.streams[0])][: len(self.graph.embeddings)]

    def accept(self, run: ResumedRun, index: int) -> None:
        """Take a candidate of a run as the current circuit."""
        self.differences[run.writers] += run.deltas[:, index]


class ResumedRun:
    """One run of several candidates (a ``Steering``, whose last stream is that at the answer positions alone).

    Args:
        standing: the activations of the current circuit.
        changes: what candidates change, by kind of readers and layer.
        masks: of the candidates, ``(candidate, edge)``.

    MLPs whose output no attention reads are run at the answer positions alone, unless hooks of somebody else's, which
    may count on all positions, are on the model.

    Attributes:
        writers: which writers send something else in some candidate.
        deltas: by how much, ``(writer, candidate, example, pos, d_model)``.
    """

    def __init__(
        self, standing: Standing, changes: Mapping[tuple[str, int], Change], masks: Float[Tensor, "candidate edge"]
    ) -> None:
        self.standing, self.changes, self.masks = standing, changes, masks
        self.backend, self.graph = standing.backend, standing.graph
        self.writers = torch.cat([change.writers for change in changes.values()]).to(self.backend.device)
        shape = (len(self.writers), len(masks), *standing.differences.shape[1:])
        self.deltas = torch.empty(shape, dtype=self.backend.dtype, device=self.backend.device)
        self.written = 0
        self.positions = standing.batch.positions.to(self.backend.device)
        self._examples = torch.arange(len(self.positions), device=self.backend.device)[:, None]

    @property
    def layers(self) -> list[int]:
        """Blocks in which something changes."""
        return sorted({layer for kind, layer in self.changes if kind != "logits"})

    def logits(self) -> Float[Tensor, "candidate example answer vocab"]:
        """Run the candidates."""
        count, batch = len(self.masks), self.standing.batch
        rows = torch.arange(len(batch), device=batch.index.device).repeat(count)
        logits = self.backend.resume(
            batch.clean.rows(rows), self, self.graph.convention, batch.positions.repeat(count, 1), self.layers
        )
        if self.written != len(self.writers):
            raise RuntimeError(
                f"{self.written} of {len(self.writers)} writers were met during the run, so a hook did not fire. Is "
                "part of the model skipped or replaced?"
            )
        return logits.unflatten(0, (count, len(batch)))

    # ---- writers

    def embedding(self, index: int, value: Tensor) -> None:
        """Embeddings never change."""

    def heads(self, layer: int, z: Float[Tensor, "example pos head d_head"]) -> None:
        change = self.changes.get(("attention", layer))
        if change is None or not len(change.writers):
            return
        own = change.writers - self.graph.attention_writers(layer)
        sent = z.unflatten(0, (len(self.masks), -1))[..., own, :] - self.standing.replaced.outgoing[layer][..., own, :]
        weight = self.backend.output_weight(layer)[own]
        self._write(through(sent.flatten(0, 1), weight).unflatten(1, (len(self.masks), -1)), None)

    def mlp(self, layer: int, output: Float[Tensor, "example pos d_model"]) -> None:
        change = self.changes.get(("mlp", layer))
        if change is not None and len(change.writers):
            positions = self._positions(change)
            replaced = self.standing.replaced.mlps[layer].expand(self.standing.differences.shape[1:])
            values = output.unflatten(0, (len(self.masks), -1)) - self._at(replaced[None], positions)[0]
            self._write(values[None], positions)

    def _write(self, values: Float[Tensor, "writer candidate example _ d_model"], positions: Tensor | None) -> None:
        slots = slice(self.written, self.written + len(values))
        current = self._at(self.standing.differences[self.writers[slots]], positions)[:, None]
        if positions is None:
            torch.sub(values, current, out=self.deltas[slots])
        else:
            self.deltas[slots] = 0
            self.deltas[slots][:, :, self._examples, positions] = values - current
        self.written = slots.stop

    def _positions(self, change: Change) -> Tensor | None:
        """The answer positions, if nothing else is read of what these readers feed."""
        return self.positions if change.answers and not self.standing.hooked else None

    # ---- readers

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        projection = self.backend.projection(layer, self.graph.convention)
        change = self.changes.get(("attention", layer))
        q, k, v = (self._part(change, projection, part) for part in range(3))
        return q, k, v

    def _part(self, change: Change | None, projection: Projection, part: int) -> Tensor:
        """q, k or v, ``(example, pos, head, d_head)``: zero for heads that need not be computed."""
        weight, bias = projection.weights[part], projection.biases[part]
        examples, pos = self.standing.differences.shape[1:3]
        lead = (len(self.masks), examples, pos)
        if change is None:
            return weight.new_zeros(1, 1, 1, 1).expand(lead[0] * lead[1], pos, len(weight), weight.shape[-1])
        result = weight.new_zeros(*lead, len(weight), weight.shape[-1])
        first = sum(projection.splits[:part])
        for rows, streams in self._by_rows(change, first, len(weight)):
            normed = projection.normalise(streams.flatten(1, -2)).to(weight.dtype)
            parts = torch.baddbmm(bias[rows][:, None], normed, weight[rows])
            result[..., rows, :] = parts.unflatten(1, streams.shape[1:-1]).permute(1, 2, 3, 0, 4)
        return result.flatten(0, 1)

    def _by_rows(self, change: Change, first: int, count: int) -> list[tuple[Tensor, Tensor]]:
        """Rows from ``first`` on, counted from there, with their streams: of each candidate, or of one for all."""
        kinds = ((change.other, self._other), (change.carried, self._carried), (change.same, self._same))
        chosen = [(rows[(rows >= first) & (rows < first + count)], streams) for rows, streams in kinds]
        return [(rows - first, streams(change, rows, None)) for rows, streams in chosen if len(rows)]

    def mlp_input(self, layer: int) -> Float[Tensor, "example pos d_model"]:
        change = self.changes.get(("mlp", layer))
        if change is None:
            return self.deltas.new_zeros(1, 1, self.backend.d_model)
        return self._stream(change, self._positions(change))

    def final(self) -> Float[Tensor, "example answer d_model"]:
        return self._stream(self.changes["logits", self.graph.architecture.n_layers], self.positions)

    def _stream(self, change: Change, positions: Tensor | None) -> Tensor:
        streams = self._other if len(change.other) else self._carried
        (stream,) = streams(change, torch.zeros(1, dtype=torch.long), positions)
        count = len(self.masks)
        return stream.expand(count, *stream.shape[1:]).flatten(0, 1).to(self.backend.dtype)

    # ---- streams: (reader, candidate or 1, example, pos or answer, d_model)

    def _same(self, change: Change, rows: Tensor, positions: Tensor | None) -> Tensor:
        """Those of the current circuit."""
        current = self._at(self.standing.differences[: change.readers.width], positions)
        mixed = self._block(change)[0, rows] @ current.flatten(1)
        return self._base(change, positions) + mixed.unflatten(1, (1, *current.shape[1:])).to(self.standing.exact)

    def _carried(self, change: Change, rows: Tensor, positions: Tensor | None) -> Tensor:
        """Those of rows whose edges all candidates have alike."""
        streams, mask, deltas = self._same(change, rows, positions), *self._deltas(change, positions)
        if not len(deltas):
            return streams
        return streams + (mask[0, rows] @ deltas.flatten(1)).unflatten(1, deltas.shape[1:]).to(streams.dtype)

    def _other(self, change: Change, rows: Tensor, positions: Tensor | None) -> Tensor:
        """Those of rows whose edges differ between candidates."""
        current = self._at(self.standing.differences[: change.readers.width], positions)
        block = self._block(change)[:, rows].transpose(0, 1)
        mixed = (block.flatten(0, 1) @ current.flatten(1)).unflatten(0, block.shape[:2])
        mask, deltas = self._deltas(change, positions)
        if len(deltas):
            mixed = mixed + torch.einsum("krw,wkn->rkn", mask[:, rows], deltas.flatten(2))
        return self._base(change, positions) + mixed.unflatten(2, current.shape[1:]).to(self.standing.exact)

    def _block(self, change: Change) -> Float[Tensor, "candidate reader writer"]:
        return change.readers.block(self.masks).to(self.backend.dtype)

    def _base(self, change: Change, positions: Tensor | None) -> Tensor:
        return self._at(self.standing.bases[self.graph.readers.index(change.readers)][None], positions)[:, None]

    def _deltas(self, change: Change, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Masks and values of the writers that changed before these readers."""
        before = int((self.writers < change.readers.width).sum())
        deltas = self.deltas[:before]
        if positions is not None:
            deltas = deltas[:, :, self._examples, positions]
        return self._block(change)[..., self.writers[:before]], deltas

    def _at(self, values: Tensor, positions: Tensor | None) -> Tensor:
        """``(any, example, pos, d_model)`` at the answer positions."""
        return values if positions is None else values[:, self._examples, positions]


def through(
    sent: Float[Tensor, "example pos head d_head"], weight: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "head example pos d_model"]:
    """What heads write, from what they send."""
    return torch.bmm(sent.permute(2, 0, 1, 3).flatten(1, 2), weight).unflatten(1, sent.shape[:2])
