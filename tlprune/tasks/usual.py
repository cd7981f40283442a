"""What a task is looked at with where nobody says: its model, its ablation, and a size where the truth is known."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tlprune.masking.ablation import Ablation, Resample, Zero
from tlprune.models.tracr.compiled import PREFIX
from tlprune.models.tracr.compiler import KNOWN as PROGRAMS
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
