"""Attribution patching of nodes and HISP are dot products of differences and gradients, and see what gradients see."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import NORMED_HEADS, STYLES, error, fresh, model_of, random_batch, refuses_choice
from test_encoder_methods import classifier, task_of
from test_node_theorems import point_of
from torch import Tensor

import tlprune as tp
from tlprune.learning.objectives import logit_difference
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.models.planted import Planted
from tlprune.models.transformer_lens import has_hooked_transformer
from tlprune.task import Stream, Tokenisation

TRAIN = random_batch(5, seed=1)
TASK = tp.Task("random", {"main": Stream(TRAIN, random_batch(2), random_batch(2))}, Tokenisation(prepend_bos=True))
ABLATIONS = {"resample": tp.Resample(), "zero": tp.Zero(), "mean": tp.Mean(TRAIN.corrupt)}
each_ablation = pytest.mark.parametrize("ablation", ABLATIONS)
each_style = pytest.mark.parametrize("style", STYLES)


@cache
def built(name: str) -> Planted:
    return tp.planted(name)


def names_of(scores: tp.Scores) -> list[str]:
    return [scores.sites.name(index) for index in range(len(scores.sites))]


def replacements(model: Any, ablation: str) -> dict[str, Tensor]:
    """What activations become, by hook, from the model's own cache."""
    _, seen = model.run_with_cache(TRAIN.corrupt.ids)
    if ablation == "zero":
        return {name: torch.zeros_like(value) for name, value in seen.items()}
    return {name: value.mean((0, 1), keepdim=True) if ablation == "mean" else value for name, value in seen.items()}


def by_hooks(model: Any, names: list[str], ablation: str, *, part: float = 1.0, dropped: int | None = None) -> Tensor:
    """``(x~ - x) . dL/dx`` of each example and node by TransformerLens' hooks; ``L`` is the negative logit difference.

    ``part``: of the way of the embeddings from ``x~`` to ``x``. ``dropped``: a layer behind which gradients end.
    """
    others, (_, clean) = replacements(model, ablation), model.run_with_cache(TRAIN.clean.ids)
    probes: dict[str, Tensor] = {}

    def add_probe(value: Tensor, hook: Any) -> Tensor:
        if hook.name == "blocks.0.hook_resid_pre":
            value = others[hook.name] + part * (value - others[hook.name])
        if dropped is not None and hook.name in (f"blocks.{dropped}.attn.hook_z", f"blocks.{dropped}.hook_mlp_out"):
            value = value.detach()
        probes[hook.name] = torch.zeros_like(value, requires_grad=True)
        return value + probes[hook.name]

    points = dict.fromkeys(point_of(name)[0] for name in names)
    logits = model.run_with_hooks(TRAIN.clean.ids, fwd_hooks=[(point, add_probe) for point in points])
    loss = -logit_difference(logits[:, -1:], TRAIN).sum()
    slopes = dict(zip(points, torch.autograd.grad(loss, [probes[point] for point in points]), strict=True))
    found = []
    for name in names:
        point, place = point_of(name)
        product = (others[point] - clean[point]) * slopes[point]
        found.append(product[place].flatten(1).sum(1))
    return torch.stack(found, 1).detach()


# ---- attribution patching


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("steps", [1, 3])
@each_ablation
@each_style
def test_scores_are_differences_times_gradients_along_the_path(style: str, ablation: str, steps: int) -> None:
    """The difference is of the clean run at every point of the path."""
    model = model_of(style)
    found = tp.AtP(nodes=1, steps=steps, batch_size=2).score(model, TASK, ablation=ABLATIONS[ablation])
    parts = [by_hooks(model, names_of(found), ablation, part=(k + 1) / steps) for k in range(steps)]
    assert error(found.values, torch.stack(parts).mean(0).mean(0)) <= 1e-9
    assert found.values.abs().min() > 0


@each_ablation
@pytest.mark.parametrize("style", [style for style in STYLES if style not in NORMED_HEADS])
def test_a_nodes_score_is_the_sum_of_those_of_its_outgoing_edges(style: str, ablation: str) -> None:
    """The chain rule: a node is ablated when all its edges are."""
    model = model_of(style)
    assert_row_sums(model, TASK, ABLATIONS[ablation], tolerance=1e-9, skip_input=ablation == "zero")


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("ablation", [tp.Resample(), tp.Zero()], ids=["resample", "zero"])
def test_so_it_is_in_encoders_with_norms_behind_every_sum(ablation: Any) -> None:
    model = classifier()
    task = task_of(model)
    assert_row_sums(model, task, ablation, tolerance=1e-5)
    found = tp.AtP(nodes=2).score(model, task, ablation=ablation)
    assert found["a0.h1"] != 0
    assert found["a0.h0"] == 0  # it writes nothing


def assert_row_sums(model: Any, task: tp.Task, ablation: Any, *, tolerance: float, skip_input: bool = False) -> None:
    nodes, train = tp.AtP(nodes=1).score(model, task, ablation=ablation), task.discovery.train()
    masked = Masked(model, Masks(tp.edges(model)), ablation)
    ones = torch.ones(len(masked.sites), dtype=masked.backend.dtype, requires_grad=True)
    loss = -logit_difference(masked(train, mask=ones), train).mean()
    (gradient,) = torch.autograd.grad(loss, ones)
    sums = dict.fromkeys(names_of(nodes), 0.0)
    for place, slope in enumerate((-gradient).tolist()):
        sums[masked.graph.name(place).partition("->")[0]] += slope
    skipped = int(skip_input)  # under Zero the first readers' gate is put behind their norm, which has another slope
    expected = torch.tensor(list(sums.values()), dtype=torch.float64)
    assert error(nodes.values.double()[skipped:], expected[skipped:]) <= tolerance


@pytest.mark.parametrize("ablation", [*ABLATIONS.values(), tp.GaussianNoise(0.5)], ids=[*ABLATIONS, "noise"])
def test_it_is_activation_patching_where_the_model_is_linear(ablation: Any) -> None:
    """Behind the last block, where attention and MLP are parallel and nothing is normalised; not in front of it."""
    model = fresh("no_norm", parallel_attn_mlp=True) if has_hooked_transformer() else fresh("no_norm", attn_only=True)
    estimated = tp.AtP(nodes=1).score(model, TASK, ablation=ablation)
    exact = tp.NodePatching(nodes=1).score(model, TASK, ablation=ablation)
    last = [place for place, name in enumerate(names_of(exact)) if name.startswith(("a1", "m1"))]
    first = [place for place, name in enumerate(names_of(exact)) if name.startswith(("a0", "m0"))]
    assert error(estimated.values[last], exact.values[last]) <= 1e-9
    assert error(estimated.values[first], exact.values[first]) > 1e-4


@pytest.mark.parametrize("objective", [tp.KL(), tp.LogitDifference()], ids=["kl", "logit difference"])
def test_along_the_path_the_embeddings_score_becomes_the_whole_effect(objective: Any) -> None:
    """The fundamental theorem of calculus, up to the width of a step."""
    model = model_of("lnpre")
    whole = tp.NodePatching(nodes=1, objective=objective).score(model, TASK)["input"]
    errors = [
        abs(tp.AtP(nodes=1, objective=objective, steps=steps).score(model, TASK)["input"] - whole) for steps in (5, 50)
    ]
    assert errors[1] < 0.06 * abs(whole)
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"drop": "layers"}], ids=["plain", "path", "drop"])
def test_a_pattern_chooses_scores_and_changes_none(options: dict[str, Any]) -> None:
    model = model_of("gpt2")
    whole, part = (tp.AtP(nodes=1, pattern=pattern, **options).score(model, TASK) for pattern in ("*", "m*|a1.h[13]"))
    assert names_of(part) == ["m0", "a1.h1", "a1.h3", "m1", "m2"]
    assert error(part.values, torch.tensor([whole[name] for name in names_of(part)], dtype=torch.float64)) <= 1e-12


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("style", ["gpt2", "llama", "gemma2", "attention_only"])
def test_dropping_layers_ends_gradients_there_and_averages_sizes(style: str) -> None:
    """Over the layers that are not the node's own."""
    model = model_of(style)
    found = tp.AtP(nodes=1, drop="layers", batch_size=2).score(model, TASK)
    names, layers = names_of(found), range(model.cfg.n_layers)
    sizes = torch.stack([by_hooks(model, names, "resample", dropped=layer).abs().mean(0) for layer in layers])
    own = torch.tensor([[name[1:2] == str(layer) for name in names] for layer in layers])
    expected = (sizes * ~own).sum(0) / (~own).sum(0)
    assert error(found.values, expected) <= 1e-9


def test_it_takes_one_pass_on_the_twins_and_one_on_the_prompts() -> None:
    model, task, runs = tp.planted("copy").model, built("copy").task, []
    tp.AtP(nodes=1).score(model, task)  # a model is checked once
    model.hook_dict["hook_embed"].add_hook(lambda value, hook: runs.append(len(value)))
    tp.AtP(nodes=1, batch_size=32).score(model, task)
    assert runs == [32] * 6
    runs.clear()
    tp.AtP(nodes=1, batch_size=96).score(model, task, ablation=tp.Zero())
    assert runs == [96]


# ---- HISP


@NEEDS_HOOKED_TRANSFORMER
@each_ablation
@each_style
def test_hisp_is_the_mean_size_over_the_norm_of_its_layer(style: str, ablation: str) -> None:
    """Under zero ablation by the published formula, of activations; elsewhere of their differences."""
    model = model_of(style)
    plain = tp.HISP(nodes=1, normalise="none", batch_size=2, pattern="a*|m*").score(
        model, TASK, ablation=ABLATIONS[ablation]
    )
    expected = by_hooks(model, names_of(plain), ablation).abs().mean(0)
    assert error(plain.values, expected) <= 1e-9
    found = tp.HISP(nodes=1, pattern="a*|m*").score(model, TASK, ablation=ABLATIONS[ablation])
    for layer in range(model.cfg.n_layers):
        own = [place for place, name in enumerate(names_of(plain)) if name[1] == str(layer)]
        assert error(found.values[own], expected[own] / expected[own].norm()) <= 1e-9


def test_hisp_counts_what_helps_here_and_harms_there_and_attribution_patching_does_not() -> None:
    model = model_of("gpt2")
    flipped = dataclasses.replace(TRAIN, answers=TRAIN.foils, foils=TRAIN.answers)
    fields = {f.name: getattr(TRAIN, f.name) for f in dataclasses.fields(TRAIN)}
    columns = {name: torch.cat([fields[name], getattr(flipped, name)]) for name in ("positions", "answers", "foils")}
    tokens = {name: tp.Tokens(fields[name].ids.repeat(2, 1)) for name in ("clean", "corrupt")}
    both = dataclasses.replace(TRAIN, index=torch.arange(10), **columns, **tokens)
    task = dataclasses.replace(TASK, streams={"main": Stream(both, both, both)})
    assert tp.AtP(nodes=1, pattern="a*").score(model, task).values.abs().max() <= 1e-12
    sizes = tp.HISP(nodes=1, normalise="none").score(model, task).values
    assert error(sizes, tp.HISP(nodes=1, normalise="none").score(model, TASK).values) <= 1e-9
    assert sizes.min() > 0


def test_hisp_is_of_heads_unless_told_otherwise_and_layers_of_zeros_stay_zero() -> None:
    one = built("copy")
    scores = tp.HISP(nodes=1).score(one.model, one.task)
    assert names_of(scores) == [f"a{layer}.h{head}" for layer in range(2) for head in range(4)]
    assert scores.values[:4].tolist() == [0, 0, 0, 0]
    assert scores.values[4:].square().sum() == pytest.approx(1)
    assert tp.HISP(nodes=1, pattern="*").score(one.model, one.task)["input"] == pytest.approx(1)


# ---- gates


def moved(method: Any, planted: str) -> list[str]:
    found = method.score(built(planted).model, built(planted).task)
    return found.absolute.top(threshold=1e-2).names


@pytest.mark.parametrize("gate", ["and", "or", "adder"])
def test_gradients_of_the_clean_run_miss_the_inputs_of_an_or_gate(gate: str) -> None:
    """Each holds it open for the other. On the way from the twin to the prompt neither does yet."""
    circuit = built(gate).circuit
    expected = ["m1"] if gate == "or" else circuit.nodes
    assert moved(tp.AtP(nodes=1), gate) == expected
    assert moved(tp.AtP(nodes=1, steps=5), gate) == circuit.nodes
    assert moved(tp.HISP(nodes=1), gate) == ([] if gate == "or" else circuit.heads)


# ---- what is refused


def test_an_objective_that_is_flat_where_all_is_kept_needs_a_path() -> None:
    for method in (tp.AtP, tp.HISP):
        with pytest.raises(ValueError, match="0 and flat there"):
            method(objective=tp.KL())
    assert tp.AtP(nodes=1, objective=tp.KL(), steps=2).score(model_of("gpt2"), TASK).values.abs().max() > 0


def test_flat_means_that_gradients_are_zero() -> None:
    """What is refused would have given nothing: the gradient of KL at all ones."""
    masked = Masked(model_of("gpt2"), Masks(tp.nodes(model_of("gpt2"))))
    ones = torch.ones(len(masked.sites), dtype=torch.float64, requires_grad=True)
    reference = masked.cache(TRAIN).reference(TRAIN)
    (gradient,) = torch.autograd.grad(tp.KL()(masked(TRAIN, mask=ones), TRAIN, reference), ones)
    assert gradient.abs().max() <= 1e-12


def test_one_layer_has_no_other_to_drop() -> None:
    model = fresh("gpt2", n_layers=1)
    with pytest.raises(ValueError, match="at least 2 layers but this model has 1"):
        tp.AtP(nodes=1, drop="layers").score(model, TASK)


def test_choices_are_words_of_a_list() -> None:
    with refuses_choice("drop must be 'none' or 'layers'"):
        tp.AtP(drop="heads")  # pyright: ignore[reportArgumentType]
    with refuses_choice("normalise must be 'layer' or 'none'"):
        tp.HISP(normalise="head")  # pyright: ignore[reportArgumentType]


def test_examples_without_foils_need_another_objective() -> None:
    without = dataclasses.replace(TRAIN, foils=torch.full_like(TRAIN.foils, -100))
    task = dataclasses.replace(TASK, streams={"main": Stream(without, without, without)})
    for method in (tp.AtP, tp.HISP):
        with pytest.raises(ValueError, match="needs a foil for each answer"):
            method(nodes=1).score(model_of("gpt2"), task)
        method(nodes=1, objective=tp.CrossEntropy()).score(model_of("gpt2"), task)


def test_a_model_under_masks_is_refused() -> None:
    one = tp.planted("copy")
    with (
        tp.Masked(one.model, one.circuit, tp.Zero()).installed(),
        pytest.raises(RuntimeError, match="has masks installed"),
    ):
        tp.AtP(nodes=1, drop="layers").score(one.model, one.task)
