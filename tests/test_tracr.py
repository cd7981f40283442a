"""Compiled programs: the models do what the programs mean, and their circuits are what brute force finds."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.graph import Graph
from tlprune.models.planted import planted
from tlprune.models.tracr.circuits import Behaviour, structural_edges
from tlprune.models.tracr.compiled import Compiled
from tlprune.models.tracr.program import SHIPPED, TOLERANCE, Tracr, tracr, tracr_task

NAMES = sorted(SHIPPED)
# The lists of Conmy et al. 2023 (ACDC at zero ablation), without what joins q, k and v to their own head.
PUBLISHED = {
    "reverse": """embed->a0.h0<v> embed->m0 a0.h0->m0 embed->m1 pos_embed->m1 m0->m1 m1->m2 m2->a3.h0<q>
        pos_embed->a3.h0<k> embed->a3.h0<v> a3.h0->logits""",
    "xproportion": """embed->m0 embed->a1.h0<q> pos_embed->a1.h0<q> embed->a1.h0<k> pos_embed->a1.h0<k> m0->a1.h0<v>
        a1.h0->logits""",
}


@cache
def built(name: str) -> Tracr:
    return tracr(name)


def meant(name: str, sequence: tuple[Any, ...]) -> list[Any]:
    """What the program is to give, in Python."""
    if name == "reverse":
        return list(reversed(sequence))
    return [sequence[: end + 1].count("x") / (end + 1) for end in range(len(sequence))]


def inputs(name: str) -> list[tuple[Any, ...]]:
    return list(itertools.product(*{"reverse": [(1, 2, 3)] * 3, "xproportion": ["wxyz"] * 4}[name]))


class Plain:
    """A bidirectional transformer without norms, one writer and one reader after the other; it shares no code.

    ``carry(writer, reader, value)`` decides what an edge brings.
    """

    def __init__(self, one: Tracr, embeddings: str) -> None:
        self.weights = {name: value.detach() for name, value in backend_of(one.model).parameters().items()}
        self.shape, self.separate = one.program.shape, embeddings == "separate"

    def __call__(self, ids: Tensor, carry: Callable[[str, str, Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = self.weights["embed.W_E"][ids]
        places = self.weights["pos_embed.W_pos"][: ids.shape[1]].expand_as(tokens)
        sent = {"embed": tokens, "pos_embed": places} if self.separate else {"input": tokens + places}

        def read(reader: str, known: Mapping[str, Tensor]) -> Tensor:
            return sum(carry(writer, reader, value) for writer, value in known.items())

        for layer in range(self.shape.n_layers):
            before = dict(sent)
            for head in range(self.shape.n_heads):
                name, path = f"a{layer}.h{head}", f"blocks.{layer}.attn.W_"
                q, k, v = (read(f"{name}<{part}>", before) @ self.weights[path + part.upper()][head] for part in "qkv")
                pattern = (q @ k.mT / self.shape.d_head**0.5).softmax(-1)
                sent[name] = pattern @ v @ self.weights[path + "O"][head]
            hidden = (read(f"m{layer}", sent) @ self.weights[f"blocks.{layer}.mlp.W_in"]).relu()
            sent[f"m{layer}"] = hidden @ self.weights[f"blocks.{layer}.mlp.W_out"]
        return read("logits", sent) @ self.weights["unembed.W_U"], sent


def without(
    one: Tracr,
    edges: set[str],
    *,
    embeddings: str = "merged",
    others: Tensor | None = None,
    ids: Tensor | None = None,
) -> Tensor:
    """Logits behind the first token without some edges: they bring nothing, or what they bring on other inputs."""
    plain, ids = Plain(one, embeddings), one.task.test.clean.ids if ids is None else ids
    sent = None if others is None else plain(others, lambda writer, reader, value: value)[1]

    def carry(writer: str, reader: str, value: Tensor) -> Tensor:
        if f"{writer}->{reader}" not in edges:
            return value
        return torch.zeros_like(value) if sent is None else sent[writer]

    return plain(ids, carry)[0][:, 1:]


def decoded(one: Tracr, logits: Tensor) -> Tensor:
    return logits.argmax(-1) if one.program.outputs else (logits[..., 0] / TOLERANCE / 2).round()


def test_public_object_says_what_it_is() -> None:
    one = built("reverse")
    assert repr(one) == "Tracr('reverse', 27 inputs)"
    assert one.explanation == one.program.explanation != ""
    assert one.circuit == one.behavioural


@pytest.mark.parametrize("name", NAMES)
def test_shipped_model_does_what_the_program_means_on_every_input(name: str) -> None:
    one, sequences = built(name), inputs(name)
    wanted = [meant(name, sequence) for sequence in sequences]
    assert len(sequences) == len(one.task.test) == {"reverse": 27, "xproportion": 256}[name]
    if one.program.outputs:
        assert one(sequences) == wanted
    else:
        torch.testing.assert_close(torch.tensor(one(sequences)), torch.tensor(wanted), atol=1e-5, rtol=0)
    logits = one.model(one.program.encode(sequences))[:, 1:]
    if one.program.outputs:  # one for the right value, nothing for others
        right = [[one.program.outputs.index(value) for value in row] for row in wanted]
        torch.testing.assert_close(logits, torch.nn.functional.one_hot(torch.tensor(right)).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_task_has_every_input_with_its_answer_and_another_input_as_twin(name: str) -> None:
    one = built(name)
    batch, sequences = one.task.test, inputs(name)
    assert torch.equal(batch.clean.ids, one.program.encode(sequences))
    assert sorted(batch.corrupt.ids.tolist()) == sorted(batch.clean.ids.tolist())
    assert (batch.corrupt.ids != batch.clean.ids).any(1).all()
    wanted = [meant(name, sequence) for sequence in sequences]
    if one.program.outputs:
        assert [[one.program.outputs[index] for index in row] for row in batch.answers.tolist()] == wanted
        assert ((batch.foils >= 0) & (batch.foils < 3) & (batch.foils != batch.answers)).all()
    else:
        torch.testing.assert_close(batch.targets, torch.tensor(wanted))
        assert (batch.answers == -100).all() and (batch.foils == -100).all()
    assert one.task.discovery.train() is one.task.discovery.validation() is batch
    other = tracr_task(one.model, seed=1)
    assert not torch.equal(other.test.corrupt.ids, batch.corrupt.ids)
    assert tracr_task(one.model).fingerprint == one.task.fingerprint


# ---- circuits


@pytest.mark.parametrize("embeddings", ["merged", "separate"])
@pytest.mark.parametrize("name", NAMES)
def test_edges_outside_of_the_structural_circuit_have_no_effect_in_any_state(name: str, embeddings: str) -> None:
    one = built(name)
    structural = one.structural_with(embeddings)
    outside = set(structural.complement.edges)
    assert outside
    assert structural.n_effective == len(structural)
    generator = torch.Generator().manual_seed(0)
    shuffled = one.task.test.clean.ids[torch.randperm(len(one.task.test), generator=generator)]
    for others in (None, shuffled):
        for share in (0.0, 0.2, 0.5):
            random = set(itertools.compress(structural.edges, torch.rand(len(structural), generator=generator) < share))
            kept = without(one, random, embeddings=embeddings, others=others)
            removed = without(one, random | outside, embeddings=embeddings, others=others)
            torch.testing.assert_close(removed, kept, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_structural_edge_changes_what_its_reader_sees(name: str) -> None:
    """A reader's product with what an edge brings is not 0 on every input, so no edge is too many."""
    one = built(name)
    weights, values = {}, {}

    def carry(writer: str, reader: str, value: Tensor) -> Tensor:
        values[writer] = value
        return value

    plain = Plain(one, "merged")
    plain(one.task.test.clean.ids, carry)
    for layer in range(plain.shape.n_layers):
        path = f"blocks.{layer}.attn.W_"
        weights |= {f"a{layer}.h0<{part}>": plain.weights[path + part.upper()][0] for part in "qkv"}
        weights[f"m{layer}"] = plain.weights[f"blocks.{layer}.mlp.W_in"]
    weights["logits"] = plain.weights["unembed.W_U"]
    for edge in one.structural.edges:
        writer, _, reader = edge.partition("->")
        assert (values[writer] @ weights[reader]).abs().max() > 1e-3, edge


@pytest.mark.parametrize("embeddings", ["merged", "separate"])
@pytest.mark.parametrize("name", NAMES)
def test_behavioural_circuit_is_what_removing_each_edge_shows(name: str, embeddings: str) -> None:
    one = built(name)
    found = one.behavioural_with("zero", embeddings)
    right = decoded(one, without(one, set()))
    every = found.graph.edges()
    changing = [
        edge for edge in every if not torch.equal(decoded(one, without(one, {edge}, embeddings=embeddings)), right)
    ]
    assert found.edges == changing
    assert found.provenance["ablation"] == {"name": "zero"}


def test_behavioural_circuit_under_interchange_is_what_every_pair_shows() -> None:
    one = built("reverse")
    found, ids = one.behavioural_with("interchange"), one.task.test.clean.ids
    clean, others = ids.repeat_interleave(len(ids), 0), ids.repeat(len(ids), 1)
    right = decoded(one, without(one, set(), ids=clean))
    every = found.graph.edges()
    logits = (without(one, {edge}, ids=clean, others=others) for edge in every)
    changing = [edge for edge, found in zip(every, logits, strict=True) if not torch.equal(decoded(one, found), right)]
    # The length is the same for all inputs, and so is where each position looks.
    assert found.edges == changing == ["input->a3.h0<v>", "a3.h0->logits"]
    assert found.provenance["ablation"] == {"name": "resample"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ablation", [tp.Zero(), tp.Resample()], ids=["zero", "resample"])
def test_edge_engine_takes_bidirectional_models_without_norms(name: str, ablation: Any) -> None:
    one = built(name)
    graph, batch = one.structural.graph, one.task.test
    kept = torch.rand(graph.n_edges, generator=torch.Generator().manual_seed(1)) < 0.7
    circuit = tp.Circuit(one.structural.sites, kept)
    others = None if isinstance(ablation, tp.Zero) else batch.corrupt.ids
    removed = set(circuit.complement.edges)
    found = tp.Masked(one.model, circuit, ablation)(batch)
    torch.testing.assert_close(found, without(one, removed, others=others), atol=1e-5, rtol=1e-5)


def test_a_lone_gate_without_a_norm_behind_it_scales_what_is_read() -> None:
    """Zero ablation puts such gates behind norms, which undo a scale; here there is no norm, and the scale counts."""
    one = built("reverse")
    graph = one.structural.graph
    half = torch.ones(graph.n_edges)
    half[graph.index("input->a0.h0<v>")] = 0.5
    masked = tp.Masked(one.model, tp.Circuit(one.structural.sites, half > 0), tp.Zero())
    found = masked(one.task.test, mask=half)
    plain = Plain(one, "merged")

    def carry(writer: str, reader: str, value: Tensor) -> Tensor:
        return value / 2 if (writer, reader) == ("input", "a0.h0<v>") else value

    torch.testing.assert_close(found, plain(one.task.test.clean.ids, carry)[0][:, 1:], atol=1e-5, rtol=0)


def test_reverse_has_just_the_published_edges_and_counts() -> None:
    found = built("reverse").behavioural_with("zero", "separate")
    assert set(found.edges) == set(PUBLISHED["reverse"].split())
    assert (len(found), tp.truths.with_internal(found)) == (11, 15)


def test_xproportion_has_the_published_edges_on_the_published_prompts() -> None:
    """They lack the first token: ids 0 to 3 are BOS, PAD, w and x, anywhere, so that the embedding steers attention."""
    one = built("xproportion")
    structural, found = one.structural_with("separate"), one.behavioural_with("zero", "separate")
    published = set(PUBLISHED["xproportion"].split())
    assert set(structural.edges) == published
    assert (len(published), tp.truths.with_internal(structural)) == (7, 10)
    assert (len(found), tp.truths.with_internal(found)) == (5, 8)
    assert published - set(found.edges) == {"embed->a1.h0<q>", "embed->a1.h0<k>"}
    prompts = torch.tensor(list(itertools.product(range(4), repeat=4)))
    plain = Plain(one, "separate")
    full = plain(prompts, lambda writer, reader, value: value)[0]
    for edge in published:
        cut = plain(prompts, lambda w, r, value: value * (f"{w}->{r}" != edge))[0]  # noqa: B023
        assert (cut - full).abs().max() > 0.1, edge


@pytest.mark.parametrize("name", NAMES)
def test_behavioural_circuit_is_enough_and_has_no_edge_too_many(name: str) -> None:
    one = built(name)
    assert one.solves(one.behavioural) and one.is_least(one.behavioural)
    assert one.least() == one.behavioural
    assert one.solves(one.structural)
    assert one.is_least(one.structural) == (one.structural == one.behavioural)
    smaller = one.behavioural & tp.Circuit.from_edges(one.model, one.behavioural.edges[1:])
    assert not one.solves(smaller) and not one.is_least(smaller)
    removed = set(one.behavioural.complement.edges)
    assert torch.equal(decoded(one, without(one, removed)), decoded(one, without(one, set())))


def test_where_one_edge_stands_for_another_a_least_part_has_one_of_them() -> None:
    """Each input of an OR gate masks the other: no edge of theirs matters alone, and one of the two ways is enough."""
    gate = planted("or")
    structural = structural_edges(gate.model)
    behaviour = Behaviour(gate.model, gate.task.test, lambda logits: logits.argmax(-1).float(), tolerance=0.5)
    alone = behaviour.edges_that_matter(structural, "zero")
    assert alone.edges == ["m1->logits"] and not behaviour.solves(alone, "zero")
    least = behaviour.least(structural, "zero")
    assert behaviour.is_least(least, "zero") and not behaviour.is_least(structural, "zero")
    (head,) = least.heads
    assert set(least.edges) == {*(f"input->{head}<{part}>" for part in "qkv"), f"{head}->m1", "m1->logits"}


@pytest.mark.parametrize(("name", "seed"), [("reverse", 0), ("xproportion", 0), ("xproportion", 1)])
def test_edge_pruning_finds_the_behavioural_circuit(name: str, seed: int) -> None:
    one = built(name)
    method = tp.EdgePruning(edges=len(one.behavioural), steps=100, seed=seed)
    assert method.find(one.model, one.task, ablation=tp.Zero()) == one.behavioural


# ---- doors


@pytest.mark.parametrize("name", NAMES)
def test_doors_give_the_same_model_task_and_truth(name: str) -> None:
    model = tp.load(f"tracr-{name}", device="cpu")
    assert backend_of(model).fingerprint() == backend_of(built(name).model).fingerprint()
    assert tp.tasks.task_builder(name)(model, seed=0).fingerprint == built(name).task.fingerprint
    assert tp.truth(name, model) == built(name).behavioural
    assert tp.truths.TRUTHS[name].task == name


def test_graph_of_a_bidirectional_model_without_norms_is_that_of_a_decoder() -> None:
    one = built("reverse")
    graph = Graph.of(one.model)
    assert not graph.architecture.post_norm and graph.architecture.position_embedding
    assert (graph.n_edges, one.structural_with("separate").graph.n_edges) == (77, 94)


def test_evaluation_of_numbers_at_several_positions_is_their_mean() -> None:
    one = built("xproportion")
    batch, nothing = one.task.test, tp.Circuit.from_edges(one.model, [])
    rows = tp.evaluate(one.model, nothing, one.task, ablation=tp.Zero())
    assert batch.targets is not None
    wanted = batch.targets.square().mean(1)  # a model of nothing gives 0
    found = rows["circuit"].performance
    torch.testing.assert_close(found.target_error, wanted)
    torch.testing.assert_close(found.squared_error, wanted)


@pytest.fixture
def no_tracr(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] in ("tracr", "jax", "haiku"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.usefixtures("no_tracr")
def test_without_tracr_the_shipped_programs_work_and_others_name_the_extra() -> None:
    assert tracr("reverse")([[1, 2, 2]]) == [[2, 2, 1]]
    with pytest.raises(ValueError, match=r"needs Tracr and jax.*pip install 'tlprune\[tracr\]'"):
        tracr("sort")
    with pytest.raises(ValueError, match=r"tlprune\[tracr\]"):
        tracr(object(), {1, 2}, length=2)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    one = built("reverse")
    with pytest.raises(ValueError, match=r"no program 'revers'.*Did you mean reverse"):
        tracr("revers")
    with pytest.raises(ValueError, match=r"reads 1, 2, 3 but was given 4, 'x'\. Give"):
        one([[1, 4, "x"]])
    for options in ({}, {"vocabulary": {1}}, {"vocabulary": {1}, "length": 3, "longest": 2}):
        with pytest.raises(ValueError, match="what its inputs are made of, and a length"):
            tracr(object(), **options)
    with pytest.raises(ValueError, match="zero or interchange but is 'mean'"):
        one.behavioural_with("mean")
    with pytest.raises(ValueError, match=r"needs its model .*tracr-reverse"):
        tracr_task(planted("copy").model)


def test_files_hold_all_of_a_program(tmp_path: Path) -> None:
    one = built("xproportion").program
    one.save(tmp_path / "again")
    read = Compiled.read(tmp_path / "again")
    for fact in ("name", "explanation", "shape", "inputs", "outputs", "vocabulary", "length"):
        assert getattr(read, fact) == getattr(one, fact)
    assert torch.equal(read.meaning, one.meaning)
    assert read.weights.keys() == one.weights.keys()
    assert all(torch.equal(read.weights[name], one.weights[name]) for name in one.weights)
