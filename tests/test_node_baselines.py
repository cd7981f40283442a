"""Nodes by chance and by the size of their weights: every node as likely, and sums over weights that are looked up."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from encoders import ENCODERS, fresh_encoder, hf_model_of, kept_encoder
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import STYLES, model_of, random_batch, refuses_choice
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.task import Stream, Tokenisation

TASK = tp.Task("random", {"main": Stream(*(random_batch(2, seed=seed) for seed in range(3)))}, Tokenisation(True))


def magnitudes(model: Any, **options: Any) -> dict[str, float]:
    found = tp.WeightMagnitude(**options).score(model, TASK, ablation=tp.Zero())
    return {found.sites.name(place): float(value) for place, value in enumerate(found.values)}


def head_means(model: Any, layer: int, power: int) -> list[float]:
    """Of each query head, with sums over whole tensors in which shared k and v are repeated."""
    weights, shape = backend_of(model).parameters(), backend_of(model).architecture
    own = [weights[f"blocks.{layer}.attn.W_{part}"] for part in "QKVO"]
    total = [weight.abs().pow(power).sum((1, 2)).repeat_interleave(shape.n_heads // len(weight)) for weight in own]
    return (torch.stack(total).sum(0) / sum(weight[0].numel() for weight in own)).pow(1 / power).tolist()


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("style", STYLES)
def test_a_heads_score_is_the_mean_over_all_it_reads_and_writes_with(style: str, norm: str, power: int) -> None:
    model = model_of(style)
    found, shape = magnitudes(model, norm=norm), backend_of(model).architecture
    expected = [value for layer in range(shape.n_layers) for value in head_means(model, layer, power)]
    assert [value for name, value in found.items() if ".h" in name] == pytest.approx(expected, rel=1e-12)
    assert len(found) == shape.n_layers * (shape.n_heads + shape.has_mlp)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_an_mlps_score_counts_its_gate_and_no_bias(style: str) -> None:
    model = model_of(style)
    weights = backend_of(model).parameters()
    names = [f"blocks.1.mlp.W_{part}" for part in ("in", "gate", "out")]
    own = [weights[name].detach() for name in names if name in weights]
    assert len(own) == (3 if style == "llama" else 2)
    absolute = sum(float(weight.abs().sum()) for weight in own) / sum(weight.numel() for weight in own)
    squared = sum(float(weight.square().sum()) for weight in own) / sum(weight.numel() for weight in own)
    assert magnitudes(model)["m1"] == pytest.approx(absolute, rel=1e-12)
    assert magnitudes(model, norm="l2")["m1"] == pytest.approx(math.sqrt(squared), rel=1e-12)


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_have_magnitudes_too(name: str) -> None:
    model = kept_encoder(name)
    assert magnitudes(model, pattern="a1.*") == pytest.approx(
        {f"a1.h{head}": value for head, value in enumerate(head_means(model, 1, 1))}, rel=1e-12
    )


@NEEDS_HOOKED_TRANSFORMER
def test_a_bridge_of_the_same_model_has_the_same_magnitudes() -> None:
    bridge = tp.bridge(hf_model_of("bert classes"), device="cpu")
    assert magnitudes(bridge) == pytest.approx(magnitudes(fresh_encoder("bert classes")), rel=1e-12)


def test_weights_twice_as_large_score_twice_and_normalised_scores_do_not_tell_layers_apart() -> None:
    one = tp.planted("induction", seed=3).model
    before, normed = magnitudes(one), magnitudes(one, normalise="layer")
    weights = backend_of(one).parameters()
    with torch.no_grad():
        for name, value in weights.items():
            if name.startswith("blocks.1.") and ".W_" in name:
                value.mul_(2)
            elif ".b_" in name:
                value.add_(7)
    for name, value in magnitudes(one).items():
        assert value == pytest.approx(before[name] * (2 if name[1] == "1" else 1), rel=1e-6)
    assert magnitudes(one, normalise="layer") == pytest.approx(normed, rel=1e-6)
    for layer in "01":
        squares = torch.tensor([value for name, value in normed.items() if name[1] == layer]).square()
        assert float(squares.sum()) == pytest.approx(1)


def test_embeddings_have_no_magnitude_to_compare() -> None:
    with pytest.raises(ValueError, match=r"input is an embedding\. Leave it out"):
        magnitudes(model_of("gpt2"), pattern="*")


def test_choices_are_words_of_a_list() -> None:
    with refuses_choice("norm must be 'l1' or 'l2'"):
        tp.WeightMagnitude(norm="max")  # pyright: ignore[reportArgumentType]
    with refuses_choice("normalise must be 'layer' or 'none'"):
        tp.WeightMagnitude(normalise="size")  # pyright: ignore[reportArgumentType]


def test_installed_masks_are_no_weights() -> None:
    model = model_of("gpt2")
    with (
        tp.Masked(model, tp.Circuit.from_nodes(model, ["a0.h1"]), tp.Zero()).installed(),
        pytest.raises(RuntimeError, match="masks installed"),
    ):
        magnitudes(model)


def test_every_node_is_as_likely_by_chance_as_another() -> None:
    """400 draws of 3 of 10: each node's count is binomial, 120 expected; 6 standard deviations are 55."""
    planted = tp.planted("copy")
    draws = [
        frozenset(tp.RandomNodes(nodes=3, seed=seed).find(planted.model, planted.task).names) for seed in range(400)
    ]
    counts = Counter(name for draw in draws for name in draw)
    assert len(counts) == 10
    assert all(abs(count - 120) < 55 for count in counts.values())
    assert len(set(draws)) > 100  # of 120 there are


def test_a_pattern_says_what_chance_chooses_among() -> None:
    planted = tp.planted("copy")
    kept = tp.RandomNodes(nodes=5, include="a0.*").find(planted.model, planted.task)
    heads = [name for name in kept.sites.groups[0].as_dict()["names"] if name.startswith("a0.")]
    assert {*heads} < {*kept.names} and len(kept) == 5
    with pytest.raises(ValueError, match="'a9'"):
        tp.RandomNodes(nodes=2, include="a9").find(planted.model, planted.task)
    found = tp.RandomNodes(nodes=2, pattern="a1.*").find(planted.model, planted.task)
    assert {name[:2] for name in found.names} == {"a1"} and len(found.sites) == 4


# ---- gradients on models that tell three classes apart


def three_classes(model: Any) -> tp.Task:
    """Prompts without twins and foils, as of a task with labels."""
    parts = [_labelled(model, seed) for seed in range(3)]
    return tp.Task("classes", {"main": Stream(*parts)}, Tokenisation(prepend_bos=False))


def _labelled(model: Any, seed: int) -> tp.Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 31, (6, 7), generator=generator)
    answers = torch.randint(3, (6, 1), generator=generator)
    clean, places = tp.Tokens(ids), torch.zeros(6, 1, dtype=torch.long)
    return tp.Batch(torch.arange(6), clean, clean, places, answers, torch.full_like(answers, -100))


def slopes_by_hand(model: Any, batch: tp.Batch, ablation: str) -> dict[str, Tensor]:
    """``(x~ - x) . dL/dx`` of each example, from TransformerLens' hooks, ``L`` the nats of the right class."""
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> Tensor:
        kept[hook.name] = value.detach().clone().requires_grad_()
        return kept[hook.name]

    found = {}
    # Each kept value is a leaf that ends the gradient of those before it, so each point has a run of its own.
    for name in [f"blocks.{layer}.{point}" for layer in range(3) for point in ("attn.hook_z", "hook_mlp_out")]:
        with model.hooks(fwd_hooks=[(name, keep)]):
            logits = model(batch.clean.ids)
        loss = torch.nn.functional.cross_entropy(logits, batch.answers[:, 0], reduction="sum")
        (slope,) = torch.autograd.grad(loss, kept[name])
        value = kept[name].detach()
        other = value.mean((0, 1)) if ablation == "mean" else torch.zeros_like(value)
        product, layer = (other - value) * slope, name.split(".")[1]
        if name.endswith("hook_z"):
            found |= {f"a{layer}.h{head}": product[:, :, head].sum((1, 2)) for head in range(4)}
        else:
            found[f"m{layer}"] = product.sum((1, 2))
    return found


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_head_importance_of_three_classes_is_by_the_loss_of_their_labels(ablation: str) -> None:
    model = kept_encoder("bert classes")
    task = three_classes(model)
    train = task.discovery.train()
    used = tp.Mean(train.clean) if ablation == "mean" else tp.Zero()
    expected = slopes_by_hand(model, train, ablation)
    options = {"pattern": "a*|m*", "objective": tp.CrossEntropy(), "batch_size": 4}
    size = tp.HISP(normalise="none", **options).score(model, task, ablation=used)
    signed = tp.AtP(**options).score(model, task, ablation=used)
    for name, slope in expected.items():
        assert size[name] == pytest.approx(float(slope.abs().mean()), rel=1e-6, abs=1e-9)
        assert signed[name] == pytest.approx(float(slope.mean()), rel=1e-6, abs=1e-9)


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("method", [tp.HISP(), tp.AtP()])
def test_a_logit_difference_among_three_classes_says_what_to_take(method: Any) -> None:
    model = kept_encoder("bert classes")
    with pytest.raises(ValueError, match=r"as among three classes. Give objective=tp.CrossEntropy\(\)"):
        method.score(model, three_classes(model), ablation=tp.Zero())
