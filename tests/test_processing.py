"""A circuit loads on a model whose weights were processed otherwise exactly where it still means the same."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from bridges import hf_model
from styles import CLEAN, CORRUPT, OTHERS, fresh

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.processing import processing, signature
from tlprune.masking.masked import masked_circuit


def constants_of(model: Any) -> Any:
    """The same numbers on every model, some in each place."""
    found = tp.Constant(original(model.cfg.model_name), tp.Mean(OTHERS), neurons=tuple(range(model.cfg.n_layers)))
    for number, parameter in enumerate(found.parameters()):
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return found


STEPS = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
SITES = {
    "edges": tp.edges,
    "edges separate": lambda model: tp.edges(model, embeddings="separate"),
    "heads": tp.heads,
    "mlps": tp.mlps,
    "layers": tp.layers,
    "nodes": tp.nodes,
    "neurons": tp.neurons,
    "weights": tp.weights,
}
ABLATIONS = {
    "zero": lambda model: tp.Zero(),
    "mean": lambda model: tp.Mean(OTHERS),
    "resample": lambda model: tp.Resample(),
    "constant": constants_of,
}
STYLES = [("gpt2", step) for step in STEPS] + [("llama", "fold_ln"), ("llama", "fold_value_biases")]


@cache
def original(style: str) -> Any:
    return fresh(style, torch.float32)


@cache
def processed(style: str, step: str) -> Any:
    """The same model with one thing done to its weights."""
    model = copy.deepcopy(original(style))
    model.load_and_process_state_dict(model.state_dict(), **STEPS | {step: True})
    return model


def circuit(model: Any, kind: str) -> tp.Circuit:
    """A random half of the sites, with the provenance of where it was found."""
    sites = SITES[kind](model)
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) > 0.5
    backend = backend_of(model)
    known = {**backend.fingerprint(), "processing": processing(backend), "signature": list(signature(backend).values)}
    return tp.Circuit(sites, kept, {"model": known})


def accepted(model: Any, found: tp.Circuit, ablation: Any) -> bool:
    try:
        masked_circuit(model, found, ablation)
    except ValueError as error:
        if "Load the model it was found on" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize(("style", "step"), STYLES)
@torch.no_grad()
def test_accepted_just_where_the_masked_model_says_the_same(style: str, step: str, kind: str, ablation: str) -> None:
    first, second = original(style), processed(style, step)
    if kind == "edges separate" and style == "llama":
        pytest.skip("rotary models have one embedding")
    found = circuit(first, kind)
    outputs = [
        tp.Masked(model, tp.Circuit(found.sites, found.kept), ABLATIONS[ablation](model))(CLEAN, CORRUPT).log_softmax(
            -1
        )
        for model in (first, second)
    ]
    same = bool((outputs[0] - outputs[1]).abs().max() < 1e-3)
    if kind == "weights":  # some steps only scale their rows, which masks would not notice
        assert not accepted(second, found, ABLATIONS[ablation](second))
    else:
        assert accepted(second, found, ABLATIONS[ablation](second)) == same


@torch.no_grad()
def test_a_circuit_of_a_folded_model_runs_behind_a_bridge_of_the_checkpoint() -> None:
    checkpoint = hf_model("gpt2", torch.float32)
    folded, bridge = tp.from_huggingface(checkpoint, device="cpu"), tp.bridge(checkpoint)
    everything = dict.fromkeys(STEPS, True)
    folded.load_and_process_state_dict(folded.state_dict(), **everything)
    found = circuit(folded, "edges")
    assert found.provenance["model"]["weights"] != backend_of(bridge).fingerprint()["weights"]
    outputs = [
        masked_circuit(model, found, tp.Resample())(CLEAN, CORRUPT).log_softmax(-1) for model in (folded, bridge)
    ]
    assert float((outputs[0] - outputs[1]).abs().max()) < 1e-4
    assert accepted(bridge, circuit(folded, "neurons"), tp.Mean(OTHERS))
    assert not accepted(bridge, found, tp.Zero())
    assert not accepted(bridge, circuit(folded, "weights"), tp.Resample())
    assert accepted(folded, circuit(bridge, "heads"), tp.Mean(OTHERS))


def test_another_function_is_refused_whatever_its_processing() -> None:
    model = copy.deepcopy(original("gpt2"))
    found = circuit(model, "edges")
    for name, parameter in processed("gpt2", "fold_ln").named_parameters():
        before = parameter.detach().clone()
        if "W_" in name or name.endswith("b_out"):
            change = 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                parameter.add_(change)
            assert not accepted(processed("gpt2", "fold_ln"), found, tp.Resample()), name
            with torch.no_grad():
                parameter.copy_(before)
    assert accepted(processed("gpt2", "fold_ln"), found, tp.Resample())
    assert accepted(copy.deepcopy(original("gpt2")), found, tp.Zero())


def test_low_precision_needs_the_very_same_weights() -> None:
    low = copy.deepcopy(original("gpt2")).to(torch.bfloat16)
    assert not accepted(low, circuit(original("gpt2"), "edges"), tp.Resample())
    assert accepted(copy.deepcopy(low), circuit(low, "edges"), tp.Resample())
