"""Multi-granular pruning: what was planted is found at every granularity, each at its own price."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from styles import fresh, random_batch

import tlprune as tp
from tlprune.task import Stream, Tokenisation

# The one neuron of each gate is the MLP's first.
TRUE = {
    "copy": ["a1", "a1.h1"],
    "induction": ["a0", "a1", "a0.h2", "a1.h1"],
    "and": ["a0", "a0.h2", "a0.h3", "m1", "m1.n0"],
}


def task() -> tp.Task:
    stream = Stream(*(random_batch(8, seed=seed) for seed in (1, 2, 3)))
    return tp.Task("random", {"main": stream}, Tokenisation(prepend_bos=True))


@pytest.mark.parametrize("name", TRUE)
def test_every_granularity_of_a_planted_circuit_is_found_down_to_its_neuron(name: str) -> None:
    one = tp.planted(name)
    found = tp.MultiGranularPruning(steps=60, samples=2).find(one.model, one.task)
    assert found.names == TRUE[name]
    assert [node for node in found.nodes if node != "input"] == [node for node in one.circuit.nodes if node != "input"]
    assert found.effective == found
    logits = found.on(one.model)(one.task.test)
    assert float(tp.KL()(logits, one.task.test, logits.new_tensor(full(one)))) <= 1e-3


def full(one: Any) -> Any:
    with torch.no_grad():
        return one.model(one.task.test.clean.ids)[:, -1:].log_softmax(-1).tolist()


@pytest.mark.parametrize("dear", ["layers", "heads", "mlps", "neurons"])
def test_a_granularity_that_is_too_dear_goes_and_the_others_stay(dear: str) -> None:
    model = fresh("lnpre", torch.float32)
    prices = dict.fromkeys(("layers", "heads", "mlps", "neurons"), 0.0) | {dear: 1e6}
    found = tp.MultiGranularPruning(steps=12, samples=1, rate=0.2, **prices).find(model, task())
    counts = {kind: (found.count(kind), len(found.sites.group(kind))) for kind in found.sites.kinds}
    assert counts.pop(dear)[0] == 0
    assert all(kept > total / 2 for kept, total in counts.values())


def test_only_what_has_a_price_is_masked() -> None:
    model = fresh("lnpre", torch.float32)
    assert tp.MultiGranularPruning().sites(model).kinds == ("layers", "heads", "mlps", "neurons")
    assert tp.MultiGranularPruning(layers=None, neurons=None).sites(model) == tp.heads(model) + tp.mlps(model)
    assert tp.MultiGranularPruning().sites(model).group("layers").name(1) == "a1", "MLPs are among mlps"


def test_a_model_without_mlps_has_layers_and_heads() -> None:
    model = fresh("attention_only", torch.float32)
    method = tp.MultiGranularPruning(steps=2, samples=1)
    assert method.find(model, task()).sites == tp.layers(model) + tp.heads(model)
    with pytest.raises(ValueError, match="this model has none"):
        tp.MultiGranularPruning(layers=None, heads=None).find(model, task())


def test_scores_are_of_all_sites_and_the_circuit_those_above_0() -> None:
    model, method = fresh("lnpre", torch.float32), tp.MultiGranularPruning(steps=4, samples=1, rate=0.5)
    scores, found = method.score(model, task()), method.find(model, task())
    assert torch.equal(scores.values > 0, found.kept)
    assert tp.method_from(found.provenance) == method


def test_neurons_of_a_removed_mlp_are_not_effective() -> None:
    model = fresh("lnpre", torch.float32)
    sites = tp.mlps(model) + tp.neurons(model)
    circuit = tp.Circuit.from_names(sites, ["m1", "m0.n3", "m1.n3"])
    assert circuit.effective.names == ["m1", "m1.n3"]
    alone = tp.Circuit.from_names(tp.neurons(model), ["m0.n3"])
    assert alone.effective == alone
    spans = tp.mlps(model, spans=("x",)) + tp.neurons(model, spans=("x",))
    apart = tp.Circuit.from_names(spans, ["m0@x", "m0.n3@x", "m0.n3@rest", "m1.n3@x"])
    assert apart.effective.names == ["m0@x", "m0.n3@x"], "gone at its span is gone"
