"""A comparison as a page of Markdown: tables at equal effective edges, costs, the truth, and what made the figures."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tlprune.benchmarking.comparing import Cell, Line, compared
from tlprune.benchmarking.published import ACDC_PAPER, published
from tlprune.benchmarking.rows import FAILED, MEASURED, Store
from tlprune.files import write_whole
from tlprune.versions import versions

REPORT = "report.md"
SETTING = ("model", "task", "ablation", "discovery_ablation")
NOT_RUN = "not run"
# What figures of a ranking against the true circuit begin with.
TRUTH = ("roc_auc", "stairs_auc", "average_precision", "precision_")
Row = Mapping[str, Any]


def write_report(
    store: Store, *, device: str, command: str | None = None, missing: Mapping[tuple[str, str], str] | None = None
) -> Path:
    """Write ``report.md`` into the folder of a comparison.

    Args:
        store: its rows.
        device: where it ran, in words.
        command: what made it, if a command line did.
        missing: why a task in a model was not run.
    """
    lines = ["# Methods compared", "", *_origin(device, command)]
    for setting in dict.fromkeys(tuple(row[name] for name in SETTING) for row in store.rows):
        lines += ["", *_section(store, [row for row in store.rows if tuple(row[name] for name in SETTING) == setting])]
    for (task, model), reason in (missing or {}).items():
        lines += ["", f"## {task} in {model}: {NOT_RUN}", "", reason]
    path = store.folder / REPORT
    write_whole(path, "\n".join(lines) + "\n")
    return path


def _origin(device: str, command: str | None) -> Iterator[str]:
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    yield f"Made by tlprune at commit {commit()} on {device}; {made}; Python {platform.python_version()}."
    if command:
        yield from ("", f"    {command}")


def commit() -> str:
    """The commit that the library is at, ``unknown`` where it is installed without its history."""
    folder = Path(__file__).parent
    words = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return "unknown"
    return found or "unknown"


def device_text(device: torch.device) -> str:
    """A device as reports name it.

    Example:
        >>> device_text(torch.device("cpu")).startswith("CPU")
        True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"
    return device.type


def _section(store: Store, rows: Sequence[Row]) -> Iterator[str]:
    first = rows[0]
    own, discovery = first["ablation"], first["discovery_ablation"]
    yield f"## {first['task']} in {first['model']}, {own} ablation" + (
        "" if own == discovery else f", found under {discovery}"
    )
    references = {row["method"]: row for row in rows if row["mode"] == "reference"}
    empty, full = references["empty circuit"], references["full model"]
    yield ""
    yield (
        f"{full['total']:,} edges ({full['convention']}). KL from the full model in nats on test prompts; that of the "
        f"empty circuit is {_number(empty['kl'])}. `f` is (m(C) - m(empty)) / (m(full) - m(empty)) of the mean logit "
        "difference m. Sizes are effective edges. Below each mean over seeds its 95% interval (bootstrap over "
        "examples); `=` marks what cannot be told from the best at that size (the paired interval holds zero)."
    )
    table = compared(store, rows)
    if table:
        labels = {row["target"]: row["size"] for row in rows if row.get("target") is not None}
        yield from ("", "### KL (nats)", "", *_grid(table, labels, _kl))
        yield from ("", "### f", "", *_grid(table, labels, _f))
    own = [row for row in rows if row["mode"] == "own size" and row["status"] == MEASURED]
    if own:
        yield from ("", "### Circuits of a method's own size", "", *_own_sizes(own))
    if any(name.startswith(TRUTH) for row in rows for name in row):
        yield from ("", "### Against the true circuit", "", *_truth(rows))
    yield from ("", "### Costs", "", *_costs(rows))
    failed = [row for row in rows if row["status"] == FAILED]
    if failed:
        yield from ("", "### Not measured", "")
        yield from (f"- {row['method']} ({row['mode']}): {row['error']}" for row in failed)


def _grid(table: Mapping[int, Mapping[Line, Cell]], labels: Mapping[int, str], shown: Any) -> Iterator[str]:
    lines = list(dict.fromkeys(line for cells in table.values() for line in cells))
    header = [f"{size:,} ({labels[size]})" if labels[size] != str(size) else f"{size:,}" for size in table]
    yield from _markdown(
        ["method", "how", *header],
        ([*line, *(shown(cells[line]) if line in cells else NOT_RUN for cells in table.values())] for line in lines),
    )


def _kl(cell: Cell) -> str:
    mark = " =" if cell.tied else ""
    seeds = f"; seeds {_number(min(cell.by_seed))} to {_number(max(cell.by_seed))}" if len(cell.by_seed) > 1 else ""
    return f"{_number(cell.kl.value)}{mark} [{_number(cell.kl.low)}, {_number(cell.kl.high)}{seeds}]{_short(cell)}"


def _f(cell: Cell) -> str:
    return "undefined" if cell.faithfulness is None else f"{cell.faithfulness:.3f}{_short(cell)}"


def _short(cell: Cell) -> str:
    """The effective sizes, where some are not what was asked for."""
    sizes = sorted({*cell.effective})
    return "" if sizes == [cell.target] else f" ({', '.join(f'{size:,}' for size in sizes)} effective)"


def _own_sizes(rows: Iterable[Row]) -> Iterator[str]:
    names = ("nominal", "effective", "kl", "faithfulness", "complement_kl")
    cells = ([row["method"], *(_plain(row.get(name)) for name in ("seed", *names))] for row in rows)
    yield from _markdown(["method", "seed", *names], cells)


def _truth(rows: Iterable[Row]) -> Iterator[str]:
    ranked = [row for row in rows if any(name.startswith(TRUTH) for name in row)]
    names = sorted({name for row in ranked for name in row if name.startswith(TRUTH)})
    known = [published(str(row["task"]), str(row["method"])) for row in ranked]
    cells = (
        [row["method"], *(_plain(row.get(name)) for name in ("seed", *names)), _published(figures)]
        for row, figures in zip(ranked, known, strict=True)
    )
    header = ["method", "seed", *(name.replace("_", " ") for name in names), "published AUC, edges (nodes)"]
    yield from _markdown(header, cells)
    if any(known):
        yield from ("", f"Published: {ACDC_PAPER}. Those are of other prompts; nothing here claims to agree with them.")


def _published(known: Mapping[str, float]) -> str:
    if not known:
        return "-"
    return f"{known['edges']:.3f}" + (f" ({known['nodes']:.3f})" if "nodes" in known else "")


def _costs(rows: Iterable[Row]) -> Iterator[str]:
    yield from _markdown(
        ["method", "how", "seed", "size", "forward equivalents", "seconds", "CPU seconds", "peak memory (MB)"],
        ([*_who(row), *_cost(row)] for row in _one_per_search(rows)),
    )
    yield from ("", "A forward equivalent is one forward run of one prompt; a backward run counts as one more.")


def _who(row: Row) -> list[str]:
    size = "all" if row.get("cost_covers") == "all sizes" else _plain(row.get("target") or row.get("effective"))
    return [row["method"], row["mode"], _plain(row["seed"]), size]


def _cost(row: Row) -> list[str]:
    peak = row.get("peak_bytes")
    own = [f"{row['forward_equivalents']:,.0f}", f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}"]
    return [*own, "unknown" if peak is None else f"{peak / 2**20:,.0f}"]


def _one_per_search(rows: Iterable[Row]) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        if "seconds" in row and row["cell"] not in seen:
            seen.add(row["cell"])
            yield row


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return _number(value) if isinstance(value, float) else f"{value:,}"


def _number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:.1e}" if 0 < size < 0.001 else f"{value:.4f}" if size < 0.1 else f"{value:.3f}"
