"""Methods on a classifier: what they find is what was built in, and the whole path from training to figures runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from encoders import LENGTH, VOCABULARY, call, fresh_encoder
from hooked import NEEDS_HOOKED_TRANSFORMER

import tlprune as tp
from tlprune.task import Stream, Tokenisation

pytestmark = NEEDS_HOOKED_TRANSFORMER


def classifier() -> Any:
    """One layer in which head 1 alone carries anything: other heads and the MLP write nothing."""
    model = fresh_encoder("bert classes", torch.float32, num_hidden_layers=1)
    with torch.no_grad():
        others = torch.tensor([0, 2, 3])
        model.blocks[0].attn.W_O[others] = 0
        model.blocks[0].attn.W_O[1] *= 5
        model.blocks[0].mlp.W_out.zero_()
        model.classifier.W *= 5
    return model


def batch_of(model: Any, examples: int, seed: int) -> tp.Batch:
    """Prompts that agree with their twins at the first position, which the head reads, and in token types."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = torch.randint(3, VOCABULARY, (2, examples, LENGTH), generator=generator)
    corrupt[:, 0] = clean[:, 0] = 2
    mask, types = torch.ones_like(clean), (torch.arange(LENGTH) > 3).long().expand(examples, -1)
    mask[::2, -2:] = 0
    prompts = [tp.Tokens(ids * mask, mask, types) for ids in (clean, corrupt)]
    answers = call(model, prompts[0]).argmax(-1, keepdim=True)
    positions = torch.zeros(examples, 1, dtype=torch.long)
    return tp.Batch(torch.arange(examples), prompts[0], prompts[1], positions, answers, (answers + 1) % 3)


def task_of(model: Any) -> tp.Task:
    train, validation, test = (batch_of(model, 32, seed) for seed in range(3))
    return tp.Task("classes", {"main": Stream(train, validation, test)}, Tokenisation(prepend_bos=False))


def test_edge_pruning_finds_the_head_that_carries_the_class() -> None:
    model = classifier()
    task = task_of(model)
    circuit = tp.EdgePruning(edges=4, steps=60).find(model, task)
    assert len(circuit) == 4
    assert {"input->a0.h1<v>", "a0.h1->logits"} <= set(circuit.edges)
    assert circuit.provenance["model"]["processing"]["normalization"] == "LN"
    table = tp.evaluate(model, circuit, task)
    assert table["circuit"].means()["kl"] < 0.2 * table["empty"].means()["kl"]
    assert table["full model"].means()["accuracy"] == 1
    assert table["circuit"].means()["agreement"] > table["complement"].means()["agreement"]


def test_heads_with_a_budget_find_it_too() -> None:
    model = classifier()
    masks = tp.Masks(tp.heads(model) + tp.mlps(model), tp.HardConcrete(initial=2.0))
    masked = tp.Masked(model, masks, tp.Resample())
    budget = tp.Lagrangian(kept=1, on="heads") + tp.Penalty(0.01, on="mlps")
    tp.fit(masked, task_of(model).discovery, tp.KL(), budget, steps=60)
    assert masks.circuit(heads=1, mlps=0).names_of("heads") == ["a0.h1"]


def test_a_circuit_comes_back_from_a_file_as_it_was(tmp_path: Any) -> None:
    model = classifier()
    circuit = tp.Circuit.from_edges(model, ["input->a0.h1<v>", "a0.h1->logits"])
    circuit.save(tmp_path / "circuit.json")
    again = tp.Circuit.load(tmp_path / "circuit.json")
    assert again == circuit
    assert again.effective == circuit
    batch = batch_of(model, 4, seed=9)
    assert torch.equal(again.on(model)(batch), circuit.on(model)(batch))
    assert again.on(model)(batch).shape == (4, 1, 3)


def test_a_circuit_belongs_to_the_function_of_its_model() -> None:
    """Another precision is the same; a gain moved from a norm to what reads it elsewhere is not: it stands behind."""
    model = classifier()
    with torch.no_grad():
        model.blocks[0].ln1.b.zero_()
    circuit = tp.EdgePruning(edges=2, steps=1).find(model, task_of(model))
    batch = batch_of(model, 4, seed=9)
    exact = copy.deepcopy(model).to(torch.float64, print_details=False)
    assert (circuit.on(exact)(batch) - circuit.on(model)(batch)).abs().max() <= 1e-4
    with torch.no_grad():
        model.blocks[0].ln1.w *= 2
        for name in ("W_Q", "W_K", "W_V"):
            getattr(model.blocks[0].attn, name).div_(2)
    with pytest.raises(ValueError, match="which computes something else"):
        circuit.on(model)
