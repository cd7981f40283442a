"""The examples of one stream during training: their order, and what is computed once of each."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from tlprune.masking.cache import RunCache
from tlprune.masking.masked import Masked
from tlprune.task import Batch, Discovery


class Examples:
    """Batches without end: each pass goes through all examples in a new order, whole batches only.

    Args:
        masked: the model.
        discovery: ``task.discovery``.
        stream: which of its streams.
        size: examples per batch; all of them where there are fewer.
        generator: of the order.
    """

    def __init__(self, masked: Masked, discovery: Discovery, *, stream: str, size: int, generator: torch.Generator):
        self.train, self.validation = discovery.train(stream), discovery.validation(stream)
        self.size, self.generator = min(size, len(self.train)), generator
        self.device = masked.backend.device
        self.cache = masked.cache(self.train)
        self.validation_cache = masked.cache(self.validation)
        self.order, self.position = torch.arange(len(self.train)), len(self.train)
        self.met = torch.zeros(len(self.train), dtype=torch.bool)
        self.fills: list[Tensor] = []

    def draw(self) -> Batch:
        """The next batch."""
        if self.position + self.size > len(self.order):
            self.order, self.position = torch.randperm(len(self.train), generator=self.generator), 0
        rows = self.order[self.position : self.position + self.size]
        self.position += self.size
        return self.train.rows(rows).to(self.device)

    def prepared(self, batch: Batch) -> RunCache:
        """The cache of training examples, which knows replacements and predictions of these."""
        rows = batch.index.cpu()
        if not self.met[rows].all():
            self.fills.append(rows)
            self.met[rows] = True
            self.cache.replaced(batch)
            self.cache.references(batch)
        return self.cache

    def state(self) -> dict[str, Int[Tensor, "..."]]:
        """Where the order stands, and in which groups examples were met, for they are rounded group by group."""
        sizes = torch.tensor([len(rows) for rows in self.fills], dtype=torch.long)
        fills = torch.cat([torch.zeros(0, dtype=torch.long), *self.fills])
        return {"order": self.order, "position": torch.tensor(self.position), "fills": fills, "fill_sizes": sizes}

    @torch.no_grad()
    def restore(self, state: dict[str, Int[Tensor, "..."]]) -> None:
        """Go on from a :meth:`state`, with the same numbers in the caches to the last bit."""
        self.order, self.position = state["order"], int(state["position"])
        for rows in state["fills"].split(state["fill_sizes"].tolist()):
            self.prepared(self.train.rows(rows).to(self.device))
