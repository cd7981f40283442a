"""The planted models as a user meets them: names, answers, splits, seeds, explanations and refusals."""

from __future__ import annotations

import types
from functools import cache

import pytest
import torch

from tlprune.backends import backend_of
from tlprune.models.planted import Planted, planted, planted_task
from tlprune.models.planted_tasks import ASK, NO, START, YES
from tlprune.models.planted_wiring import WIRINGS

NAMES = sorted(WIRINGS)


@cache
def built(name: str, seed: int = 0) -> Planted:
    return planted(name, seed=seed)


def test_no_names_missing() -> None:
    assert NAMES == ["adder", "and", "copy", "induction", "or", "sentiment"]


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_right_by_a_wide_margin(name: str) -> None:
    task = built(name).task
    for batch in (task.discovery.train(), task.discovery.validation(), task.test):
        for prompts, right, wrong in (
            (batch.clean, batch.answers, batch.foils),
            (batch.corrupt, batch.foils, batch.answers),
        ):
            logits = built(name).model(prompts.ids)[:, -1]
            assert (logits.argmax(-1) == right[:, 0]).all()
            others = logits.scatter(1, right, -torch.inf).amax(-1)
            assert (logits.gather(1, right)[:, 0] - others).min() >= 5
            assert (right != wrong).all()


@pytest.mark.parametrize(("name", "answers"), [("and", [NO, NO, NO, YES]), ("or", [NO, YES, YES, YES])])
def test_gates_have_their_truth_table(name: str, answers: list[int]) -> None:
    prompts = [[START, 3, first, 7, 4, second, 8, ASK] for first in (6, 2) for second in (9, 5)]
    logits = built(name).model(torch.tensor(prompts))[:, -1]
    assert logits.argmax(-1).tolist() == answers


@pytest.mark.parametrize("name", NAMES)
def test_distractors_reach_true_readers_over_edges(name: str) -> None:
    """The truth is not given away by the graph: true readers have many more incoming edges than true ones."""
    circuit = built(name).circuit
    readers = {edge.split("->")[1] for edge in circuit.edges}
    false = [edge for edge in circuit.complement.edges if edge.split("->")[1] in readers]
    assert len(false) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_every_true_edge_is_effective(name: str) -> None:
    circuit = built(name).circuit
    assert circuit.n_effective == len(circuit) == {"copy": 2, "adder": 4}.get(name, 5)
    assert circuit.effective == circuit
    assert circuit.graph.n_edges == 110


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_prompt(name: str) -> None:
    task = built(name).task
    parts = (task.discovery.train(), task.discovery.validation(), task.test)
    prompts = [tuple(ids) for batch in parts for ids in batch.clean.ids.tolist()]
    assert [len(batch) for batch in parts] == [96, 32, 64]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides_the_weights_and_not_the_prompts(name: str) -> None:
    state = torch.random.get_rng_state()
    again, other = planted(name, seed=0), built(name, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same_weights(built(name).model, again.model) and again.circuit == built(name).circuit
    assert not same_weights(built(name).model, other.model)
    assert built(name).task.fingerprint == again.task.fingerprint == other.task.fingerprint
    assert planted_task(other.model, seed=1).fingerprint != other.task.fingerprint


def same_weights(first: object, second: object) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_true_heads_move_with_the_seed() -> None:
    assert len({tuple(built("induction", seed).circuit.edges) for seed in range(6)}) > 2


@pytest.mark.parametrize("name", NAMES)
def test_explanation_names_every_true_part(name: str) -> None:
    writers = {edge.split("->")[0] for edge in built(name).circuit.edges} - {"input"}
    assert all(writer in built(name).explanation for writer in writers)
    assert built(name).task.name == built(name).model.cfg.model_name == f"planted-{name}"


def test_unknown_name_and_foreign_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one of copy, induction, and, or, adder, sentiment but 'xor'"):
        planted("xor")
    foreign = types.SimpleNamespace(cfg=types.SimpleNamespace(model_name="gpt2"))
    with pytest.raises(ValueError, match=r"needs a planted model .* but this one is 'gpt2'"):
        planted_task(foreign)
    with pytest.raises(ValueError, match=r"but this one is 'and'"):
        planted_task(types.SimpleNamespace(cfg=types.SimpleNamespace(model_name="and")))


def test_weights_are_the_same_on_every_transformer_lens() -> None:
    """Made without HookedTransformer as well: the fingerprints that a circuit's provenance names."""
    made = {name: backend_of(built(name).model).fingerprint()["weights"] for name in NAMES}
    assert made == {
        "adder": "71b4ce94611a19a0",
        "and": "a1c827028e122ea6",
        "copy": "cc1da4bf45f87f6f",
        "induction": "05b39e475d531856",
        "or": "eae4b1012126233b",
        "sentiment": "84e1aa1f64c5218f",
    }
