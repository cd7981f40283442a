"""The training loop: one step at a time, or to the end with a progress bar and a metrics file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tlprune.learning.best import Best
from tlprune.learning.budgets import Budget, Budgets, Lagrangian
from tlprune.learning.checkpoint import read_checkpoint, resume, write_checkpoint, write_first_checkpoint
from tlprune.learning.layout import Layout
from tlprune.learning.objectives import Objective, Sum, faithful
from tlprune.learning.optimiser import Optimiser
from tlprune.learning.records import Step
from tlprune.learning.reports import Report, metrics_file
from tlprune.learning.room import fitting, told
from tlprune.learning.settings import differences, settings_of
from tlprune.learning.training import Plan, Training
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.processes import processes
from tlprune.schedules import linear
from tlprune.task import Discovery


def steps(  # noqa: PLR0913
    masked: Masked,
    discovery: Discovery,
    objective: Objective | Sum | None = None,
    budget: Budget | Budgets | None = None,
    *,
    steps: int = 300,
    batch_size: int | Mapping[str, int] = 32,
    optimiser: Optimiser | None = None,
    validate_every: int | None = None,
    keep: Mapping[str, int] | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    memory: float | None = None,
    micro_batch: int | None = None,
    seed: int = 0,
) -> Iterator[Step]:
    """Train masks, one record per step; stop whenever you like, the masks are as the last record says.

    Terms of the objective are evaluated one after the other, each on a batch of its own stream with mask samples of its
    own, forward and backward, so that memory is that of one term. A gate with a temperature is moved along:
    ``masks.gate`` is that of the last step taken.

    Processes that ``accelerate launch`` or ``torchrun`` started share every step: all call this with the same settings,
    each runs its part of the batch with the same mask sample, and gradients are added up, so that masks and records
    are those of one process up to rounding. The first of them writes the checkpoint.

    Args:
        masked: the model with trainable masks.
        discovery: ``task.discovery``.
        objective: what to keep; by default :class:`KL` to the full model, of a model with one output
            :class:`SquaredError`.
        budget: what to remove; by default 95% of the sites, approached over five sixths of the steps.
        steps: how many to take.
        batch_size: examples per step, all of them where there are fewer; or a number for each stream.
        optimiser: rates and their schedule.
        validate_every: steps between measurements of the hard circuit on validation examples.
        keep: size of that hard circuit by kind, such as ``{"edges": 170}``; by default what the gates expect to keep.
        patience: stop after so many of these measurements without a lower objective, counted from the first one at
            which the budget's last target was reached (with no more than 5% too many sites). At the end the masks are
            then the best ones measured since. ``None``: all steps are taken and the last masks stay.
        checkpoint: a file for the state of the run. If it is there the run goes on from it, on a CPU bit for bit as if
            it had never stopped, and gives the records of the remaining steps. With another number of processes or
            another ``micro_batch`` it goes on up to rounding.
        checkpoint_every: steps between checkpoints, so the most that a killed process loses; the end is always kept.
        memory: bytes that the run may take beside the model's weights; by default what is free on the model's device.
            ``math.inf``: look at nothing beforehand.
        micro_batch: examples that a process runs at once, at most; by default as many as fit into its memory. Gradients
            of the pieces of a batch are added up, so the result is that of the whole batch up to rounding, and memory
            that of a piece.
        seed: of mask samples and example order.

    Raises:
        FloatingPointError: loss or gradient is not finite; the masks are left as before that step.
        ValueError: the masks are not trainable, patience has nothing to measure, not even single examples fit into the
            memory that there is (:func:`tlprune.estimate`) or not as many as ``micro_batch`` says, the checkpoint
            cannot be written or is of another run, or processes that are to share the run have different settings.
    """
    if not isinstance(masked.masks, Masks):
        raise ValueError(
            "Training needs masks but this Masked holds a finished circuit. Use Masked(model, Masks(...))."
        )
    if patience is not None and not validate_every:
        raise ValueError("Patience counts validations but there are none. Give validate_every, or no patience.")
    plan = Plan(
        objective=objective or faithful(masked),
        budget=budget or Lagrangian(linear(0, 0.95, steps=steps * 5 // 6)),
        optimiser=optimiser or Optimiser(),
        steps=steps,
        batch_size=batch_size,
        validate_every=validate_every,
        keep=keep,
        patience=patience,
        seed=seed,
    )
    training, best = _laid_out(masked, discovery, plan, Layout(processes(), micro_batch), memory), Best(patience)
    if training.layout.processes.count > 1:
        _together(training, discovery)
    if checkpoint is None:
        return _Steps(training, best, lambda: None, checkpoint_every)
    return _Steps(training, best, _begun(Path(checkpoint), training, best, discovery), checkpoint_every)


def _laid_out(masked: Masked, discovery: Discovery, plan: Plan, layout: Layout, memory: float | None) -> Training:
    """The training, in pieces as large as the memory of every process allows."""
    assert isinstance(masked.masks, Masks)
    training, found = Training(masked, masked.masks, discovery, plan, layout), [0]
    layout.processes.in_all(lambda: found.append(fitting(training, discovery, memory) or 0))
    least = min((size for size in layout.processes.each(found[-1]) if size), default=None)
    if least is None:
        return training
    return Training(masked, masked.masks, discovery, plan, replace(layout, micro_batch=least))


def _together(training: Training, discovery: Discovery) -> None:
    """Processes begin with one state; that they were told the same is checked."""
    own = {**settings_of(training, discovery), "micro_batch": training.layout.micro_batch}
    # What scores made of a warm start may be rounded otherwise in each process, and is the first one's.
    del own["start"]
    training.layout.processes.check_equal(own, differences)
    training.layout.processes.copy_first(training.trained().values())


def _begun(path: Path, training: Training, best: Best, discovery: Discovery) -> Callable[[], object]:
    """Go on from a checkpoint that is there; what writes the next one. One is written at once.

    So a folder that cannot be written, or has no room, is found before training.
    """
    settings, together = settings_of(training, discovery), training.layout.processes
    if saved := together.from_first(lambda: read_checkpoint(path, settings)):
        resume(saved, training, best)

    together.in_first(lambda: write_first_checkpoint(path, training, best, settings))
    return lambda: together.in_first(lambda: write_checkpoint(path, training, best, settings))


def fit(
    masked: Masked,
    discovery: Discovery,
    objective: Objective | Sum | None = None,
    budget: Budget | Budgets | None = None,
    *,
    metrics: str | Path | None = None,
    report: Report | None = None,
    progress: bool = False,
    **options: Any,
) -> list[Step]:
    """Run :func:`steps` to the end and return its records.

    Args:
        masked: the model with trainable masks.
        discovery: ``task.discovery``.
        objective: as for :func:`steps`.
        budget: as for :func:`steps`.
        metrics: a file that gets one JSON object per step, as it happens. A run that goes on from a checkpoint goes on
            with this file too. Of several processes the first writes it.
        report: called with each record, such as ``tlprune.learning.reports.wandb(run)``; in every process.
        progress: whether to show a progress bar, and above it the memory that a step takes, in the first process.
        options: further arguments of :func:`steps`.

    Raises:
        ValueError: as :func:`steps`; or the metrics file cannot be written. Both are found before the first step.
    """
    history: list[Step] = []
    records = steps(masked, discovery, objective, budget, **options)
    assert isinstance(records, _Steps)
    plan, done = records.training.plan, records.training.done
    together = records.training.layout.processes
    progress = progress and together.first
    if progress and (found := told(records.training, discovery)) is not None:
        pieces = records.training.layout.micro_batch
        tqdm.write(found.line + (f" {pieces:,} examples run at once." if pieces else ""), file=sys.stderr)
    bar = tqdm(records, total=plan.steps, initial=done, disable=not progress, unit="step")
    with ExitStack() as closing:
        write = together.in_first(lambda: closing.enter_context(metrics_file(metrics, done=done)))
        for record in bar:
            history.append(record)
            bar.set_postfix_str(str(record).partition(" | ")[2], refresh=False)
            if write is not None:
                write(record)
            if report is not None:
                report(record)
    return history


class _Steps(Iterator[Step]):
    """The records of a run. What follows a step, such as a checkpoint, waits until its record was dealt with."""

    def __init__(self, training: Training, best: Best, save: Any, save_every: int) -> None:
        self.training, self.best, self.save, self.save_every = training, best, save, save_every
        self.records = self._records()

    def __next__(self) -> Step:
        return next(self.records)

    def _records(self) -> Iterator[Step]:
        while self.training.done < self.training.plan.steps and not self.best.stops:
            yield self._step()
            if self.training.done % self.save_every == 0:
                self.save()
        self._finish()

    def _step(self) -> Step:
        record, every = self.training.step(), self.training.plan.validate_every
        if not every or record.step % every:
            return record
        record = record.with_hard(self.training.validate())
        if self.training.reached() and record.hard is not None:
            self.best.see(record.hard, step=record.step, trained=self.training.trained())
        return record

    def _finish(self) -> None:
        if self.best.values:
            self.best.put_back(self.training.trained())
            self.training.masks.gate = self.training.masks.gate.at(self.best.step - 1)
        self.save()
