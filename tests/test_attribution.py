"""Attribution by gradients: what scores are of a loss, where they are exact, and what by their nature they miss."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from styles import fresh, random_batch
from torch import Tensor

import tlprune as tp
from tlprune.models.planted import Planted
from tlprune.task import Stream, Tokenisation


def task_of(*streams: str, examples: int = 6) -> tp.Task:
    parts = {
        name: Stream(*(random_batch(examples, seed=10 * place + seed) for seed in (1, 2, 3)))
        for place, name in enumerate(streams or ("main",))
    }
    return tp.Task("random", parts, Tokenisation(prepend_bos=True))


def loss_of(model: Any, batch: tp.Batch, mask: Tensor, ablation: Any = None, objective: Any = None) -> Tensor:
    """The loss of a masked run."""
    masked = tp.Masked(model, tp.Masks(tp.edges(model)), ablation)
    logits = masked(batch, mask=mask)
    return (objective or tp.LogitDifference())(logits, batch, logits.detach().log_softmax(-1))


def masked_scores(model: Any, batch: tp.Batch, **options: Any) -> Tensor:
    mask = torch.ones(len(tp.edges(model)), dtype=torch.float64, requires_grad=True)
    return -torch.autograd.grad(loss_of(model, batch, mask, **options), mask)[0]


def apart(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape and bool(expected.abs().max() > 0)
    return float((found - expected).abs().max() / expected.abs().max())


@cache
def linear_model() -> Any:
    """No norm and no MLP: every edge into the logits, and into the last values, is linear in the loss."""
    return fresh("attention_only", normalization_type=None)


# ---- EAP


@pytest.mark.parametrize("objective", [tp.LogitDifference(), tp.CrossEntropy(), tp.Uniform()])
@pytest.mark.parametrize("ablation", [tp.Resample(), tp.Mean(random_batch(5, seed=9).clean)])
def test_eap_is_minus_the_masks_gradient_where_all_is_kept(ablation: Any, objective: Any) -> None:
    model, task = fresh("llama"), task_of()
    scores = tp.EAP(objective=objective).score(model, task, ablation=ablation)
    expected = masked_scores(model, task.discovery.train(), ablation=ablation, objective=objective)
    assert apart(scores.values, expected) <= 1e-9


@pytest.mark.parametrize("size", [1, 4, 6, 100])
def test_eap_is_a_mean_over_examples_however_they_are_batched(size: int) -> None:
    model, task = fresh("gpt2"), task_of()
    one = [tp.EAP().score(model, _only(task, row)).values for row in range(6)]
    assert apart(tp.EAP(batch_size=size).score(model, task).values, torch.stack(one).mean(0)) <= 1e-9


def _only(task: tp.Task, row: int) -> tp.Task:
    stream = task.streams["main"]
    train = stream.train.rows(torch.tensor([row]))
    return dataclasses.replace(task, streams={"main": Stream(train, stream.validation, stream.test)})


def test_a_sum_of_objectives_is_the_sum_of_their_scores_each_on_its_own_stream() -> None:
    model, task = fresh("gpt2"), task_of("main", "other")
    parts = [(2.0, tp.CrossEntropy()), (-1.0, tp.LogitDifference(on="other")), (0.5, tp.Uniform())]
    whole = tp.EAP(objective=2 * parts[0][1] + -1 * parts[1][1] + 0.5 * parts[2][1]).score(model, task).values
    each = [weight * tp.EAP(objective=objective).score(model, task).values for weight, objective in parts]
    assert apart(whole, torch.stack(each).sum(0)) <= 1e-9
    assert apart(each[1], each[0]) > 1e-3


@pytest.mark.parametrize("ablation", [tp.Resample(), tp.Zero()])
def test_eap_is_exact_patching_where_the_loss_is_linear_in_an_edge(ablation: Any) -> None:
    """The rise of the loss when the edge alone is ablated."""
    model, task = linear_model(), task_of()
    scores = tp.EAP().score(model, task, ablation=ablation)
    batch, ones = task.discovery.train(), torch.ones(len(scores.sites), dtype=torch.float64)
    exact, other = [], []
    full = loss_of(model, batch, ones, ablation)
    for index, name in enumerate(scores.graph.edges()):
        without = ones.clone().index_fill_(0, torch.tensor(index), 0.0)
        linear = name.endswith("->logits") or ("a1." in name and name.endswith("<v>"))
        pair = (float(scores.values[index]), float(loss_of(model, batch, without, ablation) - full))
        (exact if linear else other).append(pair)
    assert len(exact) == 9 + 4 * 5 and apart(*torch.tensor(exact, dtype=torch.float64).T) <= 1e-9
    assert apart(*torch.tensor(other, dtype=torch.float64).T) > 1e-3


def test_the_whole_method_runs_two_forwards_and_one_backward_per_batch() -> None:
    """Counted where heads write; the first call on a model runs it once more, to compare."""
    model, task, forward, backward = fresh("gpt2"), task_of(), [], []
    tp.EAP().score(model, task)

    def watch(value: Tensor, hook: Any) -> None:
        forward.append(len(value))
        if value.requires_grad:
            value.register_hook(lambda gradient: backward.append(len(gradient)))

    model.hook_dict["blocks.1.attn.hook_z"].add_hook(watch)
    tp.EAP(batch_size=3).score(model, task)
    assert (forward, backward) == ([3] * 4, [3] * 2)


# ---- what it finds and misses of what was planted


@cache
def built(name: str) -> Planted:
    return tp.planted(name)


def test_eap_misses_all_inputs_of_an_or_gate() -> None:
    """Either bit masks the loss of the other, so the gradient of the clean run is 0, and of both together it is not."""
    gate = built("or")
    scores = tp.EAP().score(gate.model, gate.task)
    true = [edge for edge in gate.circuit.edges if not edge.endswith("->logits")]
    assert len(true) == 4 and all(scores[edge] == 0 for edge in true)
    assert [edge for edge in gate.circuit.edges if scores[edge] > 0] == [
        edge for edge in gate.circuit.edges if edge.endswith("->logits")
    ]


def test_eap_finds_an_and_gate_and_takes_each_bit_for_twice_what_it_is() -> None:
    """``relu(2(x + y) - 3)`` falls from 1 to 0 where the tangent at both bits on falls by 2."""
    gate = built("and")
    scores, batch = tp.EAP().score(gate.model, gate.task), gate.task.discovery.train()
    assert scores.top(5) == gate.circuit
    ones = torch.ones(len(scores.sites))
    full = loss_of(gate.model, batch, ones)
    for index in gate.circuit.kept.nonzero().flatten():
        rise = float(loss_of(gate.model, batch, ones.index_fill(0, index, 0.0)) - full)
        into_gate = not scores.graph.name(int(index)).endswith("->logits")
        assert float(scores.values[index]) == pytest.approx((1 + into_gate) * rise, rel=1e-3)


def test_eap_finds_both_sides_of_an_adder() -> None:
    gate = built("adder")
    assert tp.EAP(edges=4).find(gate.model, gate.task) == gate.circuit


def test_what_hurts_has_negative_scores() -> None:
    """With answers and foils exchanged every score is its negative."""
    model, task = fresh("gpt2"), task_of()
    stream = task.streams["main"]
    train = dataclasses.replace(stream.train, answers=stream.train.foils, foils=stream.train.answers)
    other = dataclasses.replace(task, streams={"main": Stream(train, stream.validation, stream.test)})
    assert torch.equal(tp.EAP().score(model, task).values, -tp.EAP().score(model, other).values)


# ---- refusals


def test_objectives_that_compare_with_the_full_model_are_refused_in_sums_too() -> None:
    with pytest.raises(ValueError, match=r"KL compares with the full model and is 0 there.*or EAPIG"):
        tp.EAP(objective=tp.CrossEntropy() + 2 * tp.KL())
    with pytest.raises(ValueError, match="SquaredError compares"):
        tp.EAP(objective=tp.SquaredError())


def test_kl_has_no_gradient_where_nothing_is_ablated() -> None:
    """Which is why it is refused."""
    model, batch = fresh("gpt2"), random_batch(4, seed=1)
    found = masked_scores(model, batch, objective=tp.KL())
    assert float(found.abs().max()) < 1e-12 * float(masked_scores(model, batch).abs().max())


def test_a_logit_difference_without_foils_is_refused() -> None:
    task = task_of()
    stream = task.streams["main"]
    train = dataclasses.replace(stream.train, foils=torch.full_like(stream.train.foils, -100))
    other = dataclasses.replace(task, streams={"main": Stream(train, stream.validation, stream.test)})
    with pytest.raises(ValueError, match="needs a foil for each answer"):
        tp.EAP().score(fresh("gpt2"), other)


def test_a_loss_that_is_no_number_is_refused_and_says_where() -> None:
    model, task = fresh("gpt2"), task_of()
    tp.EAP().score(model, task)
    with torch.no_grad():
        model.unembed.W_U[:, 3] = float("nan")
    with pytest.raises(ValueError, match=r"but cross_entropy is nan on examples \[0, 1, 2, 3\]"):
        tp.EAP(objective=tp.CrossEntropy(), batch_size=4).score(model, task)


def test_scores_that_are_no_numbers_are_refused() -> None:
    sites = tp.edges(linear_model())
    values = torch.zeros(len(sites)).index_fill(0, torch.tensor([3, 5]), float("nan"))
    with pytest.raises(ValueError, match=rf"but 2 of {len(sites)} are NaN, {sites.name(3)} the first. Look for"):
        tp.Scores(sites, values)


# ---- samples


def test_every_batch_is_a_sample_and_their_mean_by_examples_is_the_score() -> None:
    model, task = fresh("llama", torch.float64), task_of(examples=6)
    found = tp.EAP(batch_size=4).score(model, task)
    assert found.samples is not None and found.samples.shape == (2, len(found.sites))
    assert torch.allclose((4 * found.samples[0] + 2 * found.samples[1]) / 6, found.values, rtol=1e-12)
    for batch, sample in zip(task.discovery.train().split(4), found.samples, strict=True):
        assert apart(sample, masked_scores(model, batch)) < 1e-9


def test_edges_whose_sign_changes_between_examples_are_not_consistent() -> None:
    model, task = fresh("gpt2", torch.float64), task_of(examples=6)
    method = tp.EAP(selection=tp.Consistent(share=1), edges=100, batch_size=1)
    samples = method.score(model, task).samples
    assert samples is not None
    found = method.selection.select(method.score(model, task), 100)
    assert 0 < len(found) <= 100
    assert bool((samples[:, found.kept].sign().abs().sum(0) == len(samples)).all())
    one_sign = (samples > 0).all(0) | (samples < 0).all(0)
    assert bool((found.kept & ~one_sign).sum() < (tp.EAP(edges=100).find(model, task).kept & ~one_sign).sum())


def test_streams_that_do_not_mix_leave_no_samples() -> None:
    objective = tp.LogitDifference() + tp.CrossEntropy(on="other")
    found = tp.EAP(objective=objective).score(fresh("gpt2", torch.float64), task_of("main", "other"))
    assert found.samples is None
