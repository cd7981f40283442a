"""All methods at equal effective edges on four models of which something is known.

    python -m benchmarks.methods --out runs/methods --data-dir ../shared

``planted``: gates written by hand, whose true edges are known. ``taught``: a model trained to run a known program.
``testbed``: the small trained model of the package. ``stories``: a real story model on pronouns, names and templates of
the test held out. Every setting has a folder of its own with rows, tables, plots and a report; a run that is stopped
goes on where it was. ``--summary`` prints the tables of what is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

import tlprune as tp
from benchmarks import stories
from tlprune.benchmarking.comparing import Cell, compared
from tlprune.benchmarking.plots import write_plots
from tlprune.benchmarking.report import device_text, write_report
from tlprune.benchmarking.rows import Store

# What a comparison needs: a model, a task, and the true circuit where one is known.
Known = tuple[Any, tp.Task, tp.Circuit | None]
METHODS: dict[str, Any] = {
    "random": tp.Random(),
    "hisp": tp.HISP(),
    "atp": tp.AtP(),
    "node-patching": tp.NodePatching(),
    "eap": tp.EAP(),
    "eap-ig": tp.EAPIG(),
    "relp": tp.RelP(),
    "information-flow-routes": tp.InformationFlowRoutes(),
    "edge-patching": tp.EdgePatching(),
    "acdc": tp.ACDC(),
    "edge-pruning": tp.EdgePruning(),
    "edge-pruning from eap-ig": tp.EdgePruning(warm_start=tp.EAPIG()),
    "hap": tp.HAP(),
    "subnetwork-probing": tp.SubnetworkProbing(),
    "ugs": tp.UGS(),
}
SIZES = ("1%", "5%", "10%", "true")


@dataclass(frozen=True)
class Settings:
    """What is compared.

    Attributes:
        out: a folder; each setting has one in it.
        data_dir: holds models/stories260K.
        settings: names of SETTINGS.
        methods: names of METHODS.
        sizes: effective edges.
        seeds: of methods that chance has a part in.
        threads: for torch.
        summary: only print the tables of what is there.
    """

    out: Path
    data_dir: Path = Path(os.environ.get("TLPRUNE_DATA", "../shared"))
    settings: tuple[str, ...] = ("planted-induction", "planted-and", "planted-or", "taught", "testbed-ioi", "stories")
    methods: tuple[str, ...] = tuple(METHODS)
    sizes: tuple[str, ...] = SIZES
    seeds: tuple[int, ...] = (0, 1)
    threads: int = 1
    summary: bool = False


def planted(name: str) -> Callable[[Settings], Known]:
    def made(_: Settings) -> Known:
        one = tp.planted(name)
        return one.model, one.task, one.circuit

    return made


def testbed(name: str) -> Callable[[Settings], Known]:
    def made(_: Settings) -> Known:
        model = tp.load("testbed")
        return model, tp.tasks.task_builder(name)(model), None

    return made


def taught(_: Settings) -> Known:
    one = tp.taught()
    return one.model, one.task, one.circuit


def story(settings: Settings) -> Known:
    """The first fold of :mod:`benchmarks.stories`."""
    model = tp.load(settings.data_dir / "models" / "stories260K")
    return model, stories.tasks(model, stories.Settings(data_dir=settings.data_dir))[1], None


SETTINGS: dict[str, Callable[[Settings], Known]] = {
    **{f"planted-{name}": planted(name) for name in ("copy", "induction", "and", "or", "adder")},
    **{f"testbed-{name}": testbed(name) for name in ("ioi", "greater-than", "gendered-pronoun", "induction")},
    "taught": taught,
    "stories": story,
}


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(settings.threads)
    for name in settings.settings:
        folder = settings.out / name
        if not settings.summary:
            model, task, truth = SETTINGS[name](settings)
            methods = {method: METHODS[method] for method in settings.methods}
            tp.benchmark(
                model, task, methods, out=folder, sizes=settings.sizes, seeds=settings.seeds, truth=truth, tell=print
            )
            store = Store(folder)
            write_report(
                store, device=device_text(torch.device("cpu")), command=f"python -m benchmarks.methods ({name})"
            )
            write_plots(store)
        print(table(Store(folder)))


def table(store: Store) -> str:
    """One line a method: KL with its interval and ``f`` at every size, how well it ranks true edges, what it cost."""
    rows = [row for row in store.rows if row["mode"] not in ("reference", "own size")]
    cells = compared(store, rows)
    labels = {row["target"]: row["size"] for row in rows}
    lines = list(dict.fromkeys((row["method"], row["mode"]) for row in rows))
    empty = next(row for row in store.rows if row["method"] == "empty circuit")
    head = [f"{size:,}" + ("" if labels[size] == str(size) else f" ({labels[size]})") for size in cells]
    header = ["method", "how", *head, "average precision", "forward equivalents"]
    result = [
        f"{empty['task']} in {empty['model']}: {empty['total']:,} edges, empty circuit {empty['kl']:.3f} nats",
        "",
    ]
    result += [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for line in lines:
        figures = [_figures(own[line]) if line in own else "-" for own in cells.values()]
        result.append(f"| {' | '.join([*line, *figures, *_ranking(rows, line)])} |")
    return "\n".join(result) + "\n"


def _figures(cell: Cell) -> str:
    """KL, ``=`` where it is not told from the best, its 95% interval, and f; the size where it is another."""
    share = "undefined" if cell.faithfulness is None else f"{cell.faithfulness:.2f}"
    other = "" if {*cell.effective} == {cell.target} else f", {min(cell.effective):,} edges"
    interval = f"[{cell.kl.low:.3f}, {cell.kl.high:.3f}]"
    return f"{cell.kl.value:.3f}{' =' if cell.tied else ''} {interval} ({share}{other})"


def _ranking(rows: Sequence[Mapping[str, Any]], line: tuple[str, str]) -> list[str]:
    own = [row for row in rows if (row["method"], row["mode"]) == line]
    known = [row["average_precision_edges"] for row in own if "average_precision_edges" in row]
    costs = {row["cell"]: row["forward_equivalents"] for row in own}
    mean = f"{sum(known) / len(known):.3f}" if known else "-"
    return [mean, f"{sum(costs.values()) / len(costs):,.0f}"]


if __name__ == "__main__":
    main()
