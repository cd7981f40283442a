"""The settings of a run as plain data, so that one can be told from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from torch import Tensor

from tlprune.learning.training import Training
from tlprune.task import Discovery

SCHEDULES = (FunctionType, MethodType, BuiltinFunctionType, partial)


def settings_of(training: Training, discovery: Discovery) -> dict[str, Any]:
    """What decides the result of a run: its plan, gate, sites, examples, model and ablation."""
    masked, masks, steps = training.masked, training.masks, training.plan.steps
    plan = {field.name: getattr(training.plan, field.name) for field in fields(training.plan)}
    examples = {name: [stream.train, stream.validation] for name, stream in training.streams.items()}
    about = {
        **plan,
        "gate": masks.gate.at(0),
        "sites": masks.sites.as_dict(),
        "task": discovery.provenance,
        "examples": {name: _digest(described(batches, steps)) for name, batches in examples.items()},
        "model": masked.backend.fingerprint(),
        "ablation": masked.ablation.as_dict(),
        "start": masks.start,
        "among": None if masks.among is None else masks.among.kept,
        "always": None if masks.always is None else masks.always.kept,
    }
    # Through JSON, so that it compares equal to what was read from a file.
    return json.loads(json.dumps({name: described(value, steps) for name, value in about.items()}))


def described(value: Any, steps: int) -> Any:
    """Plain data that is equal for equal settings; a schedule is what it gives in each step.

    Example:
        >>> from tlprune.schedules import linear
        >>> described({"rate": linear(0, 1, steps=4), "clip": None}, 5)
        {'rate': {'schedule': [0.0, 1.0], 'digest': '100d8016'}, 'clip': None}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [described(one, steps) for one in value]
    if isinstance(value, Mapping):
        return {str(name): described(one, steps) for name, one in value.items()}
    return described(_parts(value, steps), steps)


def _parts(value: Any, steps: int) -> Any:
    """What an object consists of, one level down."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        return {"shape": list(data.shape), "digest": hashlib.sha256(data.numpy().tobytes()).hexdigest()[:16]}
    if isinstance(value, SCHEDULES):
        values = [float(value(step)) for step in range(steps)]
        return {"schedule": [values[0], values[-1]], "digest": _digest(values)}
    if hasattr(value, "as_dict"):
        return value.as_dict()
    known = {field.name: getattr(value, field.name) for field in fields(value)} if is_dataclass(value) else vars(value)
    return {"is": type(value).__qualname__, **known}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What two settings differ in, a phrase each.

    Example:
        >>> differences({"seed": 1, "steps": 5, "gone": 2}, {"seed": 2, "steps": 5})
        ['gone (2, now None)', 'seed (1, now 2)']
    """
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return [f"{name} ({_short(old.get(name))}, now {_short(new.get(name))})" for name in names]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
