"""The command line: ``discover``, ``evaluate``, ``sweep``, ``bench``, ``finetune``, ``core``, ``knowledge``, ``skill``,
``mib``; each takes ``--help``."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tlprune.choices import choice, value_of
from tlprune.run_folder import CHECKPOINT, FILES, run_folder


@dataclass(frozen=True)
class Run:
    """What to explain, and where the result goes.

    Attributes:
        model: testbed, planted, taught, world, tracr-reverse, a name that TransformerLens knows, or a local Hugging
            Face directory; by default the task's own, or testbed.
        task: such as ioi, gendered-pronoun, greater-than, induction, docstring, planted, reverse or, for models that
            classify, sst2; or a file of prompts that ends in .jsonl. An unknown name lists all.
        method: such as edge-pruning, acdc, eap, eap-ig or random. An unknown name lists all.
        out: directory for circuit.json, metrics.jsonl, circuit.html (of edges) and evaluation.json; by default a new
            one in runs/. A run that was stopped there goes on.
        task_seed: of the prompts and the split; --seed is the method's.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
        ablation: what replaces what is removed, resample or zero; by default the task's: zero for compiled
            programs such as reverse, else the method's, mostly resample.
        micro_batch: of methods that train masks: examples that are run at once, at most; less memory, the same result.
    """

    model: str | None = None
    task: str = "ioi"
    method: str = "edge-pruning"
    out: Path | None = None
    task_seed: int = 0
    device: str | None = None
    ablation: Literal["resample", "zero"] | None = None
    micro_batch: int | None = None


@dataclass(frozen=True)
class Measure:
    """Measure a saved circuit on the test examples of a task.

    Attributes:
        circuit: the circuit.json of a run.
        model: by default the one that it was found on.
        task: by default the one that it was found for.
        task_seed: by default that of the run.
        device: where to compute.
        json: print the figures, all of them with their intervals, as JSON instead of a table.
    """

    circuit: Path
    model: str | None = None
    task: str | None = None
    task_seed: int | None = None
    device: str | None = None
    json: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command ``tlprune``; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"discover": _discover, "evaluate": _evaluate, "bench": _bench, "finetune": _finetune}
    commands |= {"mib": _mib, "core": _core, "knowledge": _knowledge, "skill": _skill}
    commands |= {"saliency": _saliency, "sweep": _sweep}
    if not words or words[0] in ("-h", "--help") or words[0] not in commands:
        return _usage(words)
    from tlprune.processes import part, processes

    together = processes()
    try:
        if together.count > 1 and words[0] != "discover":
            raise ValueError(
                f"tlprune {words[0]} runs in one process but {together.count} were started. Processes share the "
                "training of tlprune discover; start others without accelerate launch or torchrun."
            )
        commands[words[0]](words[1:])
    except (ValueError, OSError, FloatingPointError) as error:
        message = f"tlprune: error: {' '.join(str(error).split())}"
        if together.first_to_say(message):
            print(message, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tlprune: interrupted", file=sys.stderr)
        return 130
    finally:
        part()
    return 0


def _usage(words: Sequence[str]) -> int:
    asked = bool(words) and words[0] in ("-h", "--help")
    if words and not asked:
        text = (
            f"there is no command {words[0]!r}. Use discover, evaluate, sweep, bench, finetune, saliency, core, "
            "knowledge, skill or mib."
        )
        print(f"tlprune: error: {text}", file=sys.stderr)
        return 2
    print("Sparse subnetworks of transformers.\n")
    print("  tlprune discover           find a circuit (try it without arguments)")
    print("  tlprune evaluate CIRCUIT   measure a saved circuit on test examples")
    print("  tlprune sweep              a circuit for each of several sizes and seeds, in one table; resumable")
    print("  tlprune bench              compare methods at equal sizes")
    print("  tlprune finetune           make a classifier of a Hugging Face model")
    print("  tlprune saliency           prune a classifier by one-shot strategies, at several sizes, in one table")
    print("  tlprune core prune         heads and MLPs that a model needs, over seeds; more: tlprune core --help")
    print("  tlprune knowledge          what a knowledge-critical subnetwork is; tlprune knowledge --help")
    print("  tlprune skill              prompts, neurons that know the label, pruning to them; tlprune skill --help")
    print("  tlprune mib submit FILES   write a folder for MIB's leaderboard; tlprune mib check FOLDER")
    print("\nEach takes --help.")
    return 0


def _discover(words: Sequence[str]) -> None:
    from tyro.conf import arg

    from tlprune.methods import METHODS

    kind = choice("method", value_of(words, "--method", Run.method), METHODS)
    # Not OmitArgPrefixes, under which the settings of a method's own methods would share its names.
    fields = [("run", Annotated[Run, arg(name="")]), ("settings", Annotated[kind, arg(name="")])]
    command = dataclasses.make_dataclass("Discover", fields)
    command.__doc__ = "Find a circuit, measure it on test examples, draw it."
    parsed = _parse(command, _every_span(words), prog="tlprune discover")
    discover(parsed.run, parsed.settings)


def _every_span(words: Sequence[str]) -> list[str]:
    """``--spans`` with no name behind it is all that the task names."""
    from tlprune.tasks.usual import EVERY

    pairs = zip(words, [*words[1:], "--"], strict=True)
    return [
        part for word, after in pairs for part in ([word, EVERY] if (word, after[:2]) == ("--spans", "--") else [word])
    ]


def discover(run: Run, method: Any) -> None:
    """Find a circuit and write it, its training record, its drawing and its figures to ``run.out``.

    Several processes share the training; the first one does all else.
    """
    from tlprune.models.load import load
    from tlprune.processes import processes
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
    if processes().first:
        _written(run, model, task, found, out)


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


def _written(run: Run, model: Any, task: Any, found: Any, out: Path) -> None:
    """Write a circuit, its figures and its drawing, and print what they say."""
    from tlprune.drawing import draw
    from tlprune.evaluation import evaluate
    from tlprune.files import write_whole

    command = {"model": run.model, "task": run.task, "task_seed": run.task_seed}
    circuit = found.like(found.kept, {**found.provenance, "command": command})
    circuit.save(out / "circuit.json")
    figures = evaluate(model, circuit, task)
    write_whole(out / "evaluation.json", json.dumps(figures.as_dict(), indent=1) + "\n")
    if "edges" in circuit.sites.kinds:
        draw(circuit, out / "circuit.html", title=f"{task.name} in {Path(str(run.model)).name}")
    (out / CHECKPOINT).unlink(missing_ok=True)
    print(f"{run.task} in {run.model}: {run.method}, {circuit}\n\n{figures}\n")
    print(f"wrote {', '.join(name for name in FILES if (out / name).exists())} to {out}/")
    print(f'load it again: circuit = tlprune.Circuit.load("{out / "circuit.json"}")')


def _evaluate(words: Sequence[str]) -> None:
    from tyro.conf import PositionalRequiredArgs

    measure(_parse(PositionalRequiredArgs[Measure], words, prog="tlprune evaluate"))


def measure(settings: Measure) -> None:
    """Print the figures of a saved circuit."""
    from tlprune.circuit import Circuit
    from tlprune.evaluation import evaluate
    from tlprune.models.load import load
    from tlprune.tasks import task_builder

    circuit = Circuit.load(settings.circuit)
    known = {**circuit.provenance.get("command", {})}
    given = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    chosen = {**known, **given}
    for name in ("model", "task"):
        if name not in chosen:
            raise ValueError(f"{settings.circuit} does not say which {name} it is for. Give --{name}.")
    build = task_builder(chosen["task"])
    model = load(chosen["model"], device=settings.device)
    task = build(model, seed=chosen.get("task_seed", 0))
    if settings.model is None and settings.task is None and settings.task_seed is None:
        _check_task(circuit, task)
    found = evaluate(model, circuit, task)
    print(json.dumps(found.as_dict(), indent=1) if settings.json else f"{circuit}\n\n{found}")


def _check_task(circuit: Any, task: Any) -> None:
    """The task of a run must still be the one that it was: else its test prompts may be ones that training saw."""
    known = circuit.provenance.get("task", {}).get("fingerprint", task.fingerprint)
    if known != task.fingerprint:
        raise ValueError(
            f"The circuit was found on prompts {known} of {task.name} but they are {task.fingerprint} now, so test "
            "prompts may be ones that it was trained on. Restore them, or name those to measure it on with --task."
        )


def _sweep(words: Sequence[str]) -> None:
    from tlprune.studies.commands.sweep import run_sweep, settings_for

    print(run_sweep(_parse(settings_for(words), words, prog="tlprune sweep")))


def _bench(words: Sequence[str]) -> None:
    from tlprune.benchmarking.command import Plan, bench, words_of

    plan = _parse(Plan, words, prog="tlprune bench")
    out = bench(plan, command=words_of(words))
    print(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} to {out}/")


def _finetune(words: Sequence[str]) -> None:
    from tlprune.finetuning.command import finetune, summary
    from tlprune.finetuning.plan import FineTune

    plan = _parse(FineTune, words, prog="tlprune finetune")
    print(summary(plan, finetune(plan)))


def _saliency(words: Sequence[str]) -> None:
    from tlprune.pruning.commands.saliency import saliency
    from tlprune.pruning.grid_plan import SaliencyGrid

    print(saliency(_parse(SaliencyGrid, words, prog="tlprune saliency")))


def _mib(words: Sequence[str]) -> None:
    from tlprune.interop.mib_command import ACTIONS

    _act("mib", ACTIONS, words)


def _core(words: Sequence[str]) -> None:
    from tlprune.studies.commands import ACTIONS

    _act("core", ACTIONS, words)


def _knowledge(words: Sequence[str]) -> None:
    from tlprune.knowledge.commands import ACTIONS

    _act("knowledge", ACTIONS, words)


def _skill(words: Sequence[str]) -> None:
    from tlprune.skills.commands import ACTIONS

    _act("skill", ACTIONS, words)


def _act(command: str, actions: Mapping[str, tuple[str, Any, Callable[[Any], str]]], words: Sequence[str]) -> None:
    """Do one of a command's actions and print what it says; settings may be a function of the words."""
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, actions))
        return print("\n".join(f"  tlprune {command} {name:{width}} {says}" for name, (says, _, _) in actions.items()))
    _, settings, action = choice(f"command of tlprune {command}", words[0], actions)
    kind = settings if isinstance(settings, type) else settings(words[1:])
    return print(action(_parse(kind, words[1:], prog=f"tlprune {command} {words[0]}")))


def _parse(command: Any, words: Sequence[str], *, prog: str) -> Any:
    """What the words say; tyro's boxed complaint becomes one line like every other error."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(command, args=list(words), prog=prog)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_unboxed(complaint.getvalue())) from None


def _unboxed(complaint: str) -> str:
    """The words inside a box drawn with lines, without its title and its hint at --help."""
    lines = [re.sub(r"[\u2500-\u257f]+", " ", line).strip() for line in complaint.splitlines()[1:]]
    text = " ".join(line for line in lines if line)
    return re.sub(r"^Error parsing settings: | Argument helptext:.*$| For full helptext.*$", "", text)
