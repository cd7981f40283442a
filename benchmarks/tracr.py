"""Which methods find the circuits of compiled programs, which are computed and so beyond dispute.

    python -m benchmarks.tracr --out tracr.jsonl [--programs reverse xproportion] [--methods short paper acdc]

Each run is one line of the file; runs that are there already are not repeated. ``reverse`` and ``xproportion`` are in
the package, other programs need ``pip install 'tlprune[tracr]'``. Everything is under zero ablation. Methods that are
told a size are told that of the behavioural circuit; ACDC's follows from its threshold, that of ``paper`` from its
gates.

``nodes`` is the short recipe with gates on writers too and the released targets for them, ``warm`` the short recipe
from EAP-IG's scores, with a loss that weighs thirty times as much. ``paper`` is the released code's training of the two
programs that it has: separate nodes for both embeddings, its rates, lengths and targets, for xproportion its loss over
places and gates on nodes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor

import tlprune as tp
from tlprune.graph import Graph
from tlprune.learning.objectives import Sum
from tlprune.models.tracr.circuits import Embeddings
from tlprune.models.tracr.program import Tracr

Found = tuple[tp.Circuit, Embeddings]  # of edges, and the convention of their embeddings
PROGRAMS = ("reverse", "xproportion", "sort", "hist", "shuffle-dyck")
THRESHOLD = 1e-4  # ACDC's
CUT = 0.005  # of the released code: what its set_edge_threshold_for_deterministic is told


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        out: one JSON object per run; continued where it exists.
        programs: as of ``tp.tracr``.
        methods: names of METHODS.
        seeds: of the methods that draw.
        summary: only print the table of what is there.
    """

    out: Path
    programs: tuple[str, ...] = PROGRAMS
    methods: tuple[str, ...] = ("short", "nodes", "warm", "paper", "acdc", "eap", "eap-ig")
    seeds: tuple[int, ...] = (0, 1, 2)
    summary: bool = False


@dataclass(frozen=True)
class OverPlaces:
    """KL between softmaxes over the places of a prompt, of models that give one number at each."""

    name: str = "kl_over_places"
    on: str = "main"
    run: str = "kept"

    def __call__(self, logits: Tensor, batch: Any, reference: Tensor) -> Float[Tensor, ""]:
        wanted, found = (one[..., 0].log_softmax(-1) for one in (reference, logits))
        return (wanted.exp() * (wanted - found)).sum(-1).mean()


def short(one: Tracr, seed: int, *, nodes: float | None = None) -> Found:
    method = tp.EdgePruning(edges=len(one.behavioural), seed=seed, node_sparsity=nodes)
    return method.find(one.model, one.task, ablation=tp.Zero()), "merged"


def with_nodes(one: Tracr, seed: int) -> Found:
    return short(one, seed, nodes=tp.recipes[one.program.name].node_sparsity)


def warm(one: Tracr, seed: int) -> Found:
    """Gates that start by EAP-IG under a loss that weighs more: of logits that are 0 and 1 KL is small."""
    loss, start = tp.KL(), tp.EAPIG()
    if one.program.outputs is None:
        loss, start = tp.SquaredError(), tp.EAPIG(objective=tp.SquaredError())
    objective = Sum(((30.0, loss),))
    method = tp.EdgePruning(edges=len(one.behavioural), seed=seed, objective=objective, warm_start=start)
    return method.find(one.model, one.task, ablation=tp.Zero()), "merged"


def paper(one: Tracr, seed: int) -> Found:
    settings = tp.recipes[one.program.name].settings
    sites = tp.edges(one.model, embeddings="separate")
    if settings.node_sparsity is not None:
        sites += tp.nodes(one.model, embeddings="separate")
    # The released gates start at a normal draw around 10.
    start = torch.normal(10.0, 0.01, (len(sites),), generator=torch.Generator().manual_seed(seed))
    masks = tp.Masks(sites, tp.HardConcrete(initial=10.0), start=start)
    plan = {**settings.plan(masks), "objective": _objective(one), "seed": seed}
    tp.fit(tp.Masked(one.model, masks, tp.Zero()), one.task.discovery, **plan)
    return _hard(masks, one), "separate"


def _objective(one: Tracr) -> Any:
    """The released losses sum over places."""
    return OverPlaces() if one.program.outputs is None else Sum(((float(one.program.length), tp.KL()),))


def _hard(masks: tp.Masks, one: Tracr) -> tp.Circuit:
    """What the released code reads off: noise-free masks above its threshold, of writers that are kept too.

    It hardens each tensor of gates by itself, and those of q, k and v are three.
    """
    log_alpha, sites = masks.log_alpha.detach(), tp.edges(one.model, embeddings="separate")
    graph, kept = sites.graph, _kept(masks.gate, log_alpha[masks.sites.part("edges")], _tensors(sites.graph))
    if "nodes" in masks.sites.kinds:
        writers = _kept(masks.gate, log_alpha[masks.sites.part("nodes")], _tensors_of_writers(graph))
        names = {name for name, one in zip(graph.writers, writers.tolist(), strict=True) if one}
        kept &= torch.tensor([edge.partition("->")[0] in names for edge in graph.edges()])
    return tp.Circuit(sites, kept)


def _kept(gate: Any, log_alpha: Tensor, sizes: Sequence[int]) -> Bool[Tensor, "site"]:
    return torch.cat([gate.harden(part) > CUT for part in log_alpha.split(list(sizes))])


def _tensors(graph: Graph) -> list[int]:
    """How many edges each of the released tensors has, in the order of the graph."""
    sizes = [len(readers.names) * readers.width for readers in graph.readers]
    parts = [3 if readers.kind == "attention" else 1 for readers in graph.readers]
    return [size // count for size, count in zip(sizes, parts, strict=True) for _ in range(count)]


def _tensors_of_writers(graph: Graph) -> list[int]:
    heads = [name.partition(".")[0] for name in graph.writers]  # a layer's heads have one tensor
    return [len([*group]) for _, group in groupby(heads)]


def acdc(one: Tracr, seed: int) -> Found:
    objective = tp.SquaredError() if one.program.outputs is None else tp.KL()
    method = tp.ACDC(threshold=THRESHOLD, objective=objective, examples=None)
    return method.find(one.model, one.task, ablation=tp.Zero()), "merged"


def eap(one: Tracr, seed: int) -> Found:
    method = tp.EAP(edges=len(one.behavioural))
    return method.find(one.model, one.task, ablation=tp.Zero()), "merged"


def eap_ig(one: Tracr, seed: int) -> Found:
    objective = tp.SquaredError() if one.program.outputs is None else tp.LogitDifference()
    method = tp.EAPIG(edges=len(one.behavioural), objective=objective)
    return method.find(one.model, one.task, ablation=tp.Zero()), "merged"


METHODS: dict[str, Callable[[Tracr, int], Found]] = {
    "short": short,
    "nodes": with_nodes,
    "warm": warm,
    "paper": paper,
    "acdc": acdc,
    "eap": eap,
    "eap-ig": eap_ig,
}
DRAW = ("short", "nodes", "warm", "paper")
RELEASED = ("nodes", "paper")  # of the programs that the released code has


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in settings.out.read_text().splitlines()] if settings.out.exists() else []
    done = {(row["program"], row["method"], row["seed"]) for row in rows}
    for program in () if settings.summary else settings.programs:
        one = tp.tracr(program)
        for method, seed in _runs(program, settings):
            if (program, method, seed) not in done:
                rows.append(_row(one, method, seed))
                with settings.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


def _runs(program: str, settings: Settings) -> Iterable[tuple[str, int]]:
    for method in settings.methods:
        if method not in RELEASED or program in tp.recipes:
            yield from ((method, seed) for seed in (settings.seeds if method in DRAW else (0,)))


def _row(one: Tracr, method: str, seed: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"program": one.program.name, "method": method, "seed": seed}
    begun = time.perf_counter(), time.process_time()
    try:
        found, embeddings = METHODS[method](one, seed)
    except ValueError as error:
        return facts | {"refused": str(error)}
    facts |= {"seconds": time.perf_counter() - begun[0], "cpu_seconds": time.process_time() - begun[1]}
    behavioural, structural = one.behavioural_with("zero", embeddings), one.structural_with(embeddings)
    facts |= {"embeddings": embeddings, "edges": len(found.graph.edges()), "kept": len(found), "names": found.edges}
    facts |= {"behavioural": _against(found, behavioural), "structural": _against(found, structural)}
    return facts | {"solves": one.solves(found), "least": one.is_least(found)}


def _against(found: tp.Circuit, true: tp.Circuit) -> dict[str, float]:
    both = len(found & true)
    return {"true": len(true), "precision": both / max(1, len(found)), "recall": both / len(true)}


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Means over seeds, and how many of the seeds are exact."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["program"], row["method"]), []).append(row)
    lines = [
        "| program | method | true / all | kept | behavioural: precision, recall | structural | exact | alone | s |"
    ]
    lines.append("|" + "---|" * 9)
    return "\n".join([*lines, *(_line(*key, group) for key, group in groups.items())])


def _line(program: str, method: str, group: list[dict[str, Any]]) -> str:
    group = [row for row in group if "refused" not in row]
    if not group:
        return f"| {program} | {method} | - | - | - | - | - | - | - |"
    exact = [row["behavioural"]["precision"] == row["behavioural"]["recall"] == 1 for row in group]
    alone = sum(row["solves"] for row in group)
    cells = [
        f"{group[0]['behavioural']['true']} / {group[0]['edges']}",
        ", ".join(dict.fromkeys(str(row["kept"]) for row in group)),
        *(_means(group, kind) for kind in ("behavioural", "structural")),
        f"{sum(exact)} of {len(group)}",
        f"{alone} of {len(group)} ({sum(row['least'] for row in group)} least)",
        f"{mean(row['cpu_seconds'] for row in group):.1f}",
    ]
    return f"| {program} | {method} | {' | '.join(cells)} |"


def _means(group: list[dict[str, Any]], kind: str) -> str:
    return ", ".join(f"{mean(row[kind][figure] for row in group):.2f}" for figure in ("precision", "recall"))


if __name__ == "__main__":
    main()
