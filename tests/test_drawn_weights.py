"""Masked weights straight from a draw: the same numbers as from a flat mask, in two copies of the masked matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bridges import bridged
from live_bytes import LiveBytes
from styles import error, fresh, random_batch
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.learning.optimiser import Optimiser
from tlprune.learning.training import Plan, Training
from tlprune.masking.drawn_weights import DrawnWeights, can_draw
from tlprune.task import Discovery

BATCH = random_batch(4, seed=1)
GATES = {"straight-through": tp.StraightThrough(), "hard concrete": tp.HardConcrete(initial=0.3)}
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: fresh("gpt2"),
    "llama": lambda: fresh("llama"),
    "bridged gpt2": lambda: bridged("gpt2"),
    "bridged gemma2": lambda: bridged("gemma2"),
}


def masks_of(model: Any, gate: Any, unit: Any = "weight") -> tp.Masks:
    sites = tp.weights(model, "blocks.[12].*.W_*", unit=unit)
    start = torch.randn(len(sites), generator=torch.Generator().manual_seed(0))
    return tp.Masks(sites, gate, start=start).double()


@pytest.mark.parametrize("run", ["kept", "complement"])
@pytest.mark.parametrize("unit", ["weight", "row", "column"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", MODELS)
def test_a_draw_gives_the_logits_and_the_gradient_of_the_flat_sample(name: str, gate: str, unit: str, run: Any) -> None:
    model = MODELS[name]()
    masks = masks_of(model, GATES[gate], unit)
    masked, seeds = tp.Masked(model, masks, tp.Zero()), [torch.Generator().manual_seed(3) for _ in range(2)]
    sample = masks.sample(seeds[0])
    drawn = DrawnWeights(masks, masked.backend.parameters(), run=run, generator=seeds[1])
    found = []
    for mask in (sample if run == "kept" else 1 - sample, drawn):
        masks.zero_grad()
        logits = masked(BATCH, mask=mask)
        logits.square().sum().backward()
        assert masks.log_alpha.grad is not None and masks.log_alpha.grad.abs().max() > 1e-3
        found.append((logits.detach(), masks.log_alpha.grad))
    assert error(found[1][0], found[0][0]) <= 1e-12
    assert error(found[1][1], found[0][1]) <= 1e-10
    assert torch.equal(*(seed.get_state() for seed in seeds))


@pytest.mark.parametrize("run", ["kept", "complement"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_through_both_runs_are_finite_differences(name: str, run: Any) -> None:
    """Of the hard concrete gate, whose draw is smooth in ``log_alpha`` where the clip is not active."""
    model = MODELS[name]()
    masks = masks_of(model, tp.HardConcrete(initial=0.0, low=-0.001, high=1.001))
    masked = tp.Masked(model, masks, tp.Zero())

    def value() -> Tensor:
        weights, seed = masked.backend.parameters(), torch.Generator().manual_seed(3)
        logits = masked(BATCH, mask=DrawnWeights(masks, weights, run=run, generator=seed))
        return tp.CrossEntropy()(logits, BATCH, logits)

    value().backward()
    assert masks.log_alpha.grad is not None
    direction = torch.randn(len(masks.sites), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    slope = float((masks.log_alpha.grad * direction).sum())
    step, allowed = (1e-3, 2e-2) if name == "bridged gemma2" else (1e-6, 1e-4)  # its norms are in float32
    with torch.no_grad():
        ends = [(masks.log_alpha.add_(move * direction), float(value()))[1] for move in (step, -2 * step)]
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=allowed)
    assert abs(slope) > 1e-3


def test_a_straight_through_gradient_is_that_of_the_soft_draw_at_the_hard_weights() -> None:
    """The stated rule: dL/dW at ``W m``, times W, times ``r (1 - r)``."""
    model = fresh("gpt2")
    masks, weights = masks_of(model, tp.StraightThrough()), backend_of(model).parameters()
    noise = torch.rand(len(masks.sites), dtype=torch.float64, generator=torch.Generator().manual_seed(3)).logit()
    soft = torch.sigmoid(masks.log_alpha.detach() + noise)
    kept = masks.sites.group("weights").split((soft > 0.5).double())
    hard = {name: weights[name].detach() * part for name, part in kept.items()}
    leaves = {name: value.requires_grad_() for name, value in hard.items()}
    torch.func.functional_call(model, leaves, (BATCH.clean.ids,))[:, -1].square().sum().backward()
    drawn = DrawnWeights(masks, weights, run="kept", generator=torch.Generator().manual_seed(3))
    tp.Masked(model, masks, tp.Zero())(BATCH, mask=drawn).square().sum().backward()
    parts = [leaf.grad * weights[name].detach() for name, leaf in leaves.items()]
    expected = torch.cat([part.flatten() for part in parts]) * soft * (1 - soft)
    assert masks.log_alpha.grad is not None and error(masks.log_alpha.grad, expected) <= 1e-8


def test_a_second_backward_through_one_draw_is_an_error() -> None:
    model = fresh("gpt2")
    masks = masks_of(model, tp.StraightThrough())
    drawn = DrawnWeights(masks, backend_of(model).parameters(), run="kept")
    value = tp.Masked(model, masks, tp.Zero())(BATCH, mask=drawn).sum()
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Draw anew for a second backward"):
        value.backward()


def test_only_masks_of_weights_with_one_noise_per_site_are_drawn() -> None:
    model = fresh("gpt2")
    assert can_draw(tp.Masks(tp.weights(model), tp.StraightThrough()))
    assert not can_draw(tp.Masks(tp.weights(model), tp.UniformGradient()))
    assert not can_draw(tp.Masks(tp.weights(model) + tp.heads(model), tp.StraightThrough()))


# ---- memory


@pytest.mark.parametrize("gate", GATES)
def test_a_step_takes_two_copies_of_the_masked_matrices_beside_the_gradient(gate: str) -> None:
    """Two prompts of two tokens, so that activations are little; one matrix is a sixteenth of all."""
    model = fresh("lnpre", torch.float32, n_layers=8, d_model=256, d_mlp=512, n_heads=1, d_head=4)
    masks = tp.Masks(tp.weights(model, "blocks.*.mlp.W_*"), GATES[gate])
    objective = tp.Uniform(run="complement") + tp.KL(on="other", run="complement") + tp.CrossEntropy()
    batches = {name: (random_batch(2, 2, seed=4), random_batch(2, 2, seed=5)) for name in ("main", "other")}
    plan = Plan(
        objective=objective, budget=tp.Penalty(2.0), optimiser=Optimiser(), steps=9, batch_size=4, validate_every=None,
        keep=None, patience=None, seed=0,
    )  # fmt: skip
    training = Training(tp.Masked(model, masks, tp.Zero()), masks, Discovery("random", batches, {}), plan)
    training.step()  # makes the optimiser's moments and fills the caches
    training.optimiser.zero_grad()
    moments = [value for state in training.optimiser.state.values() for value in state.values()]
    with LiveBytes(*model.parameters(), masks.log_alpha, *moments) as live:
        training.step()
    # The gradient, the draw and the masked weights; beside them four matrices' room for temporaries and activations.
    assert 2.9 <= live.most / (4 * len(masks.sites)) <= 3 + 4.5 / 16


# ---- where each mask value goes


@pytest.mark.parametrize("unit", ["weight", "row", "column"])
@pytest.mark.parametrize("make", [lambda: fresh("llama"), lambda: bridged("llama")], ids=["own", "bridged"])
def test_a_mask_value_is_of_the_weights_that_its_name_tells(make: Any, unit: Any) -> None:
    """On grouped-query attention, whose k and v have fewer heads than q: by tensors as split, and name by name."""
    model = make()
    sites = tp.weights(model, "blocks.[01].attn.W_*|blocks.1.mlp.W_*", unit=unit)
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) < 0.3
    split = sites.group("weights").split(kept)
    shapes = {name: tuple(value.shape) for name, value in backend_of(model).parameters().items()}
    assert shapes["blocks.0.attn.W_K"][0] == 2 and shapes["blocks.0.attn.W_Q"][0] == 4
    counted = {name: torch.zeros(shapes[name], dtype=torch.bool) for name in split}
    for index in kept.nonzero().flatten().tolist():
        matrix, place = sites.name(index).removesuffix("]").split("[")
        axes = tuple(slice(None) if part == ":" else int(part) for part in place.split(","))
        assert not counted[matrix][axes].any()  # no weight belongs to two sites
        counted[matrix][axes] = True
    masks = tp.Masks(sites, start=torch.where(kept, 60.0, -60.0))
    drawn = DrawnWeights(masks, {name: torch.ones(shape) for name, shape in shapes.items()}, run="kept").taken()
    for name, part in split.items():
        assert torch.equal(part.expand(shapes[name]), counted[name]), name
        assert torch.equal(drawn[name](torch.empty(0)).detach(), counted[name].float()), name
