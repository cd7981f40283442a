"""From settings to a directory with the fine-tuned model: ``tlprune finetune``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from tlprune.files import write_whole
from tlprune.finetuning.cutting import cut_by_file, described_cut
from tlprune.finetuning.parts import plain, train_part, trained_parameters
from tlprune.finetuning.plan import FineTune
from tlprune.finetuning.training import CHECKPOINT, Training, clear
from tlprune.learning.bootstrap import finite
from tlprune.outcome import Outcome
from tlprune.tasks.labelled.data import Labelled, described, read_labelled
from tlprune.tasks.labelled.splitting import divided
from tlprune.versions import versions

METRICS, PROVENANCE = "metrics.jsonl", "tlprune.json"


def finetune(plan: FineTune) -> dict[str, Any]:
    """Fine-tune a model, save it in Hugging Face format, and return how it came about, as ``tlprune.json`` has it.

    The weights saved are those of the step that was best on dev, by accuracy, on CoLA by Matthews and on STS-B by
    Pearson correlation. The random state of the process is left as it was. With ``plan.circuit`` the weights that
    the circuit does not keep are 0 throughout: their gradients are 0 before clipping and the optimiser see them.

    Raises:
        ValueError: the data, the model or the circuit cannot be read, the circuit is of something else than weights of
            this classifier, or the directory holds a finished model, or one under way with other settings.
        FloatingPointError: a loss is not finite.
    """
    return _made(plan, lambda training: descend(training, plan, settings_of(training)))


def prune(plan: FineTune) -> dict[str, Any]:
    """As :func:`finetune` without any step: cut what ``plan.circuit`` does not keep, measure, and save the model.

    Raises:
        ValueError: as there.
    """
    return _made(plan, lambda training: training.measure(plan.out))


def _made(plan: FineTune, work: Callable[[Training], object]) -> dict[str, Any]:
    if (plan.out / PROVENANCE).exists():
        raise ValueError(f"{plan.out} already holds a fine-tuned model. Give another directory with --out.")
    splits = splits_of(plan)
    make(plan.out)
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):
        torch.manual_seed(plan.seed)
        training = _training(plan, splits)
        work(training)
        return _finish(training, plan)


def splits_of(plan: FineTune) -> dict[str, Labelled]:
    """Examples for training, dev (``"validation"``) and the test."""
    train, test = (read_labelled(plan.task, part, source=plan.data_dir) for part in (plan.train, plan.test))
    return divided(
        train,
        None if plan.train == plan.test else test,
        train_count=plan.train_count,
        validation_count=plan.dev_count,
        test_count=plan.test_count,
        seed=plan.seed,
    )


def make(folder: Path) -> None:
    """Make a folder; a ValueError if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"Cannot write to {folder}: {error.strerror}. Give another directory with --out.") from None


def _training(plan: FineTune, splits: Mapping[str, Labelled]) -> Training:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=plan.device == "cpu", mixed_precision=plan.precision)
    if accelerator.num_processes > 1:
        raise ValueError(
            f"Fine-tuning runs in one process but accelerate started {accelerator.num_processes}. Start tlprune "
            "itself, without accelerate launch."
        )
    model, tokenizer, new = pretrained(plan.model, splits["train"])
    cut = cut_by_file(model, plan.circuit)
    train_part(model, plan.trained, new=new, rank=plan.rank, removed=cut.removed)
    by = described(plan.task).best_by
    return Training(model, tokenizer, splits, plan, by=by, accelerator=accelerator, cut=cut)


def pretrained(name: str, examples: Labelled) -> tuple[Any, Any, frozenset[str]]:
    """A model with a classifier for these classes, new where it has none, its tokenizer, and what of it is new."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    classes = examples.classes or ("number",)
    names: dict[str, Any] = {"id2label": dict(enumerate(classes)), "label2id": {c: n for n, c in enumerate(classes)}}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, told = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=len(classes), output_loading_info=True, **names
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"A model and its tokenizer are needed but cannot be read from {name!r}: {reason} Give their directory."
        ) from None
    model.config.problem_type = "regression" if examples.regression else "single_label_classification"
    return model.float(), tokenizer, frozenset(told["missing_keys"])


def settings_of(training: Training) -> dict[str, Any]:
    """What decides the result of a run."""
    return training.plan.fixed() | {"data": fingerprints(training), "circuit": training.cut.digest}


def fingerprints(training: Training) -> dict[str, str]:
    """Of the examples of each split."""
    return {name: one.fingerprint for name, one in training.splits.items()}


def descend(training: Training, plan: FineTune, settings: Mapping[str, Any]) -> None:
    """Take all steps, or as many as patience allows, from the checkpoint on if there is one, and write their records.

    Args:
        training: before its first step.
        plan: how often is measured, and where everything is written.
        settings: what decides the result: a checkpoint under others is refused.
    """
    out, count = plan.out, len(training.splits["train"])
    if (out / CHECKPOINT).exists():
        training.resume(out, settings)
    _keep_lines(out / METRICS, training.done)
    bar = tqdm(total=training.steps, initial=training.done, disable=not sys.stderr.isatty(), unit="step")
    with bar, open(out / METRICS, "a", encoding="utf-8") as file:
        while not training.finished:
            record = training.step()
            if plan.measured(training.done, count):
                record["dev"] = known(training.measure(out))
            file.write(json.dumps(record) + "\n")
            file.flush()
            bar.update()
            if plan.keep_every and training.done % plan.keep_every == 0:
                _write(training, plan.out / f"step-{training.done}")
            if training.done % plan.checkpoint_every == 0 or training.finished:
                training.save(out, settings)


def _keep_lines(path: Path, done: int) -> None:
    """Leave the records of the steps done; later ones were written after the last checkpoint."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if len(lines) < done:
        raise ValueError(
            f"A run that goes on after step {done} needs the records of these steps, but {path} has {len(lines)}. Give "
            "another directory with --out to start anew."
        )
    write_whole(path, b"".join(lines[:done]))


def _finish(training: Training, plan: FineTune) -> dict[str, Any]:
    """Look at the test once, with the best weights, and save them."""
    training.put_back_best(plan.out)
    test, intervals = training.tested()
    ends = {name: [finite(one.low), finite(one.high)] for name, one in intervals.items()}
    facts = _facts(training, plan) | {"test": known(test), "test_intervals": ends}
    _write(training, plan.out)
    write_whole(plan.out / PROVENANCE, json.dumps(facts, indent=1) + "\n")
    clear(plan.out)
    return facts


def _write(training: Training, folder: Path) -> None:
    """The model as it is now, adapters built in, with its tokenizer, in Hugging Face format."""
    plain(training.own, training.cut.removed).save_pretrained(folder)
    training.tokenizer.save_pretrained(folder)


def _facts(training: Training, plan: FineTune) -> dict[str, Any]:
    packages = {name: version(name) for name in ("transformers", "accelerate")}
    splits = training.splits
    return {
        "format": "tlprune-finetuned",
        "version": 1,
        "data": {
            "name": plan.task,
            "counts": {name: len(one) for name, one in splits.items()},
            "fingerprints": {name: one.fingerprint for name, one in splits.items()},
            "classes": list(splits["train"].classes),
        },
        "settings": {name: value for name, value in plan.fixed().items() if name != "task"},
        "circuit": training.cut.facts(plain(training.own, training.cut.removed)),
        "trained_parameters": trained_parameters(training.own, training.cut.removed),
        "steps": training.done,
        "best_step": training.best.step,
        "best_by": training.by,
        "device": str(training.accelerator.device),
        "versions": versions() | packages,
        "dev": known(training.best.dev),
    }


def known(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as JSON can say them: ``None`` for the correlation of what does not vary."""
    return {name: finite(value) for name, value in figures.items()}


def summary(plan: FineTune, facts: Mapping[str, Any]) -> str:
    """What the command prints at the end."""
    counts = facts["data"]["counts"]
    lines = [
        f"{plan.task}: {counts['train']:,} training examples, best after step {facts['best_step']:,} of "
        f"{facts['steps']:,} by {facts['best_by']} on {counts['validation']:,} held out of them"
    ]
    for name, count in (("dev", counts["validation"]), ("test", counts["test"])):
        shown = ", ".join(f"{figure} {_number(value)}" for figure, value in facts[name].items())
        lines.append(f"{name} ({count:,}): {shown}")
    if facts["circuit"]:
        lines.append(described_cut(facts["circuit"]))
    return "\n".join([*lines, f"wrote the model, its tokenizer, {METRICS} and {PROVENANCE} to {plan.out}/"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def finetuned(plan: FineTune) -> Outcome:
    """Fine-tune; what to say."""
    facts = finetune(plan)
    return Outcome(summary(plan, facts), facts, out=plan.out)


ACTIONS = {"": ("make a classifier", FineTune, finetuned)}
