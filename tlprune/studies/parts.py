"""Which of a task's test examples are looked at apart: those of some classes, and those of each sub-case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from tlprune.task import Task

Part = str | Sequence[str]
# By name of the task: parts that its authors look at apart, with their classes.
KNOWN_PARTS: dict[str, dict[str, Part]] = {
    "hans": {"entailment": "entailment", "non-entailment": "non-entailment"},
    "paws-qqp": {"adversarial": "not_duplicate"},
}


def classes_of(task: Task) -> list[str]:
    """The class of each test example, by name; ``"0"``, ``"1"``, ... where the task has no names.

    Raises:
        ValueError: the task has no classes.
    """
    answers = task.test.answers
    if task.tokenisation.predicted != "prompt" or not bool((answers >= 0).all()):
        raise ValueError(
            f"Parts by class need a task with a class for each prompt, but {task.name!r} has none. Leave them out."
        )
    names = task.options.get("classes", ())
    return [_meant(task, names[number]) if names else str(number) for number in answers[:, 0].tolist()]


def _meant(task: Task, output: str) -> str:
    """The class that an output of the model counts as."""
    return task.options.get("merge", {}).get(output, output)


def parts_of(task: Task, wanted: Mapping[str, Part] | None = None) -> dict[str, Bool[Tensor, "example"]]:
    """The test examples of each part that has some.

    Args:
        task: the task.
        wanted: by name, the class or classes of a part; ``None`` for those of :data:`KNOWN_PARTS`.

    Raises:
        ValueError: a class is none of the task's, or the task has none.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> from tlprune.tasks import Labelled, classification
        >>> texts = tuple(f"{name} is {word}" for name in ("John", "Mary", "Paul") for word in ("kind", "brave"))
        >>> data = Labelled("mine", texts, None, (1, 0) * 3, ("negative", "positive"))
        >>> tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        >>> task = classification(tokenizer, {"train": data}, train_count=2, validation_count=2, seed=5)
        >>> {name: rows.tolist() for name, rows in parts_of(task, {"good": "positive"}).items()}
        {'good': [True, False]}
    """
    usual = KNOWN_PARTS.get(task.name, {})
    if not (usual if wanted is None else wanted):
        return {}
    own = classes_of(task)
    known = {*own} | {_meant(task, name) for name in task.options.get("classes", ())}
    chosen = {name: (part,) if isinstance(part, str) else (*part,) for name, part in (wanted or usual).items()}
    strangers = sorted({one for part in chosen.values() for one in part} - known)
    if strangers and wanted is not None:
        raise ValueError(
            f"Task {task.name!r} has the classes {', '.join(sorted(known))}, but a part is to be of "
            f"{', '.join(strangers)}. Name some of its own."
        )
    found = {name: torch.tensor([one in part for one in own]) for name, part in chosen.items()}
    return {name: rows for name, rows in found.items() if bool(rows.any())}


def subcases_of(task: Task) -> dict[str, Bool[Tensor, "example"]]:
    """The test examples of each sub-case that has some; none where the task tells none apart."""
    labels = task.test.labels
    if labels is None:
        return {}
    found = {name: labels == number for number, name in enumerate(task.label_names)}
    return {name: rows for name, rows in found.items() if bool(rows.any())}
