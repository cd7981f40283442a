"""The taught model runs its program under interchange of any edges, and its other edges hardly matter."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.models.taught import DIRECTORY, Taught, taught_circuit, taught_task
from tlprune.models.taught_program import (
    CONTEXT,
    FLAG_PLACE,
    KEY_PLACES,
    KEYS,
    NO,
    PROGRAM_EDGES,
    QUERY_PLACE,
    VALUE_PLACES,
    YES,
    draw_prompts,
    interchanged,
    program,
)

MARGIN = 8.0  # what training aimed at


@cache
def known() -> Taught:
    return tp.taught(device="cpu")


@cache
def drawn(count: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return draw_prompts(count, generator), draw_prompts(count, generator)


@torch.no_grad()
def difference(kept: torch.Tensor, prompts: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Logit of yes less that of no, with edges that are not kept resampled; ``kept`` for all or per example."""
    masked = tp.Masked(known().model, tp.Masks(tp.edges(known().model)))
    logits = masked(tp.Tokens(prompts), tp.Tokens(others), mask=kept.float())[:, -1]
    return logits[:, YES] - logits[:, NO]


def test_the_program_looks_up_and_turns_round() -> None:
    """Against a loop over tokens that shares no code with it."""
    prompts, _ = drawn()
    run = program(prompts)
    for row, prompt in enumerate(prompts.tolist()):
        pairs = list(zip(prompt[KEY_PLACES], prompt[VALUE_PLACES], strict=True))
        assert sorted(key for key, _ in pairs) == list(KEYS)
        value = dict(pairs)[prompt[QUERY_PLACE]]
        assert bool(run.answer[row]) == ((value in (12, 13, 14)) != (prompt[FLAG_PLACE] in (3, 4)))
        assert pairs[int(run.place[row])][0] == prompt[QUERY_PLACE]


def test_interchanging_everything_is_the_other_prompt_and_every_edge_matters() -> None:
    prompts, others = drawn()
    everywhere = torch.ones(len(prompts), dtype=torch.bool)
    assert torch.equal(interchanged(prompts, others, {PROGRAM_EDGES[-1]: everywhere}).answer, program(others).answer)
    from_input = {edge: everywhere for edge in PROGRAM_EDGES if edge.startswith("input")}
    assert torch.equal(interchanged(prompts, others, from_input).answer, program(others).answer)
    for edge in PROGRAM_EDGES:
        changed = interchanged(prompts, others, {edge: everywhere}).answer != program(prompts).answer
        assert 0.2 < changed.float().mean() < 0.8


def test_interchanged_variables_are_those_of_the_other_prompt() -> None:
    prompts, others = drawn()
    everywhere = torch.ones(len(prompts), dtype=torch.bool)
    mixed = prompts.clone()
    mixed[:, VALUE_PLACES] = others[:, VALUE_PLACES]
    for edge in ("input->m0", "m0->a1.h1<v>"):
        assert torch.equal(interchanged(prompts, others, {edge: everywhere}).answer, program(mixed).answer)
    mixed = prompts.clone()
    mixed[:, FLAG_PLACE] = others[:, FLAG_PLACE]
    for edge in ("input->a1.h3<v>", "a1.h3->m2"):
        assert torch.equal(interchanged(prompts, others, {edge: everywhere}).answer, program(mixed).answer)
    mixed = prompts.clone()
    mixed[:, KEY_PLACES] = others[:, KEY_PLACES]
    for edge in ("input->a0.h2<v>", "a0.h2->a1.h1<k>"):
        assert torch.equal(interchanged(prompts, others, {edge: everywhere}).answer, program(mixed).answer)


def test_the_model_runs_the_program_in_any_state_of_its_edges() -> None:
    prompts, others = drawn()
    generator = torch.Generator().manual_seed(5)
    inside = [known().circuit.graph.index(edge) for edge in PROGRAM_EDGES]
    kept = torch.rand(len(prompts), known().circuit.graph.n_edges, generator=generator) >= torch.rand(
        len(prompts), 1, generator=generator
    )
    kept[:, inside] = torch.rand(len(prompts), len(inside), generator=generator) >= 0.2
    resampled = {edge: ~kept[:, place] for edge, place in zip(PROGRAM_EDGES, inside, strict=True)}
    answers = interchanged(prompts, others, resampled).answer
    found = difference(kept, prompts, others)
    assert (answers != program(prompts).answer).float().mean() > 0.2
    assert torch.equal(found > 0, answers)
    assert (found.abs() - MARGIN).abs().mean() < 0.05 * MARGIN


def test_every_true_edge_matters_and_no_other_one_does() -> None:
    batch, circuit = known().task.test.rows(torch.arange(32)), known().circuit
    every = torch.ones(circuit.graph.n_edges, dtype=torch.bool)
    whole = difference(every, batch.clean.ids, batch.corrupt.ids)
    single = effects_of_each_edge(batch, whole)
    inside, outside = single[circuit.kept], single[~circuit.kept]
    assert inside.min() > 4
    assert outside.max() < 0.02 * inside.min()
    alone = difference(circuit.kept, batch.clean.ids, batch.corrupt.ids)
    assert (alone - whole).abs().mean() < 0.05 * whole.abs().mean()
    assert torch.equal(alone > 0, batch.answers[:, 0] == YES)
    assert (
        single.argsort(descending=True)[: len(circuit)].sort().values.tolist() == circuit.kept.nonzero()[:, 0].tolist()
    )


def effects_of_each_edge(batch: tp.Batch, whole: torch.Tensor) -> torch.Tensor:
    """Mean change of the logit difference when one edge alone is resampled, many edges per forward pass."""
    found = []
    for masks in (~torch.eye(known().circuit.graph.n_edges).bool()).split(24):
        prompts, others = (ids.repeat(len(masks), 1) for ids in (batch.clean.ids, batch.corrupt.ids))
        changed = difference(masks.repeat_interleave(len(whole), 0), prompts, others).view(len(masks), -1)
        found.append((changed - whole).abs().mean(1))
    return torch.cat(found)


def test_effects_are_those_that_provenance_states() -> None:
    batch, circuit = known().task.test, known().circuit
    effects = circuit.provenance["effects"]
    every = torch.ones(circuit.graph.n_edges, dtype=torch.bool)
    whole = difference(every, batch.clean.ids, batch.corrupt.ids)
    alone = difference(circuit.kept, batch.clean.ids, batch.corrupt.ids)
    assert float(whole.abs().mean()) == pytest.approx(effects["mean_difference"], rel=1e-3)
    assert float((alone - whole).abs().mean()) == pytest.approx(effects["all_outside"], rel=1e-2)
    assert effects["largest_outside"] < 0.02 * effects["smallest_inside"]


@torch.no_grad()
def test_true_parts_do_not_stand_out_by_how_much_they_vary() -> None:
    """Root mean square, over prompts and positions, of how what a writer sends differs from its mean over prompts."""
    backend, (prompts, _) = backend_of(known().model), drawn()
    seen = backend.observe(tp.Tokens(prompts))
    sent = {f"m{layer}": output for layer, output in enumerate(seen.mlps)}
    for layer, z in enumerate(seen.heads):
        weights = backend.output_weight(layer)
        sent |= {f"a{layer}.h{head}": z[:, :, head] @ weights[head] for head in range(4)}
    sizes = {writer: float((x - x.mean(0)).square().sum(-1).mean().sqrt()) for writer, x in sent.items()}
    true = [sizes.pop(writer) for writer in known().circuit.nodes if writer != "input"]
    assert len(true) == 5 and len(sizes) == 10
    assert min(sizes.values()) > 0.3 * max(true)


def test_the_truth_and_the_task_are_read_from_the_model() -> None:
    model = tp.load("taught", device="cpu")
    assert tp.truth("taught", model) == known().circuit == taught_circuit(model)
    assert taught_task(model).fingerprint == known().task.fingerprint != taught_task(model, seed=1).fingerprint
    with pytest.raises(ValueError, match=r"of the model of tp.taught\(\) but this one is 'testbed'. Load it"):
        tp.truth("taught", tp.load("testbed"))
    with pytest.raises(ValueError, match="this one is 'Linear'"):
        taught_task(torch.nn.Linear(1, 1))


def test_splits_have_twins_of_the_other_answer_and_share_no_prompt() -> None:
    task = known().task
    parts = (task.discovery.train(), task.discovery.validation(), task.test)
    assert [len(batch) for batch in parts] == [200, 100, 200]
    prompts = [tuple(ids) for batch in parts for ids in batch.clean.ids.tolist()]
    assert len(set(prompts)) == len(prompts)
    for batch in parts:
        assert torch.equal(batch.answers[:, 0] == YES, program(batch.clean.ids).answer)
        assert torch.equal(batch.foils[:, 0] == YES, program(batch.corrupt.ids).answer)
        assert (batch.answers != batch.foils).all() and (batch.positions == CONTEXT - 1).all()


def test_the_model_is_small() -> None:
    assert sum(file.stat().st_size for file in DIRECTORY.iterdir()) < 300_000
    assert 0.3 < float((program(drawn()[0]).answer).float().mean()) < 0.7
