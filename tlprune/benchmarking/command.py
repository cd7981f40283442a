"""``tlprune bench``: from words to a folder with rows, tables, plots and a report."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from tlprune.backends import backend_of
from tlprune.benchmarking.entries import entries_of
from tlprune.benchmarking.plots import write_plots
from tlprune.benchmarking.presets import DEFAULTS, GPT2, PRESETS
from tlprune.benchmarking.report import device_text, write_report
from tlprune.benchmarking.rows import Store
from tlprune.benchmarking.running import benchmark
from tlprune.circuit import Circuit
from tlprune.files import read_json, write_whole
from tlprune.masking.ablation import Ablation, Resample, Zero
from tlprune.masking.means import Mean
from tlprune.models.load import load
from tlprune.outcome import Outcome
from tlprune.tasks import task_builder
from tlprune.truths import truth

PLAN = "plan.json"
ABLATIONS: dict[str, type[Ablation]] = {"resample": Resample, "zero": Zero, "mean": Mean}
AblationName = Literal["resample", "zero", "mean"]


@dataclass(frozen=True)
class Plan:
    """Compare methods at equal effective edges on test prompts. Run it again to go on where it stopped.

    Attributes:
        model: testbed (default), planted, taught, world, a name that TransformerLens knows, or a local directory in
            Hugging Face format.
        task: one or more tasks: names as of tlprune discover, or files that end in .jsonl; by default ioi.
        methods: one or more methods, with settings as in edge-pruning:steps=300,batch_size=16; by default random, eap
            and edge-pruning.
        sizes: effective edges: numbers, parts such as 1%, or true: as many as the true circuit; by default parts from
            0.1% to 10%.
        seeds: of methods that chance has a part in.
        ablations: what replaces ablated edges when circuits are measured: resample (default), zero, mean; a table for
            each.
        discovery: what replaces them while methods search; by default the same.
        truth: the true circuit: ioi, greater-than, docstring (see tlprune.truths), planted, taught, or the file of a
            circuit; by default that of the task in a preset, in planted models and in the taught one, else none.
        preset: acdc-grid: models, tasks, methods, sizes and ablations of a known comparison, where none are given;
            --model then replaces its GPT-2, and --task chooses among its tasks.
        out: directory for the rows, tables, plots, report and circuits; by default runs/bench.
        task_seed: of the prompts and their split.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    model: str | None = None
    task: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    ablations: tuple[AblationName, ...] = ()
    discovery: AblationName | None = None
    truth: str | None = None
    preset: Literal["acdc-grid"] | None = None
    out: Path = Path("runs/bench")
    task_seed: int = 0
    device: str | None = None

    def whole(self) -> Plan:
        """The same with what its preset says, or the defaults, where nothing is given."""
        rest = DEFAULTS if self.preset is None else PRESETS[self.preset]
        names = ("methods", "sizes", "ablations")
        return dataclasses.replace(self, **{name: getattr(self, name) or getattr(rest, name) for name in names})

    def behaviours(self) -> list[tuple[str, str]]:
        """Pairs of a model and a task.

        Raises:
            ValueError: a task is not one of the preset's.
        """
        if self.preset is None:
            return [(self.model or "testbed", task) for task in self.task or ("ioi",)]
        known = PRESETS[self.preset].behaviours
        unknown = sorted({*self.task} - {task for _, task in known})
        if unknown:
            raise ValueError(
                f"{self.preset} has the tasks {', '.join(task for _, task in known)} but {', '.join(unknown)} was "
                "asked for. Leave --task out, or name some of these."
            )
        chosen = [(model, task) for model, task in known if task in self.task or not self.task]
        return [(self.model if self.model and model == GPT2 else model, task) for model, task in chosen]


def bench(
    plan: Plan, *, tell: Callable[[str], None] = print, command: str | None = None, progress: bool = False
) -> Path:
    """Run a plan; the folder with its rows, tables, plots and report.

    A model of a preset that cannot be had is told of and stands in the report as not run; the rest goes on.

    Args:
        plan: what is compared.
        tell: is called with a line for each search that is done.
        command: the command line, for the report.
        progress: whether to show a progress bar.

    Raises:
        ValueError: a model, task, method or size cannot be used, or the folder holds another comparison.
    """
    plan = plan.whole()
    entries_of(plan.methods)
    behaviours = plan.behaviours()
    for _, task_name in behaviours:
        task_builder(task_name)  # a name that is none is found out before anything runs
    _claim_folder(plan)
    device, missing = "no device: no model was run", {}
    for name, task_name in behaviours:
        try:
            model, task, known = _behaviour(plan, name, task_name)
        except (ValueError, OSError) as error:
            if plan.preset is None:
                raise
            missing[task_name, name] = " ".join(str(error).split())
            tell(f"{task_name} in {name}: not run: {missing[task_name, name]}")
            continue
        device = device_text(backend_of(model).device)
        for ablation in plan.ablations:
            benchmark(
                model, task, plan.methods, out=plan.out, sizes=plan.sizes, seeds=plan.seeds, truth=known,
                ablation=ABLATIONS[ablation](), discovery=ABLATIONS[plan.discovery or ablation](),
                tell=tell, progress=progress,
            )  # fmt: skip
    store = Store(plan.out)
    write_report(store, device=device, command=command, missing=missing)
    try:
        write_plots(store)
    except ModuleNotFoundError as error:
        tell(f"no plots: {error}")
    return plan.out


def _behaviour(plan: Plan, name: str, task_name: str) -> tuple[Any, Any, Circuit | None]:
    """A model, a task, and the true circuit if one is known for this model."""
    model = load(name, device=plan.device)
    task = task_builder(task_name)(model, seed=plan.task_seed)
    return model, task, _truth(plan, task_name, model)


def _truth(plan: Plan, task_name: str, model: Any) -> Circuit | None:
    """The true circuit; a name of shape 12 layers by 12 heads alone makes no model GPT-2, so it is asked for."""
    if plan.truth is not None and Path(plan.truth).is_file():
        return Circuit.load(plan.truth)
    if plan.truth is not None or plan.preset is not None or task_name in ("planted", "taught"):
        return truth(plan.truth or task_name, model)
    return None


def _claim_folder(plan: Plan) -> None:
    """Take the folder of a plan: a new one, or one with rows of the same prompts."""
    Store(plan.out)
    path = plan.out / PLAN
    settings = {"task_seed": plan.task_seed, "preset": plan.preset}
    if path.exists() and read_json(path, "plan") != settings:
        raise ValueError(
            f"{plan.out} holds a comparison with {json.dumps(read_json(path, 'plan'))} but this one has "
            f"{json.dumps(settings)}. Choose another folder with --out."
        )
    write_whole(path, json.dumps(settings) + "\n")


def words_of(plan: Plan) -> str:
    """The command line of a plan, as reports show it.

    Example:
        >>> words_of(Plan(task=("ioi", "induction"), task_seed=3))
        'tlprune bench --task ioi induction --task-seed 3'
    """
    words = ["tlprune", "bench"]
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def compared(plan: Plan) -> Outcome:
    """Run a plan; what to say, and all rows."""
    out = bench(plan, tell=tqdm.write, command=words_of(plan), progress=sys.stderr.isatty())
    text = f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} to {out}/"
    return Outcome(text, {"rows": Store(out).rows}, out=out)


ACTIONS = {"": ("compare methods", Plan, compared)}
