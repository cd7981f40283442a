"""``tlprune discover``: a circuit, its training record, its drawing and its figures in a folder."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tlprune.choices import choice, value_of
from tlprune.commands.configuration import NAME as SETTINGS
from tlprune.outcome import Outcome

AblationName = Literal["resample", "zero"]


@dataclass(frozen=True)
class Run:
    """What to explain, and where the result goes.

    Attributes:
        model: testbed, planted, taught, world, tracr-reverse, a name that TransformerLens knows, or a local Hugging
            Face directory; by default the task's own, or testbed.
        task: such as ioi, gendered-pronoun, greater-than, induction, docstring, planted, reverse or, for models that
            classify, sst2; or a file of prompts that ends in .jsonl. An unknown name lists all.
        method: such as edge-pruning, acdc, eap, eap-ig or random. An unknown name lists all.
        out: directory for circuit.json, metrics.jsonl, circuit.html (of edges), evaluation.json and run.yaml; by
            default a new one in runs/. A run that was stopped there goes on.
        task_seed: of the prompts and the split; --seed is the method's.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
        ablation: what replaces what is removed, resample or zero; by default the task's: zero for compiled
            programs such as reverse, else the method's, mostly resample.
        micro_batch: of methods that train masks: examples run at once, at most, for the same result; by default as many
            as fit into memory.
    """

    model: str | None = None
    task: str = "ioi"
    method: str = "edge-pruning"
    out: Path | None = None
    task_seed: int = 0
    device: str | None = None
    ablation: AblationName | None = None
    micro_batch: int | None = None


def settings_for(words: Sequence[str]) -> type:
    """The command's settings: what to explain, and the flags of the method that the words name.

    Raises:
        ValueError: there is no such method.
    """
    from tyro.conf import arg

    from tlprune.methods import METHODS

    kind = choice("method", value_of(words, "--method", Run.method), METHODS)
    # Not OmitArgPrefixes, under which the settings of a method's own methods would share its names.
    fields = [("run", Annotated[Run, arg(name="")]), ("settings", Annotated[kind, arg(name="")])]
    made = dataclasses.make_dataclass("Discover", fields)
    made.__doc__ = "Find a circuit, measure it on test examples, draw it."
    return made


def reworded(words: Sequence[str]) -> list[str]:
    """``--spans`` with no name behind it is all that the task names."""
    from tlprune.tasks.usual import EVERY

    pairs = zip(words, [*words[1:], "--"], strict=True)
    return [
        part for word, after in pairs for part in ([word, EVERY] if (word, after[:2]) == ("--spans", "--") else [word])
    ]


def discover(run: Run, method: Any) -> Outcome | None:
    """Find a circuit and write it, its training record, its drawing and its figures to ``run.out``; what to say.

    Several processes share the training; the first one does all else, and others have nothing to say.
    """
    from tlprune.models.load import load
    from tlprune.processes import processes
    from tlprune.run_folder import CHECKPOINT, run_folder
    from tlprune.sealing import sealed
    from tlprune.tasks import task_builder
    from tlprune.tasks.usual import ABLATIONS, by_span, sized, usual

    build, setting = task_builder(run.task), usual(run.task)
    run = dataclasses.replace(run, model=run.model or setting.model, ablation=run.ablation or setting.ablation)
    _check_trains_masks(run, method)
    with run_folder(run.out, f"{Path(str(run.model)).name}-{Path(run.task).stem}") as out:
        model = load(run.model, device=run.device)
        task = build(model, seed=run.task_seed)
        method = by_span(sized(method, run.task, model), task)
        known = {"metrics": out / "metrics.jsonl", "checkpoint": out / CHECKPOINT, "micro_batch": run.micro_batch}
        options = {name: value for name, value in known.items() if name in inspect.signature(method.find).parameters}
        ablation = ABLATIONS[run.ablation]() if run.ablation else None
        found = method.find(model, sealed(task), ablation=ablation, progress=sys.stderr.isatty(), **options)
    return _written(run, method, model, task, found, out) if processes().first else None


def _check_trains_masks(run: Run, method: Any) -> None:
    from tlprune.methods.mask_training import MaskTraining
    from tlprune.processes import processes

    if isinstance(method, MaskTraining):
        return
    if (count := processes().count) > 1:
        raise ValueError(
            f"Processes share the training of masks, but {run.method} trains none and {count} were started. Run it in "
            "one process, without accelerate launch or torchrun, or choose a method such as edge-pruning."
        )
    if run.micro_batch is not None:
        raise ValueError(
            f"Micro-batches are of methods that train masks, but {run.method} trains none. Leave --micro-batch out; "
            "--batch-size is how many examples it runs at once."
        )


def _written(run: Run, method: Any, model: Any, task: Any, found: Any, out: Path) -> Outcome:
    """Write a circuit, its figures and its drawing; what to say of them."""
    from tlprune.drawing import draw
    from tlprune.evaluation import evaluate
    from tlprune.files import write_whole
    from tlprune.run_folder import CHECKPOINT, FILES

    command = {"model": run.model, "task": run.task, "task_seed": run.task_seed}
    circuit = found.like(found.kept, {**found.provenance, "command": command})
    circuit.save(out / "circuit.json")
    figures = evaluate(model, circuit, task)
    write_whole(out / "evaluation.json", json.dumps(figures.as_dict(), indent=1) + "\n")
    if "edges" in circuit.sites.kinds:
        draw(circuit, out / "circuit.html", title=f"{task.name} in {Path(str(run.model)).name}")
    (out / CHECKPOINT).unlink(missing_ok=True)
    wrote = ", ".join([*(name for name in FILES if (out / name).exists()), SETTINGS])
    lines = [
        f"{run.task} in {run.model}: {run.method}, {circuit}\n\n{figures}\n",
        f"wrote {wrote} to {out}/",
        f'load it again: circuit = tlprune.Circuit.load("{out / "circuit.json"}")',
    ]
    resolved = settings_for(["--method", run.method])(_with_ablation(run, circuit), method)
    return Outcome("\n".join(lines), figures.as_dict(), out=out, settings=resolved)


def _with_ablation(run: Run, circuit: Any) -> Run:
    """A run with the ablation that its method chose, where it can be named."""
    used = circuit.provenance["ablation"]["name"]
    return dataclasses.replace(run, ablation=used) if used in get_args(AblationName) else run


ACTIONS = {"": ("find a circuit", settings_for, lambda settings: discover(settings.run, settings.settings))}
