"""What the prompts of a task say of their spans: where each is, which attends to which, and which are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.flow import Flow
from tlprune.spans import every_span, places
from tlprune.task import Batch, Discovery


def spans_of(batch: Batch, names: tuple[str, ...]) -> Int[Tensor, "example pos"] | None:
    """Numbers of the spans of each position in the order of ``names``; positions in no named span have -1."""
    if batch.spans is None or not names:
        return None
    missing = [name for name in names if name not in batch.span_names]
    if missing:
        raise ValueError(
            f"The masks differ by the spans {', '.join(names)} but these prompts have {', '.join(batch.span_names)}. "
            "Name spans of the task: tp.edges(model, spans=task.span_names)."
        )
    table = torch.tensor([names.index(name) if name in names else -1 for name in batch.span_names] + [-1])
    return table[batch.spans.cpu()]


def flow_of(discovery: Discovery, names: tuple[str, ...], *, causal: bool = True) -> Flow | None:
    """How spans follow each other in the training and validation prompts of a task, and at which answers are read.

    One span moves into another if in some prompt a position of the other attends to one of it: under causal attention
    to itself and those before it, else to all. It is read if some answer position is in it. Padding does neither.

    Args:
        discovery: what may be seen of a task.
        names: of its spans, those that sites differ by.
        causal: whether positions attend to those before them alone.

    Returns:
        Nothing where the prompts have no spans.

    Raises:
        ValueError: the prompts have other spans.

    Example:
        >>> import tlprune as tp
        >>> task = tp.planted("and").task
        >>> flow = flow_of(task.discovery, task.span_names)
        >>> flow.spans, flow.read, ("x", "y") in flow.moves, ("y", "x") in flow.moves, ("end", "x") in flow.moves
        (('x', 'y', 'end', 'rest'), ('end',), True, False, False)
    """
    spans, seen = every_span(names), list(_placed(discovery, names))
    if not names or not seen:
        return None
    moves = torch.stack([_moves(place, causal=causal) for _, place in seen]).any(0)
    read = torch.stack([_read(batch, place) for batch, place in seen]).any(0)
    pairs = tuple((spans[source], spans[target]) for source, target in moves.nonzero().tolist())
    return Flow(spans, pairs, tuple(name for name, own in zip(spans, read.tolist(), strict=True) if own))


def _placed(discovery: Discovery, names: tuple[str, ...]) -> Iterator[tuple[Batch, Float[Tensor, "example pos span"]]]:
    """Batches with 1 where a position that is no padding is in a span."""
    for batch in _batches(discovery):
        numbers = spans_of(batch, names)
        if numbers is not None:
            place = torch.nn.functional.one_hot(places(names, numbers), len(every_span(names))).float()
            mask = batch.clean.attention_mask
            yield batch, place if mask is None else place * (mask.cpu() > 0)[..., None]


def _batches(discovery: Discovery) -> Iterable[Batch]:
    return (batch for stream in discovery.streams.values() for batch in stream)


def _moves(place: Float[Tensor, "example pos span"], *, causal: bool) -> Bool[Tensor, "source span"]:
    before = place.cumsum(1) if causal else place.sum(1, keepdim=True).expand_as(place)
    return (before.flatten(0, 1).T @ place.flatten(0, 1)) > 0


def _read(batch: Batch, place: Float[Tensor, "example pos span"]) -> Bool[Tensor, "span"]:
    example, answer = batch.answered.cpu().nonzero(as_tuple=True)
    return (place[example, batch.positions.cpu()[example, answer]] > 0).any(0)
