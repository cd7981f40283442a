"""Spans for any task: named by a function of your own, and between named ones until every position has one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from tlprune.placing import flow_of
from tlprune.spans import GAP, REST, check_spans
from tlprune.task import Batch, Stream, Task

Places = Callable[[list[int]], Mapping[str, Iterable[int]]]
SPLITS = ("train", "validation", "test")


def with_spans(task: Task, names: Sequence[str], places: Places) -> Task:
    """A task whose spans a function says; what spans it had are gone.

    Args:
        task: the task; its prompts stay.
        names: of the spans, in the order in which masks and figures show them.
        places: from the token ids of a clean prompt, without padding, the positions of each span that is in it. Spans
            may be of any length and differ from prompt to prompt; a prompt need not have all.

    Raises:
        ValueError: a name is none of these or comes twice, a position is outside of the prompt, or in two spans.

    Source: the data-set schema of Haklay et al., "Position-aware Automatic Circuit Discovery" (ACL 2025), section 4.

    Example:
        >>> import tlprune as tp
        >>> task = tp.planted("copy").task
        >>> halves = with_spans(task, ["left", "right"], lambda ids: {"left": range(4), "right": range(4, len(ids))})
        >>> halves.test.spans[0].tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    check_spans(names)
    return _with_numbers(task, tuple(names), lambda batch: _numbers(batch, tuple(names), places))


def covered(task: Task) -> Task:
    """A task in which every position that is no padding is in exactly one span.

    The positions behind a named span, up to the next named one, become the span ``"<name>.."``, in each example with
    the name that stands before them there; those before the first named one become ``".."``. So masks by span need
    nothing for a rest. Gaps that no example of any split has are left out; without named spans all is ``".."``.

    Args:
        task: the task.

    Example:
        >>> import tlprune as tp
        >>> whole = covered(tp.planted("induction").task)
        >>> whole.span_names
        ('..', 'key', 'value', 'value..', 'end')
        >>> [whole.span_names[number] for number in whole.test.spans[0].tolist()]
        ['..', '..', '..', '..', '..', 'key', 'value', 'end']
    """
    if GAP in task.span_names:
        return task
    behind = [(name, f"{name}{GAP}") for name in task.span_names]
    every = (GAP, *(name for pair in behind for name in pair))
    whole = _with_numbers(task, every, lambda batch: _filled(batch, task.span_names, every))
    used = {number for batch in _batches(whole) for number in _spans_of(batch).unique().tolist()}
    kept = [number for number, name in enumerate(every) if number in used or name in (GAP, *task.span_names)]
    table = torch.full((len(every) + 1,), -1)
    table[kept] = torch.arange(len(kept))
    return _with_numbers(whole, tuple(every[number] for number in kept), lambda batch: table[_spans_of(batch)])


def attended_pairs(task: Task) -> tuple[str, ...]:
    """Pairs of spans such that in some training or validation prompt a query in the second sees the first.

    Where a span never comes before another, what attention moves from it to the other is nothing, and
    :func:`tlprune.attention_edges` need have no site for it. A position sees itself and all before it.

    Args:
        task: the task; ``rest`` is what lies in no named span.

    Example:
        >>> import tlprune as tp
        >>> attended_pairs(tp.planted("copy").task)  # the rest lies on either side
        ('copied->copied', 'copied->end', 'copied->rest', 'end->end', 'rest->copied', 'rest->end', 'rest->rest')
    """
    flow = flow_of(task.discovery, task.span_names)
    return (f"{REST}->{REST}",) if flow is None else tuple("->".join(pair) for pair in flow.moves)


def _spans_of(batch: Batch) -> Tensor:
    assert batch.spans is not None
    return batch.spans


def _batches(task: Task) -> list[Batch]:
    return [getattr(stream, split) for stream in task.streams.values() for split in SPLITS]


def _with_numbers(task: Task, names: tuple[str, ...], numbers: Callable[[Batch], Tensor]) -> Task:
    streams = {
        name: Stream(
            **{split: replace(batch, spans=numbers(batch), span_names=names) for split, batch in vars(stream).items()}
        )
        for name, stream in task.streams.items()
    }
    return replace(task, streams=streams, span_names=names)


def _real(batch: Batch) -> Tensor:
    """Which positions are no padding."""
    mask = batch.clean.attention_mask
    return torch.ones_like(batch.clean.ids, dtype=torch.bool) if mask is None else mask > 0


def _numbers(batch: Batch, names: tuple[str, ...], places: Places) -> Int[Tensor, "example pos"]:
    result = torch.full_like(batch.clean.ids, -1)
    for row, real in enumerate(_real(batch)):
        positions = real.nonzero().flatten()
        own = _numbers_of_one(batch.clean.ids[row, positions].tolist(), names, places)
        result[row, positions] = torch.tensor(own, device=result.device)
    return result


def _numbers_of_one(ids: list[int], names: tuple[str, ...], places: Places) -> list[int]:
    numbers = [-1] * len(ids)
    for name, positions in places(ids).items():
        for position in positions:
            if name not in names or not 0 <= position < len(ids) or numbers[position] != -1:
                raise ValueError(
                    f"A span needs a name among {', '.join(names)} and positions of the prompt, 0 to {len(ids) - 1}, "
                    f"that are in no other, but {name!r} is said to have {position}. Give each position once."
                )
            numbers[position] = names.index(name)
    return numbers


def _filled(batch: Batch, named: tuple[str, ...], every: tuple[str, ...]) -> Int[Tensor, "example pos"]:
    """The number in ``every`` of each position's span; that of a gap follows from the last named span before it."""
    known = torch.full_like(batch.clean.ids, -1) if batch.spans is None else batch.spans
    last = torch.full_like(known[:, 0], every.index(GAP))
    result = torch.full_like(known, -1)
    for position, real in enumerate(_real(batch).unbind(1)):
        own = known[:, position]
        inside = own >= 0
        number = torch.where(inside, 1 + 2 * own, last)
        last = torch.where(inside, number + 1, last)
        result[:, position] = torch.where(real, number, -1)
    assert len(every) == 1 + 2 * len(named)
    return result
