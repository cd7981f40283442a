"""Provenance gives back the very method that it tells of, and says what is wrong with one that it cannot give back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from styles import backend_of_style, fresh, model_of, random_batch

import tlprune as tp
from tlprune.backends.hooked_transformer import HookedTransformerBackend
from tlprune.backends.processing import processing
from tlprune.masking.discovered import ablation_of_discovery
from tlprune.methods import METHODS
from tlprune.methods.ablations import ablation_for
from tlprune.methods.provenance import method_from, plain, provenance_of
from tlprune.task import Discovery, Tokens


@dataclass(frozen=True)
class Nested:
    """A method whose fields hold whatever a field may."""

    inner: Any = None
    sizes: Any = None
    layers: tuple[tuple[int, ...], ...] = ((1, 2), (), (3,))
    infinite: float = float("inf")


@pytest.fixture(autouse=True)
def nested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "nested", Nested)


def through_json(method: Any) -> Any:
    return method_from({"method": json.loads(json.dumps(plain(method)))})


METHODS_TO_TELL = {
    "defaults": Nested(),
    "a method of methods": Nested(inner=Nested(inner=tp.EdgePruning(edges=3, seed=5))),
    "a sum of objectives": Nested(1.5 * tp.Uniform(on="target", run="complement") + tp.KL(on="control")),
    "a sum of budgets": Nested(tp.Lagrangian(0.95, on="edges") + tp.Penalty(0.1)),
    "a gate beside an ablation": Nested(tp.StraightThrough(temperature=0.5), tp.GaussianNoise(0.2, seed=1)),
    "a mean to be measured": Nested(tp.Mean(over="examples")),
    "a mapping": Nested(sizes={"target": 4, "parts": (tp.KL(), None)}),
    "an empty mapping": Nested(sizes={}),
    "edge pruning": tp.EdgePruning(sparsity=0.9, recipe="paper", kv="per_query_head", validate_every=7),
}


@pytest.mark.parametrize("case", METHODS_TO_TELL)
def test_a_method_comes_back_equal_whatever_its_fields_hold(case: str) -> None:
    method = METHODS_TO_TELL[case]
    again = through_json(method)
    assert type(again) is type(method)
    assert again == method


def test_every_public_gate_objective_budget_and_ablation_can_be_held() -> None:
    parts = [tp.HardConcrete(), tp.Heaviside(), tp.Sigmoid(), tp.StraightThrough(), tp.Penalty(0.5), tp.Optimiser()]
    parts += [tp.KL(), tp.CrossEntropy(), tp.LogitDifference(), tp.Uniform(), tp.Lagrangian(kept=3)]
    parts += [tp.Resample(), tp.Zero(), tp.Mean(), tp.GaussianNoise()]
    assert through_json(Nested(sizes=tuple(parts))).sizes == tuple(parts)


@dataclass(frozen=True)
class Named:
    name: str = "mine"


@dataclass(frozen=True)
class Strange:
    depth: int = 2


UNTOLD = {
    "a schedule": tp.Sigmoid(temperature=tp.schedules.constant(1.0)),
    "a list": [1, 2],
    "a tensor": torch.ones(2),
    "reference prompts": tp.Mean(Tokens(torch.zeros(1, 1, dtype=torch.long))),
    "a class": tp.KL,
    "a field called name": Named(),
    "a key called name": {"name": "KL"},
    "numbers for keys": {1: 2},
}


@pytest.mark.parametrize("case", UNTOLD)
def test_what_plain_data_cannot_give_back_is_refused(case: str) -> None:
    with pytest.raises(ValueError, match="A method's fields"):
        plain(Nested(sizes=UNTOLD[case]))


def told(**changes: Any) -> dict[str, Any]:
    known = {**plain(tp.EdgePruning()), **changes}
    return {"method": {key: value for key, value in known.items() if value != "gone"}, "versions": {"tlprune": "9.8"}}


REFUSED = {
    "by hand": ({"source": "paper"}, r"this one has source and no method.*provenance\['of'\]"),
    "nothing": ({}, "this one has nothing and no method"),
    "a name alone": ({"method": "edge-pruning"}, "no method"),
    "unknown method": (told(name="sieve"), r"methods .*edge-pruning.*'sieve'.*that found it \(9.8\)"),
    "no name": (told(name="gone"), "but the circuit is of None"),
    "a part as a method": ({"method": {"name": "KL"}}, "but the circuit is of 'KL'"),
    "unknown field": (told(depth=3), "has depth besides and lacks none"),
    "missing field": (told(steps="gone"), "has none besides and lacks steps"),
    "bad value": (told(sparsity=95), "refuses.*Sparsity must lie between 0 and 1"),
    "bad kind": (told(steps="many"), "edge-pruning, which refuses"),
    "unknown part": (told(recipe={"name": "Soup"}), "parts HardConcrete.*holds 'Soup'"),
    "part with an unknown field": (
        told(recipe={"name": "Zero", "depth": 1}),
        "Zero with the fields .*has depth besides",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_provenance_that_gives_no_method_back_is_refused_with_one_error(case: str) -> None:
    provenance, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        method_from(provenance)


def test_classes_of_others_are_told_by_their_full_name_and_not_built() -> None:
    stranger = plain(Nested(sizes=Strange()))
    assert stranger["sizes"] == {"name": f"{__name__}.Strange", "depth": 2}
    with pytest.raises(ValueError, match=r"holds '.*\.Strange'"):
        method_from({"method": stranger})


def test_combined_circuits_tell_of_their_own_origins() -> None:
    one = tp.planted("copy")
    methods = [tp.EdgePruning(edges=2, steps=1, seed=seed) for seed in (0, 1)]
    both = methods[0].find(one.model, one.task) | methods[1].find(one.model, one.task)
    assert [method_from(origin) for origin in both.provenance["of"]] == methods
    with pytest.raises(ValueError, match="no method"):
        method_from(both.provenance)


# ---- the rest of it


def test_processing_is_read_off_the_model() -> None:
    folded = {"gpt2": False, "lnpre": True, "llama": False, "rmspre": True, "no_norm": False}
    assert {style: processing(backend_of_style(style))["folded_norms"] for style in folded} == folded
    model = fresh("llama", torch.float32)
    assert processing(HookedTransformerBackend(model)) == {
        "normalization": "RMS", "folded_norms": False, "value_biases": True, "dtype": "float32",
    }  # fmt: skip
    with torch.no_grad():
        for block in model.blocks:
            block.attn._b_V.zero_()
    assert processing(HookedTransformerBackend(model))["value_biases"] is False


TRAIN, VALIDATION = random_batch(6, seed=1), random_batch(3, seed=2)
DISCOVERY = Discovery("random", {"main": (TRAIN, VALIDATION), "other": (VALIDATION, TRAIN)}, {"name": "random"})


@pytest.mark.parametrize(
    ("sites", "convention"),
    [
        (tp.edges(model_of("llama"), embeddings="kept", kv="per_query_head"), ("kept", "per_query_head")),
        (tp.edges(model_of("llama")) + tp.heads(model_of("llama")), ("merged", "shared")),
        (tp.heads(model_of("llama")), None),
    ],
)
def test_provenance_is_the_same_after_a_round_trip_and_states_the_convention(sites: Any, convention: Any) -> None:
    method, ablation = Nested(), tp.Zero()
    found = provenance_of(method, model_of("llama"), discovery=DISCOVERY, sites=sites, ablation=ablation)
    assert json.loads(json.dumps(found)) == found
    assert found["ablation"] == {"name": "zero"} and found["task"] == {"name": "random"} and found["seed"] is None
    stated = found["convention"]
    assert (stated and (stated["embeddings"], stated["kv"])) == convention
    seeded = provenance_of(
        tp.EdgePruning(seed=4), model_of("llama"), discovery=DISCOVERY, sites=sites, ablation=ablation
    )
    assert seeded["seed"] == 4


# ---- ablations


def test_a_mean_without_reference_goes_over_corrupted_training_prompts() -> None:
    assert ablation_for(DISCOVERY) == tp.Resample()
    assert ablation_for(DISCOVERY, tp.Zero()) == tp.Zero()
    chosen = ablation_for(DISCOVERY, tp.Mean(over="examples", batch_size=2))
    assert isinstance(chosen, tp.Mean) and chosen.reference is TRAIN.corrupt
    assert (chosen.over, chosen.batch_size) == ("examples", 2)
    assert ablation_for(DISCOVERY, tp.Mean(), on="other").as_dict()["prompts"] == len(VALIDATION)
    own = tp.Mean(VALIDATION.clean)
    assert ablation_for(DISCOVERY, own) is own


@pytest.mark.parametrize("over", ["positions", "examples"])
def test_the_error_about_missing_reference_prompts_holds_the_words_to_write(over: Any) -> None:
    one = tp.planted("copy")
    task, model = one.task, one.model
    found = tp.EdgePruning(edges=2, steps=1).find(model, task, ablation=tp.Mean(over=over))
    reference = tp.Mean(task.discovery.train().corrupt)
    assert found.provenance["ablation"] == {**reference.as_dict(), "over": over}
    for use in (lambda: found.on(model), lambda: tp.evaluate(model, found, task)):
        with pytest.raises(ValueError, match="96 prompts with fingerprint") as caught:
            use()
        told = str(caught.value).partition("ablation=")[2].partition(". Else")[0]
        written = eval(told, {"tp": tp, "task": task})
        assert written.as_dict() == found.provenance["ablation"]
    report = tp.evaluate(model, found, task, ablation=written)
    assert report.ablation == report.discovery


def test_trained_and_foreign_ablations_must_be_given_again() -> None:
    by_hand = tp.Circuit.from_edges(model_of("gpt2"), ["input->logits"])
    for name, data in (("constant", "trained values"), ("mine", "data")):
        with pytest.raises(ValueError, match=f"found under {name} ablation, whose {data} are not in it"):
            ablation_of_discovery(by_hand.like(by_hand.kept, {"ablation": {"name": name, "start": {}}}))
