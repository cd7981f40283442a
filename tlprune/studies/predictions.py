"""What a model and its subnetworks predict for the test examples of a task, for all who look at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.learning.figures import answered, over_answers, right
from tlprune.masking.ablation import Ablation
from tlprune.studies.answers import Answers, Asking, Kept
from tlprune.studies.collection import Run
from tlprune.task import Batch, Task

FOLDER = "predictions"


@dataclass(frozen=True)
class Predictions:
    """What a model and its subnetworks predict for the test examples of one task.

    Attributes:
        task: its name.
        batch: the test examples, in the task's order, as everything here is.
        model: answers of the full model.
        subnetworks: answers of the subnetworks, by sparsity and seed.
        label_names: what the numbers in ``batch.labels`` stand for.
    """

    task: str
    batch: Batch
    model: Answers
    subnetworks: Mapping[Run, Answers]
    label_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Predictions({self.task!r}, {len(self.batch):,} examples, {len(self.subnetworks)} subnetworks)"

    @property
    def runs(self) -> tuple[Run, ...]:
        """Which subnetworks there are."""
        return (*self.subnetworks,)

    @property
    def full(self) -> Float[Tensor, "example class"]:
        """Logits of the full model.

        Raises:
            ValueError: the task predicts tokens.
        """
        return self._logits_of(self.model)

    @cached_property
    def logits(self) -> dict[Run, Float[Tensor, "example class"]]:
        """Logits of each subnetwork.

        Raises:
            ValueError: the task predicts tokens.
        """
        return {run: self._logits_of(answers) for run, answers in self.subnetworks.items()}

    def _logits_of(self, answers: Answers) -> Float[Tensor, "example class"]:
        if answers.logits is None:
            raise ValueError(
                f"Logits are kept of classes, but task {self.task!r} predicts tokens. Use predicted(run) or "
                "correct(run)."
            )
        return answers.logits

    def predicted(self, run: tuple[float, int | None] | None = None) -> Int[Tensor, "example answer"]:
        """The most likely class, or token at each answer position, of a subnetwork; of the full model for ``None``."""
        return self._answers(run).predicted

    def correct(self, run: tuple[float, int | None] | None = None) -> Float[Tensor, "example"]:
        """The share of right answers to each example, of a subnetwork; of the full model for ``None``.

        1 or 0 for a class, which is right if it is the answer or one of those that the task accepts. Its mean over
        examples is the accuracy of :func:`tlprune.evaluate`.
        """
        return over_answers(right(self.predicted(run), self.batch).float(), answered(self.batch))

    def _answers(self, run: tuple[float, int | None] | None) -> Answers:
        if run is None:
            return self.model
        if run not in self.subnetworks:
            raise ValueError(
                f"There are predictions of {'; '.join(map(str, self.runs))} but {Run(*run)} was asked for. Choose one."
            )
        return self.subnetworks[Run(*run)]


def predict(
    model: Any,
    subnetworks: Mapping[Run, Circuit],
    task: Task,
    *,
    ablation: Ablation | None = None,
    out: str | Path | None = None,
    batch_size: int = 64,
    tell: Callable[[str], None] | None = None,
) -> Predictions:
    """Predictions of a model and of subnetworks of it for a task's test examples.

    Args:
        model: a TransformerLens model; left as it was.
        subnetworks: such as :func:`tlprune.subnetworks` gives.
        task: one with classes or tokens as answers, for this model; it need not be the one that was pruned on.
        ablation: what replaces what is removed, such as the means of the study; by default that of discovery, where
            the circuits tell it in full.
        out: a folder that keeps the predictions, in ``predictions/TASK-FINGERPRINT/``. Called again only those are
            computed that are missing, or are of another model, circuit or ablation.
        batch_size: examples per forward pass.
        tell: is called with a line for each subnetwork.

    Raises:
        ValueError: the task is a regression, its classes are not those of the model, or the circuits are of other
            models, or were found under an ablation whose data they do not hold.

    Example:
        >>> import tlprune as tp
        >>> from tlprune.studies.collection import Run
        >>> planted = tp.planted("copy")
        >>> none = planted.circuit - planted.circuit
        >>> found = predict(planted.model, {Run(0.5, 0): planted.circuit, Run(1.0, 0): none}, planted.task)
        >>> found.correct((0.5, 0)).mean().item(), bool(found.correct((1.0, 0)).mean() < 0.5)
        (1.0, True)
    """
    _check_task(task)
    circuits = {Run(*run): circuit for run, circuit in subnetworks.items()}
    if not circuits:
        raise ValueError("Predictions need at least one subnetwork but got none. Find some: tp.subnetworks(...).")
    asking = Asking(model, task, ablation=ablation, batch_size=batch_size)
    files = Kept(asking, None if out is None else Path(out) / FOLDER)
    whole, found = files.of_model(), {}
    for place, (run, circuit) in enumerate(circuits.items()):
        found[run] = files.of_subnetwork(run, circuit)
        if tell is not None:
            tell(f"{task.name}: {place + 1} of {len(circuits)}: {run}")
    return Predictions(task.name, asking.batch, whole, found, task.label_names)


def _check_task(task: Task) -> None:
    if not bool(answered(task.test).any()):
        raise ValueError(
            f"Predictions are of classes or tokens but task {task.name!r} has no answers: it is a regression. Use "
            "tp.evaluate, which has its squared errors."
        )
