"""Weights that are not simply there are refused by name, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import accelerate
import pytest
import torch
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import CLEAN, fresh
from torch import distributed
from torch.distributed.fsdp import fully_shard

import tlprune as tp
from tlprune.backends import backend_of


@pytest.fixture
def group() -> Iterator[None]:
    """This process alone, as a group."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def refused(model: Any, message: str) -> None:
    for attach in (backend_of, tp.edges, lambda model: tp.Masked(model, tp.Masks(tp.edges(model)))):
        with pytest.raises(ValueError, match=message):
            attach(model)


@pytest.mark.usefixtures("group")
def test_sharded_weights_are_refused() -> None:
    model = fresh("llama", torch.float32)
    backend_of(model)
    fully_shard(model.blocks[1], mesh=distributed.init_device_mesh("cpu", (1,)))
    refused(model, r" is sharded over processes \(DTensor")


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize(
    ("offload", "message"),
    [
        (
            lambda model: accelerate.cpu_offload(model, execution_device=torch.device("cpu")),
            r"AlignDevicesHook of .* moves",
        ),
        (lambda model: accelerate.cpu_offload_with_hook(model, "cpu"), "CpuOffload of the model moves"),
    ],
)
def test_weights_that_are_moved_about_are_refused(offload: Callable[[Any], Any], message: str) -> None:
    model = fresh("lnpre", torch.float32)
    offload(model)
    refused(model, message)


class Elsewhere(torch.nn.Parameter):
    """A parameter that says it is on a device that tests do not have."""

    device = torch.device("cuda", 1)


def test_weights_on_several_devices_are_refused() -> None:
    refused(with_other_weight(Elsewhere), "is on 2 .* on cuda:1")


def test_quantised_weights_are_refused() -> None:
    model = with_other_weight(lambda value: torch.nn.Parameter(value.to(torch.int8), requires_grad=False))
    refused(model, r"is quantised \(Parameter of torch.int8\)")


def test_weights_without_values_are_refused() -> None:
    refused(with_other_weight(lambda value: torch.nn.Parameter(value.to("meta"))), "is not there .on device meta")


def with_other_weight(change: Callable[[torch.Tensor], torch.nn.Parameter]) -> Any:
    """A model of which the last parameter is another."""
    model = fresh("lnpre", torch.float32)
    owners = [
        (module, name) for module in model.modules() for name, own in module._parameters.items() if own is not None
    ]
    module, name = owners[-1]
    module._parameters[name] = change(module._parameters[name].detach())
    return model


@NEEDS_HOOKED_TRANSFORMER
def test_a_model_that_one_device_holds_is_taken() -> None:
    """One that accelerate has dispatched to a single device, too."""
    model = fresh("lnpre", torch.float32)
    before = model(CLEAN.ids)
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    last = torch.full((len(CLEAN.ids), 1), CLEAN.ids.shape[1] - 1)
    torch.testing.assert_close(backend_of(model).logits(CLEAN, last), before[:, -1:])
