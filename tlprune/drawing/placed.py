"""Where a site has its cell in a table of layers: by its name."""

from __future__ import annotations

import re

from tlprune.drawing.scene import node_and_part

Place = tuple[str, str]
"""A row and a column."""

COLUMNS = ("q", "k", "v", "attention", "MLP", "mlp", "heads", "mlps", "layers", "neurons", "logits")
HEAD, LAYER = re.compile(r"a(\d+)\.h(\d+)"), re.compile(r"(?:a|m|blocks\.)(\d+)\b")


def node_place(name: str) -> Place | None:
    """The cell of a head or MLP, with heads across; nothing for embeddings.

    Example:
        >>> node_place("a5.h11"), node_place("m3"), node_place("a2"), node_place("input")
        (('layer 5', '11'), ('layer 3', 'MLP'), ('layer 2', 'attention'), None)
    """
    if head := HEAD.fullmatch(name):
        return f"layer {head[1]}", head[2]
    whole = re.fullmatch(r"([am])(\d+)", name)
    return (f"layer {whole[2]}", "MLP" if whole[1] == "m" else "attention") if whole else None


def site_place(name: str, kind: str) -> Place:
    """The cell of a site: an edge's is that of its reader, another's that of its kind.

    Example:
        >>> site_place("a0.h1->a2.h0<q>", "edges"), site_place("m0->logits", "edges"), site_place("a3.h1", "heads")
        (('layer 2', 'q'), ('logits', 'logits'), ('layer 3', 'heads'))
    """
    if kind != "edges":
        return _row(name) or "embeddings", kind
    node, part = node_and_part(name.partition("->")[2])
    return _row(node) or "logits", "attention" if part == "mlp" and node.startswith("a") else part


def matrix_place(name: str) -> Place:
    """The cell of a weight matrix.

    Example:
        >>> matrix_place("blocks.4.attn.W_Q"), matrix_place("embed.W_E")
        (('layer 4', 'attn.W_Q'), ('other', 'embed.W_E'))
    """
    row = _row(name)
    return (row, re.sub(r"^blocks\.\d+\.", "", name)) if row else ("other", name)


def _row(name: str) -> str | None:
    found = LAYER.match(name)
    return f"layer {found[1]}" if found else None


def layer_of(row: str) -> tuple[int, str]:
    """The order of rows, from the bottom up."""
    number = row.removeprefix("layer ")
    return (int(number), "") if number.isdigit() else (10**9 if row == "logits" else -1, row)


def column_of(column: str) -> tuple[int, int, str]:
    """The order of columns: heads by number, then kinds."""
    if column.isdigit():
        return 0, int(column), ""
    return 1, COLUMNS.index(column) if column in COLUMNS else len(COLUMNS), column
