"""What does not change between training steps, computed once: replacements and the full model's predictions.

Predictions over a vocabulary are large. Where those of a split would take more than a quarter of a gigabyte, the last
residual stream at the answer positions is kept instead, ``d_model`` numbers for each, and unembedded when asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends.activations import FOR_EDGES, Activations, Backend, Wanted
from tlprune.masking.ablation import Ablation
from tlprune.masking.unembedding import unembeds_apart, vocabulary
from tlprune.task import Batch

MOST_PREDICTIONS = 1 << 28  # bytes of log-probabilities that are kept as they are


class RunCache:
    """Replacements and reference log-probabilities of one split of a task, filled as examples are met.

    Args:
        backend: the model.
        ablation: what replaces ablated writers.
        split: the examples; rows are found by ``Batch.index``.
        wanted: which activations the sites in play need.
        most_bytes: above this the replacements of single examples are computed anew at each step, and so are the
            reference predictions; each of the two by its own size.
        most_predictions: above this the last residual stream is kept in place of log-probabilities.

    Raises:
        ValueError: the examples of ``split`` are not numbered from 0 in order.
    """

    def __init__(
        self,
        backend: Backend,
        ablation: Ablation,
        split: Batch,
        *,
        wanted: Wanted = FOR_EDGES,
        most_bytes: int = 4 << 30,
        most_predictions: int = MOST_PREDICTIONS,
    ) -> None:
        if not torch.equal(split.index.cpu(), torch.arange(len(split))):
            raise ValueError(
                "A cache finds examples by their number, so those of a split need numbers from 0 in order, but these "
                "have others. Build the batch with index=torch.arange(len(batch))."
            )
        self.backend, self.ablation, self.split, self.most_bytes = backend, ablation, split, most_bytes
        self.wanted, self.most_predictions = wanted, most_predictions
        self._replaced = _Rows(len(split))
        self._reference = _Rows(len(split))
        self._shared: Activations | None = None

    def replaced(self, batch: Batch) -> Activations:
        """What ablated writers send for these examples."""
        if self.ablation.varies == "never":
            if self._shared is None:
                self._shared = self._replaced_anew(batch)
            return self._shared
        if self.ablation.varies == "per_step" or not self._fits:
            return self._replaced_anew(batch)
        missing = self._replaced.missing(batch.index)
        if len(missing):
            part = batch.rows(missing)
            found = self._replaced_anew(part)
            self._template = found
            self._replaced.store(part.index, _unique(found.tensors))
        rows = self._replaced.load(batch.index)
        names = {id(tensor): row for tensor, row in zip(_unique(self._template.tensors), rows, strict=True)}
        return self._template.map(lambda tensor: names[id(tensor)])

    @property
    def kept(self) -> list[Tensor]:
        """Everything that is held for later steps."""
        shared = () if self._shared is None else self._shared.tensors
        return [*shared, *self._replaced.tensors, *self._reference.tensors]

    def _replaced_anew(self, batch: Batch) -> Activations:
        return self.ablation.replaced(self.backend, batch.clean, batch.corrupt, self.wanted)

    def reference(self, batch: Batch) -> Float[Tensor, "example answer vocab"]:
        """What the unmasked model says at the answer positions: ``reference_predictions``."""
        return self._predictions(self._said(batch))

    def references(self, batch: Batch) -> Callable[[Tensor, Tensor], Float[Tensor, "place 1 vocab"]]:
        """The same for some of the answers, by their numbers of example and answer: a large batch piece by piece."""
        said = self._said(batch)
        return lambda rows, answers: self._predictions(said[rows, answers][:, None])

    @torch.no_grad()
    def _predictions(self, said: Tensor) -> Tensor:
        return predictions(self.backend.unembed(said)) if self._keeps_streams else said

    def _said(self, batch: Batch) -> Float[Tensor, "example answer _"]:
        """What is kept of the unmasked model's predictions: these, or the stream that they are read from."""
        missing = self._reference.missing(batch.index)
        if len(missing):
            part = batch.rows(missing)
            found = self._said_anew(part)
            if len(self.split) * found[0].nbytes > self.most_bytes:
                return found  # nothing is ever stored, so these are all of the batch
            self._reference.store(part.index, [found])
        return self._reference.load(batch.index)[0]

    @torch.no_grad()
    def _said_anew(self, batch: Batch) -> Tensor:
        if self._keeps_streams:
            return self.backend.final(batch.clean.trimmed(), {}, batch.positions)
        return reference_predictions(self.backend, batch)

    @cached_property
    def _keeps_streams(self) -> bool:
        """Whether the last stream takes less room than predictions, which are too large to be kept."""
        tokens, itemsize = vocabulary(self.backend), max(4, self.backend.dtype.itemsize)
        too_large = self.split.positions.numel() * tokens * itemsize > self.most_predictions
        return too_large and self.backend.d_model < tokens and unembeds_apart(self.backend, self.split)

    @property
    def _fits(self) -> bool:
        shape, tokens = self.backend.architecture, self.split.clean.ids.numel()
        streams = shape.n_layers * (1 + int(shape.has_mlp)) + 1 if self.wanted.streams else 0
        vectors = 2 + shape.n_layers * (1 + int(shape.has_mlp)) + streams
        numbers = vectors * self.backend.d_model + len(self.wanted.neurons) * (self.backend.d_mlp or 0)
        return tokens * numbers * self.backend.dtype.itemsize <= self.most_bytes


@torch.no_grad()
def reference_predictions(backend: Backend, batch: Batch) -> Float[Tensor, "example answer vocab"]:
    """Log-probabilities of the unmasked model at the answer positions, in at least float32.

    Of a model with one output, a regression, that output: its log-probability would be 0 whatever the model says.
    """
    return predictions(backend.logits(batch.clean.trimmed(), batch.positions))


def predictions(logits: Float[Tensor, "example answer vocab"]) -> Float[Tensor, "example answer vocab"]:
    """Log-probabilities in at least float32; of a regression its output."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if logits.shape[-1] == 1 else logits.log_softmax(-1)


def _unique(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Each tensor once: in parallel blocks two sets of readers share one stream."""
    return list({id(tensor): tensor for tensor in tensors}.values())


class _Rows:
    """Tensors over the examples of a split, filled row by row; read-only for everyone else."""

    def __init__(self, count: int) -> None:
        self.filled = torch.zeros(count, dtype=torch.bool)
        self.tensors: list[Tensor] = []
        self.versions: list[int] = []

    def missing(self, index: Tensor) -> Tensor:
        """Positions within ``index`` whose rows are not there yet."""
        return (~self.filled[index.cpu()]).nonzero().flatten()

    def store(self, index: Tensor, values: list[Tensor]) -> None:
        self._check()
        if not self.tensors:
            self.tensors = [value.new_empty(len(self.filled), *value.shape[1:]) for value in values]
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor[index] = value
        self.filled[index.cpu()] = True
        self.versions = [tensor._version for tensor in self.tensors]

    def load(self, index: Tensor) -> list[Tensor]:
        self._check()
        return [tensor[index] for tensor in self.tensors]

    def _check(self) -> None:
        if self.versions != [tensor._version for tensor in self.tensors]:
            raise RuntimeError(
                "A cached counterfactual was changed in place, so later runs would be wrong. Copy it before changing "
                "it, and start again with a new cache."
            )
