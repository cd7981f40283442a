"""What a task is looked at with where nobody says: its model, its ablation, and a size where the truth is known."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tlprune.masking.ablation import Ablation, Resample, Zero
from tlprune.models.tracr.compiled import PREFIX
from tlprune.models.tracr.compiler import KNOWN as PROGRAMS
from tlprune.task import Task
from tlprune.truths import truth

ABLATIONS: dict[str, type[Ablation]] = {"resample": Resample, "zero": Zero}


@dataclass(frozen=True)
class Usual:
    """The setting in which a task's circuit is known or sought.

    Attributes:
        model: as of :func:`~tlprune.load`.
        ablation: one of :data:`ABLATIONS`; ``None`` for the method's own.
        computed: whether the true circuit is computed from the model, so that its size is no guess.
    """

    model: str = "testbed"
    ablation: str | None = None
    computed: bool = False


OWN_MODELS = ("planted", "taught", "world")


def usual(task: str) -> Usual:
    """What a task is looked at with; of compiled programs their own model, under zero ablation.

    Example:
        >>> usual("reverse")
        Usual(model='tracr-reverse', ablation='zero', computed=True)
        >>> usual("planted").model, usual("ioi").model
        ('planted', 'testbed')
    """
    if task in PROGRAMS:
        return Usual(f"{PREFIX}{task}", "zero", computed=True)
    return Usual(task) if task in OWN_MODELS else Usual()


def sized(method: Any, task: str, model: Any) -> Any:
    """A method whose size nobody chose, with that of the true circuit where it is computed; else the method as it is.

    Args:
        method: a dataclass, with ``edges`` where it can be told how many to keep.
        task: by name.
        model: the model that is looked at.

    Example:
        >>> import tlprune as tp
        >>> sized(tp.EdgePruning(), "reverse", tp.tracr("reverse").model).edges
        10
        >>> sized(tp.EdgePruning(edges=3), "reverse", tp.tracr("reverse").model).edges
        3
    """
    unsized = all(getattr(method, name, ...) == value for name, value in (("edges", None), ("sparsity", 0.95)))
    if not (unsized and usual(task).computed):
        return method
    return dataclasses.replace(method, edges=len(truth(task, model)))


EVERY = "task"
"""What stands for all spans that a task names, where a person types spans."""


def by_span(method: Any, task: Task) -> Any:
    """A method whose ``spans`` are those of a task, where somebody asked for them; else the method as it is.

    Methods inside it that score for it (``attribution``, ``warm_start``) get the same spans.

    Args:
        method: a dataclass; its ``spans`` are names, or just ``"task"`` for all that the task names.
        task: whose prompts it is for.

    Raises:
        ValueError: the task names no spans, or not all of these.

    Example:
        >>> import tlprune as tp
        >>> by_span(tp.EAP(spans=("task",)), tp.planted("and").task).spans
        ('x', 'y', 'end')
    """
    asked = getattr(method, "spans", ())
    if not asked:
        return method
    spans = task.span_names if asked == (EVERY,) and EVERY not in task.span_names else asked
    if not task.span_names or not {*spans} <= {*task.span_names}:
        raise ValueError(
            f"Edges by span need a task whose prompts name spans, but {task.name!r} names "
            f"{', '.join(task.span_names) or 'none'}"
            + f", not {', '.join(spans)}"
            * bool(spans)
            + ". Leave --spans out, "
            "use those that it names, or mark some in a file of prompts: <span=NAME>...</span>."
        )
    inner: dict[str, Any] = {name: getattr(method, name, None) for name in ("attribution", "warm_start")}
    own = {name: dataclasses.replace(one, spans=spans) for name, one in inner.items() if hasattr(one, "spans")}
    return dataclasses.replace(method, spans=spans, **own)
