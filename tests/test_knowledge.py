"""Knowledge-critical subnetworks: what is lowered, on which streams, where facts are read, and what is kept on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from styles import SHAPE, fresh, random_batch

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.methods.knowledge import chosen_layers
from tlprune.task import Batch, Discovery, Stream, Tokenisation

LENGTH = 6


def facts(examples: int, *, seed: int) -> Batch:
    """Random prompts that end with their tail, read in front of it."""
    batch = random_batch(examples, LENGTH, seed=seed)
    return replace(batch, positions=batch.positions - 1, answers=batch.clean.ids[:, -1:])


def text(examples: int, *, seed: int, gaps: bool = False) -> Batch:
    """Random blocks, read everywhere; with ``gaps`` half of the first block's answers are left out."""
    batch = random_batch(examples, LENGTH, seed=seed)
    answers = batch.clean.ids[:, 1:].clone()
    answers[0, : 2 if gaps else 0] = -100
    return replace(
        batch,
        positions=torch.arange(LENGTH - 1).repeat(examples, 1),
        answers=answers,
        foils=torch.full_like(answers, -100),
    )


def world(*, gaps: bool = False) -> tp.Task:
    streams = {
        "main": Stream(*(facts(5, seed=seed) for seed in (1, 2, 3))),
        "control": Stream(*(facts(7, seed=seed) for seed in (4, 5, 6))),
        "text": Stream(*(text(3, seed=seed, gaps=gaps) for seed in (7, 8, 9))),
    }
    return tp.Task("world", streams, Tokenisation(prepend_bos=False))


# ---- what is lowered


def test_the_price_rises_in_the_second_half_and_the_rate_in_the_first_tenth() -> None:
    method = tp.KnowledgeSubnetwork(price=2.0, last_price=3.0, steps=40, rate=0.2)
    plan = method.plan(tp.Masks(method.sites(fresh("gpt2"))))
    assert [plan["budget"].price(step) for step in (0, 20, 25, 30, 40)] == [2.0, 2.0, 2.25, 2.5, 3.0]
    factors = [plan["optimiser"].factor(step, 40) for step in (0, 1, 2, 4, 39)]
    assert factors == [0.0, 0.25, 0.5, 1.0, 1.0]
    assert (tp.KnowledgeSubnetwork().plan(tp.Masks(method.sites(fresh("gpt2")))))["steps"] == 40_000


def test_a_weight_of_zero_leaves_a_term_and_its_stream_out() -> None:
    method = tp.KnowledgeSubnetwork(text=0.0, expression=0.5)
    assert method.objective.labels == ("uniform_complement", "kl_control_complement", "cross_entropy")
    assert [weight for weight, _ in method.objective.terms] == [1.5, 1.0, 0.5]
    task = world()
    assert {*method.examples(task.discovery).streams} == {"main", "control"}
    without = replace(task, streams={name: stream for name, stream in task.streams.items() if name != "text"})
    method = replace(method, steps=2)
    assert method.find(fresh("gpt2"), without) == method.find(fresh("gpt2"), task)


def test_every_term_is_of_its_stream_slot_and_run() -> None:
    """Recorded values of the first step against the plain model whose weights are multiplied by the draws."""
    model, task = fresh("gpt2"), world(gaps=True)
    method = tp.KnowledgeSubnetwork(steps=1, expression=0.5, layers="0-2")
    masks = method.masks(model, task.discovery, method.sites(model), tp.Zero(), progress=False)
    masked = tp.Masked(model, masks, tp.Zero())
    (record,) = tp.fit(masked, method.examples(task.discovery), **method.plan(masks))
    generator = torch.Generator().manual_seed(84)
    batches = {
        name: task.streams[name].train.rows(torch.randperm(count, generator=generator))
        for name, count in {"main": 5, "control": 7, "text": 3}.items()
    }
    fresh_masks = method.masks(model, task.discovery, masks.sites, tp.Zero(), progress=False)
    expected = []
    for name, (_, objective) in zip(("main", "control", "text", "main"), method.objective.terms, strict=True):
        draw = fresh_masks.sample(generator).detach()
        expected.append(by_hand(model, masks.sites, objective, batches[name], draw))
    assert [term.sampled for term in record.terms] == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def by_hand(model: Any, sites: tp.Sites, objective: Any, batch: Batch, draw: torch.Tensor) -> float:
    mask = draw if objective.run == "kept" else 1 - draw
    full = model(batch.clean.ids).log_softmax(-1)
    before, weights = (
        {name: value.clone() for name, value in model.state_dict().items()},
        backend_of(model).parameters(),
    )
    start = 0
    for matrix in sites.group("weights").matrices:
        weight = weights[matrix.name].data
        weight *= mask[start : start + weight.numel()].view(weight.shape)
        start += weight.numel()
    masked = model(batch.clean.ids).log_softmax(-1)
    model.load_state_dict(before)
    values = []
    for row in range(len(batch)):
        for position, answer in zip(batch.positions[row].tolist(), batch.answers[row].tolist(), strict=True):
            p, q = full[row, position], masked[row, position]
            found = {
                "uniform": -q.mean() - torch.tensor(float(len(q))).log(),
                "kl": (p.exp() * (p - q)).sum(),
                "cross_entropy": -q[max(answer, 0)],
            }
            values += [float(found[objective.name])] if answer >= 0 else []
    return sum(values) / len(values)


def test_places_that_fill_up_an_example_do_not_count() -> None:
    batch, whole = text(3, seed=1, gaps=True), text(3, seed=1)
    logits, reference = torch.randn(2, 3, LENGTH - 1, 11).log_softmax(-1)
    for objective in (tp.KL(), tp.Uniform()):
        each = [
            float(objective(logits[:1, i : i + 1], whole.rows(torch.tensor([0])), reference[:1, i : i + 1]))
            for i in range(5)
        ]
        others = float(objective(logits[1:], whole.rows(torch.tensor([1, 2])), reference[1:]))
        expected = (sum(each[2:]) + 10 * others) / 13
        assert float(objective(logits, batch, reference)) == pytest.approx(expected, rel=1e-5)
        nothing = replace(batch, answers=torch.full_like(batch.answers, -100))
        assert float(objective(logits, nothing, reference)) == float(objective(logits, whole, reference))


# ---- streams and slots


def test_the_released_slot_is_one_position_later_on_facts_alone() -> None:
    discovery = world().discovery
    read = tp.KnowledgeSubnetwork(slot="released").examples(discovery)
    for name, later in (("main", 1), ("control", 1), ("text", 0)):
        for split in (0, 1):
            before, after = discovery.streams[name][split], read.streams[name][split]
            assert torch.equal(after.positions, before.positions + later)
            assert torch.equal(after.answers, before.answers) and after.clean is before.clean
    assert tp.KnowledgeSubnetwork().examples(discovery).streams == discovery.streams


def test_prompts_without_their_tail_have_no_released_slot() -> None:
    task = world()
    ends = replace(task.streams["main"].train, positions=torch.full((5, 1), LENGTH - 1))
    discovery = replace(task.discovery, streams={**task.discovery.streams, "main": (ends, facts(5, seed=2))})
    with pytest.raises(ValueError, match="some prompts end in front of it"):
        tp.KnowledgeSubnetwork(slot="released").examples(discovery)


@pytest.mark.parametrize("stream", ["control", "text"])
def test_a_stream_that_is_missing_or_empty_is_refused_before_the_model_runs(stream: str) -> None:
    discovery, model = world().discovery, fresh("gpt2")
    model.hook_dict["hook_embed"].add_hook(lambda value, hook: 1 // 0)
    missing = {name: splits for name, splits in discovery.streams.items() if name != stream}
    empty = discovery.streams[stream][0].rows(torch.arange(0))
    for streams, message in (
        (missing, f"but of '{stream}' task 'world' has 'main'"),
        ({**missing, stream: (empty, discovery.validation(stream))}, f"but of '{stream}' task 'world' has it empty"),
        ({**missing, stream: (discovery.train(stream), empty)}, f"but of '{stream}' task 'world' has it empty"),
    ):
        with pytest.raises(ValueError, match=message):
            tp.KnowledgeSubnetwork(steps=1).find(model, Discovery("world", streams, {}))


# ---- sites


@pytest.mark.parametrize(
    ("layers", "total", "expected"),
    [("upper half", 4, [2, 3]), ("upper half", 3, [1, 2]), ("1", 3, [1]), ("0,2-3, 2", 4, [0, 2, 3])],
)
def test_layers_are_told_by_numbers(layers: str, total: int, expected: list[int]) -> None:
    assert chosen_layers(layers, total) == expected


def test_sites_are_of_the_chosen_layers_matrices_and_unit() -> None:
    model = fresh("llama", n_layers=12)
    sites = tp.KnowledgeSubnetwork(layers="1", matrices="attn.W_[KV]|mlp.W_gate", unit="row").sites(model)
    matrices = sites.group("weights").matrices
    assert {one.name for one in matrices} == {"blocks.1.attn.W_K", "blocks.1.attn.W_V", "blocks.1.mlp.W_gate"}
    assert len(sites) == 3 * SHAPE["d_model"]  # an input neuron has one score for all outputs, whatever their head
    every = tp.KnowledgeSubnetwork().sites(model).group("weights").matrices
    assert {one.name.split(".")[1] for one in every} == {str(layer) for layer in range(6, 12)}
    assert {one.name.split(".", 2)[2] for one in every} == {
        *(f"attn.W_{part}" for part in "QKVO"), *(f"mlp.W_{part}" for part in ("in", "out", "gate"))
    }  # fmt: skip
    with pytest.raises(ValueError, match="must lie between 0 and 11 in this model but are '6-12'"):
        tp.KnowledgeSubnetwork(layers="6-12").sites(model)
    with pytest.raises(ValueError, match=r"'blocks.6.mlp.W_up.*matches none of this model's weights"):
        tp.KnowledgeSubnetwork(matrices="mlp.W_up").sites(model)


# ---- checkpoints


def test_a_stopped_run_goes_on_to_the_same_subnetwork_from_masks_alone(tmp_path: Path) -> None:
    model, task, file = fresh("gpt2", torch.float32), world(), tmp_path / "run.safetensors"
    method = tp.KnowledgeSubnetwork(steps=8)
    whole, sites = method.find(model, task), len(method.sites(model))
    masks = method.masks(model, task.discovery, method.sites(model), tp.Zero(), progress=False)
    masked, examples = tp.Masked(model, masks, tp.Zero()), method.examples(task.discovery)
    records = tp.steps(masked, examples, **method.plan(masks), checkpoint=file, checkpoint_every=4)
    assert [next(records).step for _ in range(5)] == [1, 2, 3, 4, 5]  # the fifth step is not in the file
    with safe_open(file, framework="pt") as stored:
        sizes = {name: stored.get_tensor(name).numel() for name in stored.keys()}  # noqa: SIM118
    assert {name for name, size in sizes.items() if size >= 256 and name != "generator"} == {
        "log_alpha", "exp_avg.log_alpha", "exp_avg_sq.log_alpha"
    }  # fmt: skip
    assert sizes["log_alpha"] == sites
    assert method.find(model, task, checkpoint=file) == whole
