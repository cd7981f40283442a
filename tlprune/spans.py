"""Sites that differ by where in a prompt they are: one for each named span, whatever its length and place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from tlprune.flow import Flow

REST = "rest"
GAP = ".."  # behind a span's name: the positions from there to the next named one; alone: those before the first


@runtime_checkable
class Group(Protocol):
    """Sites of one kind, in a fixed order.

    Attributes:
        kind: ``"edges"``, ``"attention_edges"``, ``"nodes"``, ``"heads"``, ``"mlps"``, ``"layers"``, ``"neurons"`` or
            ``"weights"``.
    """

    @property
    def kind(self) -> str: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What the site at ``index`` is called."""
        ...

    def index(self, name: str) -> int:
        """Position of a named site; a ValueError if there is none."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Plain data from which :func:`~tlprune.sites.group_from_dict` makes the group again."""
        ...


@dataclass(frozen=True)
class Spanned:
    """A group once for each named span of a prompt, and once for all positions outside these spans.

    Attributes:
        group: what is repeated.
        spans: names of spans; the last repetition is called ``rest``, and is not there where ``".."`` among the names
            says that every position is in one of them (:func:`tlprune.tasks.covered`).
        flow: how these spans follow each other in some prompts and where these are read, which decides what is on a
            path (:meth:`~tlprune.Graph.effective`); without it, everything that any prompts could have. It names no
            site, so groups that differ in it alone are equal.

    Raises:
        ValueError: a name comes twice, is ``rest``, or has an ``@``; the flow is between other spans.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> group = Spanned(Graph(Architecture(1, 2, 2)), ("s1", "end"))
        >>> len(group), group.all_spans, group.index("a0.h1->logits@end")
        (39, ('s1', 'end', 'rest'), 24)
    """

    group: Group
    spans: tuple[str, ...]
    flow: Flow | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_spans(self.spans)
        if self.flow is not None and self.flow.spans != self.all_spans:
            raise ValueError(
                f"The flow of these sites is between the spans {', '.join(self.all_spans)} but the one given is "
                f"between {', '.join(self.flow.spans)}. Take both from one task: tp.edges(model, spans=task)."
            )

    @property
    def kind(self) -> str:
        return self.group.kind

    @property
    def all_spans(self) -> tuple[str, ...]:
        return every_span(self.spans)

    def __len__(self) -> int:
        return len(self.group) * len(self.all_spans)

    def name(self, index: int) -> str:
        span, inner = divmod(index, len(self.group))
        return f"{self.group.name(inner)}@{self.all_spans[span]}"

    def index(self, name: str) -> int:
        inner, _, span = name.rpartition("@")
        if span not in self.all_spans:
            raise ValueError(
                f"{name!r} names no span of these sites. Write {self.name(0)!r}; spans are {', '.join(self.all_spans)}."
            )
        return self.all_spans.index(span) * len(self.group) + self.group.index(inner)

    def table(self, values: Shaped[Tensor, "*lead site"]) -> Shaped[Tensor, "*lead span inner"]:
        """Values with an axis for spans."""
        return values.unflatten(-1, (len(self.all_spans), len(self.group)))

    def spread(
        self, values: Shaped[Tensor, "*lead site"], spans: Int[Tensor, "example pos"]
    ) -> Shaped[Tensor, "example pos inner"]:
        """Each position's own mask; ``spans`` numbers the span of every position, -1 for none."""
        table, place = self.table(values), places(self.spans, spans)
        if table.dim() == 2:
            return table[place]
        return table[torch.arange(len(table), device=table.device)[:, None], place]

    @property
    def flows(self) -> Flow:
        """The flow between its spans: what is known, or all that could be."""
        return self.flow or Flow.everywhere(self.all_spans)

    def flowing(self, flow: Flow | None) -> Spanned:
        """The same sites with what is known of some prompts."""
        return replace(self, flow=flow)

    def as_dict(self) -> dict[str, Any]:
        known = {} if self.flow is None else {"flow": self.flow.as_dict()}
        return {"kind": self.kind, "spans": list(self.spans), "group": self.group.as_dict(), **known}


def every_span(names: Sequence[str]) -> tuple[str, ...]:
    """The named spans, and ``rest`` for the positions outside of them, unless the names say that there are none.

    Example:
        >>> every_span(("s1", "end")), every_span(("..", "s1", "s1.."))
        (('s1', 'end', 'rest'), ('..', 's1', 's1..'))
    """
    return tuple(names) if GAP in names else (*names, REST)


def places(names: Sequence[str], spans: Int[Tensor, "example pos"]) -> Int[Tensor, "example pos"]:
    """The place of each position's span in :func:`every_span`, from its number, -1 for none.

    Where the names cover every prompt only padding has no span, and is put into the first.
    """
    return torch.where(spans < 0, (len(every_span(names)) - 1) * (GAP not in names), spans)


def check_spans(names: Sequence[str]) -> None:
    """Raise a ValueError unless these can be names of spans."""
    bad = [name for name in names if not name or name == REST or "@" in name]
    if bad or len({*names}) < len(names):
        raise ValueError(
            f"Spans need names that differ, without '@', and {REST!r} is what lies outside of them, but they are "
            f"{', '.join(map(repr, names))}. Name each once, by another word."
        )


def check_covered(
    names: Sequence[str], spans: Int[Tensor, "example pos"], real: Bool[Tensor, "example pos"] | None
) -> None:
    """Raise a ValueError where names promise to cover every prompt and a position that is no padding has no span."""
    outside = (spans < 0) if real is None else (spans < 0) & real
    if GAP in names and bool(outside.any()):
        example, position = outside.nonzero()[0].tolist()
        raise ValueError(
            f"Spans with {GAP!r} among them cover every position, but position {position} of example {example} is in "
            f"none of {', '.join(names)}. Name all spans of the task: tp.edges(model, spans=task.span_names)."
        )
