"""Provenance: how a circuit was found, as plain data, and the method that such data tell of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from tlprune.backends import backend_of
from tlprune.backends.processing import processing, signature
from tlprune.backends.prompting import attached_names
from tlprune.gates import HardConcrete, Heaviside, Sigmoid, StraightThrough, UniformGradient
from tlprune.learning.budgets import Budgets, Lagrangian, Penalty
from tlprune.learning.objectives import KL, CrossEntropy, LogitDifference, SquaredError, Sum, Uniform
from tlprune.learning.optimiser import Optimiser
from tlprune.masking.ablation import Ablation, GaussianNoise, Resample, Zero
from tlprune.masking.means import Mean
from tlprune.methods.criteria import (
    SNIP,
    GradCAM,
    Magnitude,
    MagnitudeActivation,
    MagnitudeGradient,
    RandomCriterion,
    SmoothGrad,
    SmoothGradCAM,
    Wanda,
)
from tlprune.selection import (
    NM,
    Bisected,
    Connected,
    Consistent,
    Greedy,
    PerOutput,
    PerTensor,
    Pruned,
    Ratio,
    Threshold,
    Top,
    TopConnected,
)
from tlprune.sites import Sites
from tlprune.task import Discovery
from tlprune.versions import versions

# What a method's fields may hold besides numbers, words and other methods.
PARTS = {
    kind.__name__: kind
    for kind in (
        *(HardConcrete, Heaviside, Sigmoid, StraightThrough, UniformGradient),
        *(KL, CrossEntropy, LogitDifference, SquaredError, Uniform, Sum),
        *(Lagrangian, Penalty, Budgets, Optimiser),
        *(Magnitude, MagnitudeGradient, MagnitudeActivation, GradCAM, SmoothGrad, SmoothGradCAM, SNIP, Wanda),
        RandomCriterion,
        *(GaussianNoise, Mean, Resample, Zero),
        *(NM, Bisected, Connected, Consistent, Greedy, PerOutput, PerTensor, Pruned, Ratio, Threshold, Top),
        TopConnected,
    )
}


def provenance_of(method: Any, model: Any, *, discovery: Discovery, sites: Sites, ablation: Ablation) -> dict[str, Any]:
    """What every method saves with what it finds; JSON, and the same after a round trip through it.

    Ask for it before training: a method that cannot be written down should not first be run.

    Args:
        method: the method, a dataclass.
        model: the model that it is used on.
        discovery: what it saw of the task.
        sites: where it looked.
        ablation: what replaced ablated sites, with its reference prompts, if it has any.

    Raises:
        ValueError: a field of the method is not plain data.
    """
    backend = backend_of(model)
    known = {**backend.fingerprint(), "processing": processing(backend), "signature": list(signature(backend).values)}
    return {
        "method": plain(method),
        "seed": getattr(method, "seed", None),
        "task": dict(discovery.provenance),
        "model": known,
        "prompts": attached_names(backend.embedding),
        "convention": asdict(sites.graph.convention) if "edges" in sites.kinds else None,
        "ablation": ablation.as_dict(),
        "versions": versions(),
    }


def check_settings(
    found: Mapping[str, Any],
    path: Path,
    method: Any,
    model: Any,
    discovery: Discovery,
    ablation: Ablation | None = None,
) -> None:
    """Raise a ValueError unless what a file holds was found by this method, on this model and task.

    Args:
        found: the provenance of what the file holds.
        path: the file.
        method: with its seed.
        model: that it is to be of.
        discovery: of the task.
        ablation: what replaced ablated sites, where that is no setting of the method.
    """
    own = {
        "method": (plain(method), found.get("method")),
        "task": (discovery.provenance["fingerprint"], found.get("task", {}).get("fingerprint")),
        "model": (backend_of(model).fingerprint()["weights"], found.get("model", {}).get("weights")),
    }
    if ablation is not None:
        own["ablation"] = (ablation.as_dict(), found.get("ablation"))
    differing = [name for name, (wanted, told) in own.items() if wanted != told]
    if differing:
        raise ValueError(
            f"A search goes on with the same settings only, but {path} is of another {' and '.join(differing)}. "
            "Give the same, or another folder."
        )


def plain(value: Any) -> Any:
    """A method, or what one of its fields holds, as plain data: a dataclass is its name and its fields.

    Raises:
        ValueError: it holds a function, a tensor, a list or another thing that plain data cannot give back.

    Example:
        >>> from tlprune.gates import Heaviside
        >>> plain(Heaviside(initial=2.0))
        {'name': 'Heaviside', 'initial': 2.0, 'temperature': 1.0}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        return {"name": _name_of(type(value)), **_items(own)}
    if isinstance(value, Mapping):
        return _items(value)
    raise ValueError(
        f"A method's fields need numbers, words, tuples or parts such as tp.HardConcrete(), so that a saved circuit "
        f"tells how it was found, but one holds a {type(value).__name__}. Make it one of these: a tuple for a list, "
        "a number for a schedule."
    )


def _items(values: Mapping[Any, Any]) -> dict[str, Any]:
    if "name" in values or not all(isinstance(key, str) for key in values):
        raise ValueError(
            f"A method's fields are saved by name, and 'name' is the method's own, but some are called {list(values)}. "
            "Call them by other words."
        )
    return {key: plain(value) for key, value in values.items()}


def method_from(provenance: Mapping[str, Any]) -> Any:
    """The method that found a circuit, equal to the one that was used.

    Args:
        provenance: of a circuit or of scores.

    Raises:
        ValueError: the provenance tells of no method, or of one that this version does not have in this form.

    Example:
        >>> import tlprune as tp
        >>> planted, method = tp.planted("copy"), tp.EdgePruning(edges=2, steps=1)
        >>> method_from(method.find(planted.model, planted.task).provenance) == method
        True
    """
    from tlprune.methods import METHODS

    told = provenance.get("method")
    if not isinstance(told, Mapping):
        raise ValueError(
            f"A method is built from the provenance of a circuit that a method found, but this one has "
            f"{', '.join(provenance) or 'nothing'} and no method. Was the circuit stated by hand? Of circuits that "
            "were combined, each one's own is in provenance['of']."
        )
    if told.get("name") not in METHODS:
        raise _other_version(provenance, f"methods {', '.join(METHODS)} but the circuit is of {told.get('name')!r}")
    return _built(told, provenance)


def _built(told: Mapping[str, Any], provenance: Mapping[str, Any]) -> Any:
    name, given = told["name"], {key: value for key, value in told.items() if key != "name"}
    kind = kinds().get(name)
    if kind is None:
        raise _other_version(provenance, f"parts {', '.join(PARTS)} but the circuit's method holds {name!r}")
    known = [field.name for field in fields(kind) if field.init]
    unknown, missing = sorted({*given} - {*known}), sorted({*known} - {*given})
    if unknown or missing:
        lists = f"but the circuit's has {', '.join(unknown) or 'none'} besides and lacks {', '.join(missing) or 'none'}"
        raise _other_version(provenance, f"{name} with the fields {', '.join(known)} {lists}")
    values = {key: _value(value, provenance) for key, value in given.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise _other_version(provenance, f"{name}, which refuses {given} ({error})") from error


def _value(value: Any, provenance: Mapping[str, Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_value(one, provenance) for one in value)
    if not isinstance(value, Mapping):
        return value
    if "name" in value:
        return _built(value, provenance)
    return {key: _value(one, provenance) for key, one in value.items()}


def kinds() -> dict[str, Any]:
    """Methods and their parts by the names that plain data tell them by."""
    from tlprune.methods import METHODS

    return {**PARTS, **METHODS}


def _name_of(kind: type) -> str:
    """The name in our tables; of others' classes the full one, which says where to look."""
    own = {known: name for name, known in kinds().items()}
    return own.get(kind, f"{kind.__module__}.{kind.__qualname__}")


def _other_version(provenance: Mapping[str, Any], has: str) -> ValueError:
    maker = provenance.get("versions", {}).get("tlprune", "of its file")
    return ValueError(
        f"This version of tlprune has {has}. Use the version that found it ({maker}), or build the method yourself "
        f"from provenance['method']."
    )
