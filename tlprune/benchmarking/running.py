"""Running a comparison: each method on each setting, its circuits at every size, its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tlprune.benchmarking.cost import Cost, measured
from tlprune.benchmarking.entries import Entry, Mode, entries_of
from tlprune.benchmarking.rows import FAILED, MEASURED, Store
from tlprune.benchmarking.setting import Setting
from tlprune.benchmarking.sizes import SIZES, Size, sizes_of
from tlprune.benchmarking.taking import between_nodes, circuits_at
from tlprune.benchmarking.truth import against_truth, ranking_against_truth
from tlprune.circuit import Circuit
from tlprune.masking.ablation import Ablation, Resample
from tlprune.methods.ablations import ablation_for
from tlprune.methods.provenance import plain
from tlprune.scores import Scores
from tlprune.sealing import sealed
from tlprune.selection import Top
from tlprune.task import Task

Row = dict[str, Any]
# What a method may raise on a model or task that it does not serve; the other methods go on.
ERRORS = (ValueError, RuntimeError, FloatingPointError, NotImplementedError)


@dataclass(frozen=True)
class Search:
    """One run of a method: a cell of the comparison.

    Attributes:
        entry: the method, with its seed.
        seed: of the method, if it has one.
        mode: how sizes are met.
        sizes: at which circuits are taken of what it finds.
    """

    entry: Entry
    seed: int | None
    mode: Mode
    sizes: tuple[Size, ...]

    @property
    def description(self) -> dict[str, Any]:
        """Settings that decide what is found."""
        return {
            "method": plain(self.entry.method),
            "mode": self.mode,
            "sizes": [size.count for size in self.sizes],
        }


def benchmark(  # noqa: PLR0913
    model: Any,
    task: Task,
    methods: Sequence[str] | Mapping[str, Any],
    *,
    out: str | Path,
    sizes: Sequence[str | int] = SIZES,
    seeds: Sequence[int] = (0,),
    ablation: Ablation | None = None,
    discovery: Ablation | None = None,
    truth: Circuit | None = None,
    tell: Callable[[str], None] | None = None,
    progress: bool = False,
) -> list[Row]:
    """Compare methods at equal effective edges, on test examples that none of them saw.

    Rows are written to ``out`` as they finish. Called again with the same settings it goes on where it stopped; methods
    that failed are tried again, and with further methods, sizes or seeds just these are run.

    Each method gives, at each size, the circuit of just so many *effective* edges that its ranking puts first: edges on
    a path from an embedding to the logits (:class:`~tlprune.Pruned`). A method that trains masks for a number of edges
    is run once for each size, and apart from that the ranking of one run, for its own size, is taken at all sizes. A
    method whose size is a consequence has a row at its own size.

    Args:
        model: a TransformerLens model.
        task: the behaviour.
        methods: method objects by name, or words such as ``"edge-pruning:steps=300"``.
        out: a folder for ``rows.jsonl``, ``rows.csv``, ``rows.parquet``, circuits, and figures of every example.
        sizes: effective edges: counts, parts such as ``"1%"``, or ``"true"``.
        seeds: of methods that chance has a part in.
        ablation: what replaces ablated edges when circuits are measured; by default :class:`~tlprune.Resample`.
        discovery: what replaces them while methods search; by default the same.
        truth: the true circuit, where one is known.
        tell: is called with a line for each search that is done.
        progress: whether to show a progress bar of searches.

    Returns:
        All rows of this comparison, as plain data; costs are in forward runs of one prompt, seconds and bytes.

    Raises:
        ValueError: a method, size or the folder cannot be used.

    Example:
        >>> import tempfile
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> rows = tp.benchmark(
        ...     planted.model, planted.task, ["random"], sizes=["true"], truth=planted.circuit, out=tempfile.mkdtemp()
        ... )
        >>> [(row["method"], row["effective"], row["status"]) for row in rows]
        [('full model', 110, 'measured'), ('empty circuit', 0, 'measured'), ('random', 2, 'measured')]
    """
    entries, store = entries_of(methods), Store(out)
    ablation = ablation_for(task.discovery, ablation or Resample())
    own = ablation_for(task.discovery, discovery or ablation)
    setting = Setting(model, str(model.cfg.model_name), task, ablation, own, truth)
    planned = [search for entry in entries for search in searches(setting, entry, sizes, seeds)]
    rows = _references(setting, store)
    for search in tqdm(planned, disable=not progress, unit="search"):
        found = _searched(setting, search, store)
        if tell is not None:
            tell(_line(found))
        rows += found
    store.write_tables()
    return rows


def searches(setting: Setting, entry: Entry, sizes: Sequence[str | int], seeds: Sequence[int]) -> Iterator[Search]:
    """The runs of a method that a comparison needs, in order."""
    chosen = tuple(sizes_of(sizes, setting.total, setting.truth))
    for seed in entry.seeds(seeds):
        seeded = entry if seed is None else entry.with_seed(seed)
        for mode in entry.modes:
            if mode == "one run per size":
                yield from (Search(seeded, seed, mode, (size,)) for size in chosen)
            else:
                yield Search(seeded, seed, mode, chosen if mode != "own size" else ())


def _references(setting: Setting, store: Store) -> list[Row]:
    """The full model and the empty circuit, between which all others lie."""
    cell = setting.cell(references=True)
    if cell not in store:
        full, empty = (Circuit(setting.sites, torch.full((setting.total,), kept)) for kept in (True, False))
        figures, examples = setting.measure([full, empty])
        rows = [
            {**setting.names, "method": name, "mode": "reference", **_counts(circuit), **own, "status": MEASURED}
            for name, circuit, own in zip(("full model", "empty circuit"), (full, empty), figures, strict=True)
        ]
        store.add(cell, rows, examples=examples)
    return store.of(cell)


def _searched(setting: Setting, search: Search, store: Store) -> list[Row]:
    """The rows of one search, from the store if they are there."""
    cell = setting.cell(**search.description)
    if cell in store:
        return store.of(cell)
    names = {**setting.names, "method": search.entry.label, "seed": search.seed, "mode": search.mode}
    try:
        rows, circuits, examples = _run(setting, search)
    except ERRORS as error:
        rows, circuits, examples = [{"status": FAILED, "error": " ".join(str(error).split())}], [], {}
    store.add(cell, [{**names, **row} for row in rows], circuits=circuits, examples=examples)
    return store.of(cell)


def _run(setting: Setting, search: Search) -> tuple[list[Row], list[Circuit], dict[str, Tensor]]:
    with measured(setting.model) as cost:
        taken, scores = _found(setting, search)
    circuits = [circuit for _, circuit in taken]
    figures, examples = setting.measure(circuits)
    rows = [
        {
            **_counts(circuit),
            **({} if size is None else {"size": size.label, "target": size.count}),
            **own,
            **against_truth(circuit, setting.truth),
            **_costs(cost, search),
            "status": MEASURED,
        }
        for (size, circuit), own in zip(taken, figures, strict=True)
    ]
    if scores is not None and search.mode != "one run per size":
        rows[0] |= ranking_against_truth(scores, setting.truth)
    return rows, circuits, examples


def _found(setting: Setting, search: Search) -> tuple[list[tuple[Size | None, Circuit]], Scores | None]:
    """Circuits with their sizes, and the scores that they are of."""
    method, task, graph = search.entry.method, sealed(setting.task), setting.sites.graph
    if search.mode == "own size":
        return [(None, between_nodes(method.find(setting.model, task, ablation=setting.discovery), graph))], None
    if search.mode == "one run per size":
        method = dataclasses.replace(method, edges=search.sizes[0].count)
    scores = method.score(setting.model, task, ablation=setting.discovery)
    return [*circuits_at(scores, search.sizes, getattr(method, "selection", Top()), graph)], scores


def _counts(circuit: Circuit) -> Row:
    convention = str(circuit.graph.convention) if "edges" in circuit.sites.kinds else ""
    return {
        "nominal": len(circuit),
        "effective": circuit.n_effective,
        "total": len(circuit.sites),
        "convention": convention,
    }


def _costs(cost: Cost, search: Search) -> Row:
    return {**dataclasses.asdict(cost), "cost_covers": "all sizes" if len(search.sizes) > 1 else "this size"}


def _line(rows: Sequence[Row]) -> str:
    """A search in one line, for those who wait."""
    first = rows[0]
    seed = "" if first.get("seed") is None else f", seed {first['seed']}"
    head = f"{first['task']} in {first['model']}: {first['method']}{seed}, {first['mode']}"
    if first["status"] == FAILED:
        return f"{head}: failed: {first['error']}"
    sizes = ", ".join(f"{row['effective']:,} edges: KL {row['kl']:.4g}" for row in rows)
    return f"{head}: {sizes} ({first['seconds']:.1f} s)"
