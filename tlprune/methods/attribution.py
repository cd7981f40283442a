"""What methods share that score edges by gradients of a loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tlprune.backends import backend_of
from tlprune.backends.activations import Activations, Backend
from tlprune.graph import Graph
from tlprune.grouping import of_heads, summed
from tlprune.learning.objectives import KL, LogitDifference, Objective, SquaredError, Sum, weighted
from tlprune.masking.ablation import Ablation
from tlprune.masking.installing import refuse_installed
from tlprune.masking.sites import edges as edge_sites
from tlprune.methods.scoring import EdgeScoring
from tlprune.placing import spans_of
from tlprune.sites import Sites
from tlprune.spans import check_covered, every_span, places
from tlprune.task import Batch, Discovery

# The loss of a batch, from the model's logits at the answer positions and the full model's predictions there.
BatchLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class GradientScoring(EdgeScoring):
    """A method that scores edges by gradients of a loss; the mean over training examples.

    Attributes:
        objective: the loss.
        batch_size: examples per pass; what writers send is held for all of them at once.
        spans: names of the task's spans; every edge then has a score for each span, the sum over its positions, and
            one for the rest. Together they are its score without spans.
    """

    objective: Objective | Sum = field(default=LogitDifference())
    batch_size: int = 16
    spans: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 but is {self.batch_size}. Ask for more.")
        for _, objective in weighted(self.objective):
            if objective.run != "kept":
                raise ValueError(
                    f"Attribution is of the run that the edges keep up, but {objective.name} is of the complement. "
                    "Leave run= out."
                )

    def sites(self, model: Any) -> Sites:
        return edge_sites(
            model, embeddings=self.embeddings, kv=self.kv, qkv=self.qkv, heads=self.heads, spans=self.spans
        )

    def groups(self, batch: Batch) -> list[Tensor] | None:
        """The positions of each span, as numbers in all examples' positions one after the other; no spans, no groups.

        Raises:
            ValueError: the prompts have no such spans.
        """
        numbers = spans_of(batch, self.spans) if self.spans else None
        if self.spans and numbers is None:
            raise ValueError(
                f"Scores by span ({', '.join(self.spans)}) need prompts that name theirs, but these have none. Name "
                "them with tp.tasks.with_spans(task, names, places)."
            )
        if numbers is None:
            return None
        mask = batch.clean.attention_mask
        check_covered(self.spans, numbers, None if mask is None else mask.cpu() > 0)
        place = places(self.spans, numbers).flatten()
        count = len(every_span(self.spans))
        return [(place == span).nonzero().flatten().to(batch.clean.ids.device) for span in range(count)]

    @abstractmethod
    def gradients(
        self, backend: Backend, graph: Graph, batch: Batch, replaced: Activations, loss: BatchLoss
    ) -> Float[Tensor, "*span edge"]:
        """What the loss of a batch rises by, per unit of each edge's mask; by span where :meth:`groups` are."""

    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        return self.sampled(model, discovery, sites, ablation, progress=progress)[0]

    def sampled(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> tuple[Float[Tensor, "site"], Float[Tensor, "sample site"] | None]:
        """The mean over examples, and one sample a batch; none of an objective of several streams, which do not mix."""
        refuse_installed(model)
        backend, graph = backend_of(model), of_heads(sites.graph)
        parts, found = list(self._parts(discovery)), []
        for _, rows, loss in tqdm(parts, disable=not progress, unit="batch"):
            batch = rows.to(backend.device)
            with torch.no_grad():
                replaced = ablation.replaced(backend, batch.clean, batch.corrupt)
            gradients = self.gradients(backend, graph, batch, replaced, partial(loss, batch))
            rows_of_spans = gradients.unflatten(-1, (1, -1)).flatten(0, -2)
            found.append(-torch.cat([summed(row, sites.graph, graph) for row in rows_of_spans]).cpu())
        samples = torch.stack(found).to(torch.promote_types(backend.dtype, torch.float32))
        shares = samples.new_tensor([share for share, _, _ in parts])
        streams = {objective.on for _, objective in weighted(self.objective)}
        return shares @ samples, samples if len(streams) == 1 else None

    def _parts(self, discovery: Discovery) -> Iterator[tuple[float, Batch, Callable[[Batch, Tensor, Tensor], Tensor]]]:
        """Batches of every stream that the objective looks at, their shares of its examples, and their loss."""
        terms = weighted(self.objective)
        for stream in dict.fromkeys(objective.on for _, objective in terms):
            examples = discovery.train(stream)
            own = tuple((weight, objective) for weight, objective in terms if objective.on == stream)
            for batch in examples.split(self.batch_size):
                yield len(batch) / len(examples), batch, partial(_loss, own)


def _loss(terms: tuple[tuple[float, Any], ...], batch: Batch, logits: Tensor, reference: Tensor) -> Tensor:
    value = sum(weight * objective(logits, batch, reference) for weight, objective in terms)
    assert isinstance(value, Tensor)
    if not bool(value.isfinite()):
        names = " + ".join(objective.name for _, objective in terms)
        raise ValueError(
            f"Attribution needs a loss with a number to differentiate, but {names} is {float(value.detach())} on "
            f"examples {batch.index[:4].tolist()} and following. Look at the model's logits there, or choose another "
            "objective."
        )
    return value


def predictions(logits: Float[Tensor, "example answer vocab"]) -> Float[Tensor, "example answer vocab"]:
    """What objectives take as the full model's: log-probabilities, or of a model with one output that output."""
    logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    return logits if logits.shape[-1] == 1 else logits.log_softmax(-1)


def refuse_flat(name: str, objective: Objective | Sum, instead: str) -> None:
    """Raise a ValueError for objectives that are smallest, so without gradient, where nothing is ablated."""
    flat = [type(one).__name__ for _, one in weighted(objective) if isinstance(one, (KL, SquaredError))]
    if flat:
        raise ValueError(
            f"{name} needs a loss that changes where nothing is ablated, but {' and '.join(flat)} compares with the "
            f"full model and is 0 there, with gradient 0 for every edge. Use LogitDifference() or CrossEntropy(), or "
            f"{instead}."
        )
