"""Curves of a training and of circuits of several sizes, from the plain rows that these leave."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tlprune.drawing.picture import Drawing
from tlprune.drawing.plane import Line, Plane, plane_chart
from tlprune.drawing.saving import charted

Row = Mapping[str, Any]
APART = ("model", "task", "ablation", "method", "ranking", "seed")
"""Whatever of these differs tells lines apart."""


def draw_training(
    records: str | Path | Sequence[Row], path: str | Path | None = None, *, title: str | None = None
) -> Drawing:
    """The curves of a training: the objective, sampled and of the hard circuit, and how many sites are kept.

    Args:
        records: the path of a ``metrics.jsonl``, or what ``as_dict()`` of each :class:`~tlprune.Step` gives.
        path: where to save the chart as well, ending in ``.html``, ``.svg`` or ``.png``.
        title: above it.

    Raises:
        ValueError: there are no records, or they are none of a training; a file cannot be read.

    Example:
        >>> line = {"kl_sampled": 0.5, "kl_hard": None, "expected_kept": 7.0, "total": 9}
        >>> draw_training([{"step": 1, **line}, {"step": 2, **line}]).svg.count('data-line="kl sampled"')
        1
    """
    rows = _read(Path(records)) if isinstance(records, (str, Path)) else list(records)
    if not rows or not {"step", "expected_kept", "total"} <= rows[0].keys():
        raise ValueError(
            f"A training is drawn of its records but these {len(rows)} rows are none. Give a metrics.jsonl, or "
            "[step.as_dict() for step in history]."
        )
    total = rows[0]["total"]
    planes = (
        Plane(tuple(_terms(rows)), "step", "objective (nats)"),
        Plane(tuple(_sizes(rows)), "step", "sites kept"),
    )
    last = rows[-1]
    caption = f"{len(rows):,} steps; {last['expected_kept']:,.0f} of {total:,} sites expected at the end"
    caption += f"; {last['seconds']:,.0f} s" if "seconds" in last else ""
    return charted(plane_chart(planes, title=title, caption=caption), path, title=title or "Training")


def _read(path: Path) -> list[Row]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"Cannot read the records {path}: {error.strerror}. Give an existing metrics.jsonl.") from None
    except ValueError:
        raise ValueError(f"{path} is not a file of records: a line is not JSON. Give a metrics.jsonl.") from None


def _terms(rows: Sequence[Row]) -> Iterator[Line]:
    names = [name for name in rows[0] if name.endswith(("_sampled", "_hard"))]
    for name in names:
        points = _points(rows, name)
        if points:
            look = "dots" if name.endswith("_hard") else "line"
            yield Line(name.replace("_", " "), points, look=look)


def _sizes(rows: Sequence[Row]) -> Iterator[Line]:
    kinds = [name for name in rows[0] if name.endswith("expected_kept")]
    for name in kinds if len(kinds) == 1 else kinds[1:]:
        yield Line(name.replace("_", " "), _points(rows, name))
    if len(kinds) == 1 and "target" in rows[0]:
        aimed = tuple(
            (row["step"], (1 - row["target"]) * row["total"]) for row in rows if row.get("target") is not None
        )
        yield Line("aimed at", aimed, look="dashed")


def _points(rows: Sequence[Row], name: str) -> tuple[tuple[float, float], ...]:
    return tuple((row["step"], row[name]) for row in rows if row.get(name) is not None)


def draw_faithfulness(
    found: Any, path: str | Path | None = None, *, figure: str = "faithfulness", title: str | None = None
) -> Drawing:
    """A figure of circuits against their effective edges, with its intervals: a line for each method, seed or name.

    Args:
        found: what has circuits of several sizes: :func:`~tlprune.faithfulness_curve`,
            :func:`~tlprune.faithfulness_areas` (the circuits of CPR and CMD), ``tlprune sweep``'s table, the rows of
            ``tlprune bench``; or several of these by name.
        path: where to save the chart as well, ending in ``.html``, ``.svg`` or ``.png``.
        figure: which of their figures, such as ``"kl"``.
        title: above it.

    Raises:
        ValueError: no circuit with an edge has the figure.

    Example:
        >>> rows = [{"effective": size, "faithfulness": share} for size, share in ((0, 0.0), (10, 0.8), (100, 1.0))]
        >>> drawing = draw_faithfulness({"EAP": rows})
        >>> "EAP" in drawing.svg, "1 circuit without edges left out" in drawing.svg
        (True, True)
    """
    named = found if isinstance(found, Mapping) else {"": found}
    lines, empty = [], 0
    for name, one in named.items():
        rows = [row for row in _rows(one) if row.get(figure) is not None]
        empty += sum(row["effective"] <= 0 for row in rows)
        lines += _lines(name, [row for row in rows if row["effective"] > 0], figure)
    if not lines:
        raise ValueError(
            f"A curve of {figure} needs circuits with an edge and this figure but found none. Give a faithfulness "
            "curve, areas, a sweep, or rows with effective and the figure."
        )
    left_out = f"{empty} circuit{'s' * (empty != 1)} without edges left out" if empty else ""
    bounds = "bands are 95% intervals" if any(line.bounds for line in lines) else ""
    caption = "; ".join(part for part in (bounds, left_out) if part)
    up = {"kl": "KL (nats)"}.get(figure, figure.replace("_", " "))
    plane = Plane(tuple(lines), "effective edges", up, log="x")
    return charted(plane_chart([plane], title=title, caption=caption), path, title=title or f"{up} against size")


def _rows(found: Any) -> list[Row]:
    """Rows with ``effective``; those of areas by the circuits of CPR and of CMD."""
    data = found.as_dict() if hasattr(found, "as_dict") else found
    if isinstance(data, Mapping) and "curves" in data:
        return [
            {"method": name, "effective": effective, "faithfulness": share}
            for name, curve in data["curves"].items()
            for (_, effective), share in zip(curve["counts"], curve["faithfulness"] or (), strict=False)
        ]
    return list(data["rows"] if isinstance(data, Mapping) else data)


def _lines(name: str, rows: Sequence[Row], figure: str) -> Iterator[Line]:
    apart = [key for key in APART if len({str(row.get(key)) for row in rows}) > 1]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        told = (f"seed {row[key]}" if key == "seed" else str(row.get(key)) for key in apart)
        groups.setdefault(", ".join([*([name] if name else []), *told]), []).append(row)
    for label, own in groups.items():
        own.sort(key=lambda row: row["effective"])
        points = tuple((row["effective"], row[figure]) for row in own)
        bounds = [bound for row in own if (bound := _bounds(row, figure))]
        whole = tuple(bounds) if len(bounds) == len(own) else ()
        yield Line(label or figure.replace("_", " "), points, whole, look="line" if len(own) > 1 else "dots")


def _bounds(row: Row, figure: str) -> tuple[float, float] | None:
    if row.get(f"{figure}_low") is not None:
        return row[f"{figure}_low"], row[f"{figure}_high"]
    found = row.get("intervals", {}).get(figure)
    return (found[0], found[1]) if found else None
