"""The examples of one stream during training: their order, and what is computed once of each."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from tlprune.learning.layout import Layout
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
        layout: which processes there are, of which each fills a cache of its own.
    """

    def __init__(
        self,
        masked: Masked,
        discovery: Discovery,
        *,
        stream: str,
        size: int,
        generator: torch.Generator,
        layout: Layout,
    ) -> None:
        self.train, self.validation = discovery.train(stream), discovery.validation(stream)
        self.size, self.generator, self.layout = min(size, len(self.train)), generator, layout
        self.device = masked.backend.device
        self.cache = masked.cache(self.train)
        self.validation_cache = masked.cache(self.validation)
        self.order, self.position = torch.arange(len(self.train)), len(self.train)
        self.met = torch.zeros(layout.processes.count, len(self.train), dtype=torch.bool)
        self.fills: list[tuple[int, Tensor]] = []

    def draw(self) -> Batch:
        """The next batch."""
        if self.position + self.size > len(self.order):
            self.order, self.position = torch.randperm(len(self.train), generator=self.generator), 0
        rows = self.order[self.position : self.position + self.size]
        self.position += self.size
        return self.train.rows(rows).to(self.device)

    def meet(self, batch: Batch, *, process: int) -> bool:
        """Note that a process runs examples; whether it has not met them all before.

        Every process notes it of all, so that any of them can say in which groups caches were filled.
        """
        rows = batch.index.cpu()
        if bool(self.met[process, rows].all()):
            return False
        self.fills.append((process, rows))
        self.met[process, rows] = True
        return True

    def prepare(self, batch: Batch) -> None:
        """Let the cache know replacements and predictions of examples that this process runs."""
        if self.meet(batch, process=self.layout.processes.rank):
            self.cache.replaced(batch)
            self.cache.references(batch)

    def state(self) -> dict[str, Int[Tensor, "..."]]:
        """Where the order stands, and in which groups examples were met, for they are rounded group by group."""
        return {
            "order": self.order,
            "position": torch.tensor(self.position),
            "fills": torch.cat([torch.zeros(0, dtype=torch.long), *(rows for _, rows in self.fills)]),
            "fill_sizes": torch.tensor([len(rows) for _, rows in self.fills], dtype=torch.long),
            "fill_processes": torch.tensor([process for process, _ in self.fills], dtype=torch.long),
            "layout": self._layout,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Int[Tensor, "..."]]) -> None:
        """Go on from a :meth:`state`; with the same layout the caches have the same numbers to the last bit."""
        self.order, self.position = state["order"], int(state["position"])
        if not torch.equal(state["layout"], self._layout):
            return
        groups = state["fills"].split(state["fill_sizes"].tolist())
        for process, rows in zip(state["fill_processes"].tolist(), groups, strict=True):
            batch = self.train.rows(rows)
            if process == self.layout.processes.rank:
                self.prepare(batch.to(self.device))
            else:
                self.meet(batch, process=process)

    @property
    def _layout(self) -> Int[Tensor, "2"]:
        return torch.tensor([self.layout.processes.count, self.layout.micro_batch or 0])
