"""Attention edges: what one head's queries in one span take, by its keys or its values, from another span."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.graph import Architecture, Convention, Graph
from tlprune.spans import check_spans, every_span

Pair = tuple[str, str]
READER = re.compile(r"a(\d+)\.(?:h|kv)(\d+)<([kv])>")


@dataclass(frozen=True)
class AttentionEdges:
    """One site for each of some key and value readers and each pair of a source and a query span.

    ``a1.h0<v>@s1->end`` is what the queries at ``end`` see of the values that head ``a1.h0`` has at ``s1``. Where
    key/value heads are shared it is of all query heads that share one: ``a1.kv0<v>@s1->end``.

    Attributes:
        readers: names of k and v readers, as a :class:`~tlprune.Graph` has them.
        spans: names of spans; ``rest`` is one more, as of :class:`~tlprune.spans.Spanned`. Without names all is rest.
        pairs: source and query span of each site of a reader.

    Raises:
        ValueError: a name is no reader of keys or values, no span can be called so, or a pair is not of these spans or
            comes twice.

    Example:
        >>> sites = AttentionEdges(("a0.h0<k>", "a0.h0<v>"), ("s1", "end"), (("s1", "end"), ("rest", "end")))
        >>> len(sites), sites.name(2), sites.index("a0.h0<k>@rest->end")
        (4, 'a0.h0<v>@s1->end', 1)
    """

    readers: tuple[str, ...]
    spans: tuple[str, ...]
    pairs: tuple[Pair, ...]

    def __post_init__(self) -> None:
        check_spans(self.spans)
        bad = [name for name in self.readers if not READER.fullmatch(name)]
        if bad or len({*self.readers}) < len(self.readers):
            raise ValueError(
                f"Attention edges are of k and v readers, each once, such as 'a1.h0<v>', but got "
                f"{', '.join(bad or self.readers)}. Take readers of the model: tp.attention_edges(model, spans=...)."
            )
        strange = [pair for pair in self.pairs if not {*pair} <= {*self.all_spans}]
        if strange or len({*self.pairs}) < len(self.pairs):
            raise ValueError(
                f"Attention edges lead from span to span among {', '.join(self.all_spans)}, each pair once, but got "
                f"{', '.join(map('->'.join, strange or self.pairs))}. Give (source, query) for each."
            )

    @property
    def kind(self) -> str:
        return "attention_edges"

    @property
    def all_spans(self) -> tuple[str, ...]:
        return every_span(self.spans)

    def __len__(self) -> int:
        return len(self.readers) * len(self.pairs)

    def name(self, index: int) -> str:
        reader, pair = divmod(index, len(self.pairs))
        return f"{self.readers[reader]}@{'->'.join(self.pairs[pair])}"

    @cached_property
    def _places(self) -> dict[str, int]:
        return {self.name(index): index for index in range(len(self))}

    def index(self, name: str) -> int:
        if name not in self._places:
            raise ValueError(
                f"{name!r} is not one of these {len(self):,} attention edges. Write {self.name(0)!r}; spans are "
                f"{', '.join(self.all_spans)}."
            )
        return self._places[name]

    @property
    def ungrouped(self) -> bool:
        """Whether the readers are those of query heads."""
        return not any(".kv" in name for name in self.readers)

    @cached_property
    def _rows(self) -> dict[int, list[tuple[int, int, int]]]:
        """The readers of each layer: number, 0 for keys and 1 for values, head."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        for row, name in enumerate(self.readers):
            layer, head, part = READER.sub(r"\1 \2 \3", name).split()
            found.setdefault(int(layer), []).append((row, "kv".index(part), int(head)))
        return found

    def of_layer(
        self, values: Float[Tensor, "*lead site"], layer: int, n_readers: int
    ) -> Float[Tensor, "*lead 2 head source query"]:
        """The masks of a block's keys and values, 1 where there is no such site.

        Args:
            values: masks of all sites.
            layer: which block.
            n_readers: its readers of keys, or of values.
        """
        ones = torch.ones(*values.shape[:-1], 1, dtype=values.dtype, device=values.device)
        table = self._table(layer, n_readers).to(values.device)
        return torch.cat([values, ones], -1)[..., table]

    @cached_property
    def apart(self) -> Int[Tensor, "span"]:
        """For each span the first one whose queries see the same: those without sites see all there is.

        Example:
            >>> AttentionEdges(("a0.h0<k>",), ("s1", "s2", "end"), (("s1", "end"),)).apart.tolist()
            [0, 0, 2, 0]
        """
        masked = {query for _, query in self.pairs}
        free = [number for number, span in enumerate(self.all_spans) if span not in masked]
        return torch.tensor([free[0] if number in free else number for number in range(len(self.all_spans))])

    def _table(self, layer: int, n_readers: int) -> Int[Tensor, "2 head source query"]:
        """The number of the site in each place, that behind the last where there is none."""
        spans = self.all_spans
        table = torch.full((2, n_readers, len(spans), len(spans)), len(self))
        sources, queries = (torch.tensor([spans.index(pair[end]) for pair in self.pairs]) for end in (0, 1))
        rows, parts, heads = torch.tensor(self._rows.get(layer, []), dtype=torch.long).view(-1, 3, 1).unbind(1)
        table[parts, heads, sources, queries] = rows * len(self.pairs) + torch.arange(len(self.pairs))
        return table

    def as_dict(self) -> dict[str, Any]:
        pairs = [list(pair) for pair in self.pairs]
        return {"kind": self.kind, "readers": list(self.readers), "spans": list(self.spans), "pairs": pairs}


def every_pair(spans: Iterable[str]) -> tuple[Pair, ...]:
    """All pairs of a source and a query span.

    Example:
        >>> every_pair(["..", "end"])
        (('..', '..'), ('..', 'end'), ('end', '..'), ('end', 'end'))
    """
    names = every_span(tuple(spans))
    return tuple((source, query) for source in names for query in names)


def pair_of(text: str) -> Pair:
    """A source and a query span, from ``"s1->end"``.

    Raises:
        ValueError: it is not written so.
    """
    source, arrow, query = text.partition("->")
    if not arrow:
        raise ValueError(f"A pair of spans is written 'source->query', but {text!r} has no '->'. Write 's1->end'.")
    return source, query


def key_value_readers(architecture: Architecture, convention: Convention) -> Iterator[str]:
    """The readers of keys and values of every block, under a convention that tells heads and q, k and v apart.

    Example:
        >>> list(key_value_readers(Architecture(1, 4, 2), Convention()))
        ['a0.kv0<k>', 'a0.kv1<k>', 'a0.kv0<v>', 'a0.kv1<v>']
    """
    kv = "per_query_head" if convention.ungrouped else "shared"
    for readers in Graph(architecture, Convention(kv=kv)).readers:
        yield from (name for name in readers.names if name.endswith(("<k>", "<v>")))
