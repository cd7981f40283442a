"""The test examples that an analysis looks at, by the name of their task, and the means that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tlprune.masking.ablation import Ablation
from tlprune.masking.means import Mean
from tlprune.task import Batch, Task

Examples = Batch | Task


def by_name(tasks: Examples | Sequence[Task] | Mapping[str, Examples]) -> dict[str, Examples]:
    """One or several tasks by their names, or by those that are given.

    Raises:
        ValueError: there are none, or two have one name.

    Example:
        >>> import tlprune as tp
        >>> task = tp.planted("copy").task
        >>> [*by_name(task)], [*by_name({"even": task, "odd": task.test})]
        (['planted-copy'], ['even', 'odd'])
    """
    if isinstance(tasks, Mapping):
        named = [*tasks.items()]
    else:
        several = [tasks] if isinstance(tasks, (Batch, Task)) else tasks
        named = [(one.name if isinstance(one, Task) else "examples", one) for one in several]
    found = dict(named)
    if not named or len(found) < len(named):
        names = ", ".join(name for name, _ in named) or "none"
        raise ValueError(f"This needs tasks with a name each but got {names}. Name them: {{'mine': task, ...}}.")
    return found


def measured(model: Any, ablation: Ablation | None) -> Ablation | None:
    """The ablation, with means measured once for all tasks instead of once for each."""
    return ablation.measure(model) if isinstance(ablation, Mean) else ablation
