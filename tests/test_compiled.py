"""Models that ``torch.compile`` has seen: masked runs are those of the model as it was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bridges import bridged
from styles import CLEAN, CORRUPT, fresh, probe
from torch import Tensor

import tlprune as tp

COMPILED: list[int] = []


def note(graph: Any, inputs: Any) -> Any:
    """A compiler that leaves everything as it is."""
    COMPILED.append(len(inputs))
    return graph.forward


def whole(model: Any) -> Any:
    return torch.compile(model, backend=note)


def in_place(model: Any) -> Any:
    model.compile(backend=note)
    return model


def each_mlp(model: Any) -> Any:
    for block in model.blocks:
        block.mlp.compile(backend=note)
    return model


MODELS: dict[str, Callable[[], Any]] = {"gpt2": lambda: fresh("gpt2"), "bridged llama": lambda: bridged("llama")}


def gradient(model: Any, sites: tp.Sites) -> tuple[Tensor, Tensor]:
    mask = torch.rand(len(sites), generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    logits = tp.Masked(model, tp.Masks(sites))(CLEAN, CORRUPT, mask=mask)
    return logits.detach(), torch.autograd.grad(probe(logits), mask)[0]


@pytest.mark.filterwarnings("ignore")  # dynamo's own, on what it cannot compile
@pytest.mark.parametrize("compiled", [whole, in_place, each_mlp])
@pytest.mark.parametrize("kind", MODELS)
def test_masks_see_the_model_behind_it(kind: str, compiled: Callable[[Any], Any]) -> None:
    plain, model = MODELS[kind](), compiled(MODELS[kind]())
    for sites in (tp.edges(plain), tp.heads(plain) + tp.mlps(plain)):
        for found, expected in zip(gradient(model, sites), gradient(plain, sites), strict=True):
            assert torch.equal(found, expected)
    torch.compiler.reset()
    COMPILED.clear()
    model(CLEAN.ids)
    assert COMPILED, "outside of masked runs the model is compiled still"


def test_methods_take_a_wrapped_model() -> None:
    planted = tp.planted("copy")
    model = torch.compile(planted.model, backend=note)
    circuit = tp.EAP().find(model, planted.task)
    assert torch.equal(circuit.kept, tp.EAP().find(planted.model, planted.task).kept)
    assert tp.evaluate(model, planted.circuit, planted.task).as_dict()
