"""Models whose weights are not simply there: sharded over processes, spread over devices, moved about, or quantised.

Masks read weights outside the modules that they belong to, and again in the backward, when FSDP and accelerate have
taken them away: they come back only for a module's own forward and backward, which steered runs bypass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import Module

MOVERS = ("CpuOffload", "UserCpuOffloadHook")


def refuse_placement(model: Any) -> None:
    """Raise a ValueError unless all weights lie whole on one device, in a floating-point type.

    Raises:
        ValueError: naming a weight, and what is the matter with it.
    """
    if not isinstance(model, Module):
        return
    outline = all(parameter.is_meta for parameter in model.parameters())  # of a model, to see what memory it takes
    for name, parameter in model.named_parameters():
        if reason := _reason(parameter, outline):
            raise ValueError(
                f"Masks read and differentiate whole weights, but {name} is {reason}. Load the model whole, in "
                "bfloat16 if need be, and share examples, not weights, between processes: docs/scale.md."
            )
    devices = {str(parameter.device): name for name, parameter in model.named_parameters()}
    if len(devices) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in sorted(devices.items()))
        raise ValueError(
            f"Masks need a model on one device but this one is on {len(devices)} ({places}). Load it without "
            "device_map, or with one device, and share examples between processes: docs/scale.md."
        )
    if mover := next(_movers(model), None):
        raise ValueError(
            f"Masks need weights that stay where they are, but {mover} moves those of this model on and off a device. "
            "Load it without offloading; micro_batch=1 takes the least memory: docs/scale.md."
        )


def _reason(parameter: Tensor, outline: bool) -> str | None:
    kinds = {base.__name__ for base in type(parameter).__mro__}
    if "DTensor" in kinds:
        return "sharded over processes (DTensor, as of FSDP)"
    if parameter.is_meta and not outline:
        return "not there (on device meta, as accelerate leaves what it offloads)"
    if kinds & {"Params4bit", "Int8Params"} or not parameter.is_floating_point():
        return f"quantised ({type(parameter).__name__} of {parameter.dtype})"
    return None


def _movers(model: Module) -> Iterator[str]:
    """Hooks of accelerate that bring weights to a device for the length of a module's forward."""
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            if type(one).__name__ in MOVERS or getattr(one, "offload", False):
                yield f"{type(one).__name__} of {name or 'the model'}"
