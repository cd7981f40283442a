"""Masks on heads, MLPs, layers, neurons and weights: every kept is the model, none is its replacement, and any mixture
is what ordinary hooks, or edge masks, make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from styles import (
    CLEAN,
    CORRUPT,
    DTYPES,
    NORMED_HEADS,
    OTHERS,
    STYLES,
    TOLERANCE,
    backend_of_style,
    error,
    fresh,
    model_of,
    probe,
    random_batch,
)
from torch import Tensor

from tlprune.backends.activations import Activations, Backend, Wanted
from tlprune.circuit import Circuit
from tlprune.masking.ablation import Ablation, GaussianNoise, Resample, Zero
from tlprune.masking.constants import Constant
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.means import Mean
from tlprune.masking.plain import plain_run
from tlprune.masking.sites import edges, heads, layers, mlps, neurons, nodes, weights
from tlprune.sites import Sites
from tlprune.task import Tokens

ABLATIONS: dict[str, Callable[[Any], Ablation]] = {
    "resample": lambda model: Resample(),
    "zero": lambda model: Zero(),
    "mean": lambda model: Mean(OTHERS),
    "noise": lambda model: GaussianNoise(0.3),
    "constant": lambda model: Constant(model, Mean(OTHERS), neurons=every_layer(model)),
}
KINDS: dict[str, Callable[[Any], Sites]] = {
    "heads": heads, "mlps": mlps, "layers": layers, "nodes": nodes, "neurons": neurons, "weights": weights,
    "rows": lambda model: weights(model, unit="row"), "columns": lambda model: weights(model, unit="column"),
}  # fmt: skip
NEED_MLPS = ("mlps", "neurons")
CASES = [
    (style, kind) for style in STYLES for kind in KINDS if not (STYLES[style].get("attn_only") and kind in NEED_MLPS)
]
each_case = pytest.mark.parametrize(("style", "kind"), CASES, ids=[f"{style}-{kind}" for style, kind in CASES])
of_activations = pytest.mark.parametrize(
    ("style", "kind"),
    [case for case in CASES if case[1] in ("heads", "mlps", "layers", "nodes", "neurons")],
    ids=[f"{style}-{kind}" for style, kind in CASES if kind in ("heads", "mlps", "layers", "nodes", "neurons")],
)
each_ablation = pytest.mark.parametrize("ablation", ABLATIONS)


def every_layer(model: Any) -> tuple[int, ...]:
    return () if model.cfg.attn_only else tuple(range(model.cfg.n_layers))


def masked_of(style: str, sites: Callable[[Any], Sites], ablation: str, dtype: torch.dtype = torch.float64) -> Masked:
    model = model_of(style, dtype)
    return Masked(model, Masks(sites(model)), ABLATIONS[ablation](model))


def run(masked: Masked, mask: Tensor) -> Tensor:
    return masked(CLEAN, CORRUPT, mask=mask)


def random_values(sites: Sites, *lead: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(len(sites))
    return (0.1 + 0.8 * torch.rand(*lead, len(sites), generator=generator, dtype=torch.float64)).to(dtype)


@each_ablation
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@each_case
def test_all_ones_is_the_model(style: str, kind: str, dtype: torch.dtype, ablation: str) -> None:
    masked = masked_of(style, KINDS[kind], ablation, dtype)
    expected = masked.model(CLEAN.ids)
    assert error(run(masked, torch.ones(len(masked.sites), dtype=dtype)), expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("style", STYLES)
def test_no_node_kept_under_resample_is_the_counterfactual_run(style: str) -> None:
    masked = masked_of(style, nodes, "resample")
    zeros = torch.zeros(len(masked.sites), dtype=torch.float64)
    assert error(run(masked, zeros), masked.model(CORRUPT.ids)) <= 1e-9


@pytest.mark.parametrize("style", STYLES)
def test_no_weight_kept_is_the_model_with_its_matrices_zeroed(style: str) -> None:
    masked, zeroed = masked_of(style, weights, "resample"), fresh(style)
    with torch.no_grad():
        for name, parameter in zeroed.named_parameters():
            if ".W_" in name.replace("._W", ".W") and "blocks" in name:
                parameter.zero_()
    zeros = torch.zeros(len(masked.sites), dtype=torch.float64)
    assert error(run(masked, zeros), zeroed(CLEAN.ids)) <= 1e-12


POINTS = {"heads": "blocks.{}.attn.hook_z", "mlp": "blocks.{}.hook_mlp_out", "neurons": "blocks.{}.mlp.hook_post"}


def replacements(model: Any, ablation: str) -> dict[str, Tensor]:
    """What ablated activations become, by hook, from the model's own cache."""
    ids = OTHERS.ids if ablation == "mean" else CORRUPT.ids
    _, seen = model.run_with_cache(ids)
    if ablation == "zero":
        return {name: torch.zeros_like(value) for name, value in seen.items()}
    return {name: value.mean((0, 1), keepdim=True) if ablation == "mean" else value for name, value in seen.items()}


def by_hooks(masked: Masked, mask: Tensor, ablation: str) -> Tensor:
    """The same run by hooks of TransformerLens, one site after the other."""
    model, sites = masked.model, masked.sites
    others = replacements(model, ablation)
    hooks = []
    for index in range(len(sites)):
        point, place = point_of(sites.name(index))

        def hook(
            value: Tensor, hook: Any, gate: Tensor = mask[index], place: Any = place, other: Tensor = others[point]
        ) -> Tensor:
            mixed, result = other + gate * (value - other), value.clone()
            result[place] = mixed[place]
            return result

        hooks.append((point, hook))
    return model.run_with_hooks(CLEAN.ids, fwd_hooks=hooks)


def point_of(name: str) -> tuple[str, Any]:
    """The hook at which a site acts, and the part of its activation."""
    node, _, part = name.partition(".")
    if node in ("input", "embed"):
        return "blocks.0.hook_resid_pre", ...
    layer, place = int(node[1:]), int(part[1:]) if part else None
    if part.startswith("n"):
        return POINTS["neurons"].format(layer), (..., place)
    if node[0] == "m":
        return POINTS["mlp"].format(layer), ...
    return POINTS["heads"].format(layer), ... if place is None else (..., place, slice(None))


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@of_activations
def test_random_masks_are_what_hooks_make(style: str, kind: str, ablation: str) -> None:
    def some(model: Any) -> Sites:
        return neurons(model, "m1") if kind == "neurons" else KINDS[kind](model)

    masked = masked_of(style, some, ablation)
    mask = random_values(masked.sites)
    assert error(run(masked, mask), by_hooks(masked, mask, ablation)) <= 1e-9


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean", "constant"])
@pytest.mark.parametrize("style", STYLES)
def test_node_masks_are_edge_masks_shared_by_all_that_a_writer_sends(style: str, ablation: str) -> None:
    model = model_of(style)
    by_node, by_edge = masked_of(style, nodes, ablation), masked_of(style, edges, ablation)
    mask = random_values(by_node.sites)
    keep_normed_heads(style, by_node.sites, mask)
    # Beside a norm with a single writer, edges under zero ablation are gated behind it: node and edge differ there.
    if ablation == "zero":
        mask[0] = 1
    graph = by_edge.graph
    writers = torch.cat([torch.arange(readers.width).repeat(len(readers.names)) for readers in graph.readers])
    assert model is by_edge.model
    assert error(run(by_node, mask), run(by_edge, mask[writers])) <= 1e-9


def keep_normed_heads(style: str, sites: Sites, mask: Tensor) -> None:
    """Leave the heads of a style alone whose node masks act before a norm."""
    if style in NORMED_HEADS:
        part = sites.part("nodes")
        mask[part][[".h" in sites.name(index) for index in range(part.start, part.stop)]] = 1


@pytest.mark.parametrize("style", STYLES)
def test_edges_and_nodes_together_multiply(style: str) -> None:
    both = masked_of(style, lambda model: edges(model) + nodes(model), "resample")
    alone = masked_of(style, edges, "resample")
    mask, graph = random_values(both.sites), both.graph
    keep_normed_heads(style, both.sites, mask)
    writers = torch.cat([torch.arange(readers.width).repeat(len(readers.names)) for readers in graph.readers])
    product = mask[both.sites.part("edges")] * mask[both.sites.part("nodes")][writers]
    assert error(run(both, mask), run(alone, product)) <= 1e-9


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("style", STYLES)
def test_edges_carry_what_nodes_send(style: str, ablation: str) -> None:
    """With every edge kept, masks of nodes do beside edges what they do alone, under a norm behind attention too."""
    both = masked_of(style, lambda model: edges(model) + nodes(model), ablation)
    alone = masked_of(style, nodes, ablation)
    mask = random_values(both.sites)
    mask[both.sites.part("edges")] = 1
    assert error(run(both, mask), run(alone, mask[both.sites.part("nodes")])) <= 1e-9


@pytest.mark.parametrize("style", [style for style in STYLES if style != "attention_only"])
def test_heads_neurons_and_layers_together_are_hooks_one_after_the_other(style: str) -> None:
    masked = masked_of(
        style, lambda model: heads(model, "a0.*") + neurons(model, "m1") + layers(model, "a*"), "resample"
    )
    mask = random_values(masked.sites)
    assert error(run(masked, mask), by_hooks(masked, mask, "resample")) <= 1e-9


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("style", STYLES)
def test_weights_beside_edges_are_edges_of_a_model_with_masked_weights(style: str, ablation: str) -> None:
    """What replaces an ablated activation stays that of the whole model."""
    masked = masked_of(style, lambda model: weights(model) + edges(model), ablation)
    sites, changed = masked.sites, fresh(style)
    mask = random_values(sites)
    if ablation == "zero":
        mask[sites.part("edges")] = (mask[sites.part("edges")] > 0.5).double()
    parts = sites.group("weights").split(mask[sites.part("weights")])  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            parameter.mul_(parts.get(name.replace("._W", ".W"), torch.ones(())))
    replaced = masked.ablation.replaced(backend_of_style(style), CLEAN, CORRUPT)
    outputs = [block.attn.W_O for block in masked.model.blocks]
    if style in NORMED_HEADS:
        outputs = [weight * block.ln1_post.w for weight, block in zip(outputs, masked.model.blocks, strict=True)]
    expected = plain_run(changed, masked.graph, CLEAN, mask[sites.part("edges")], replaced, outputs=outputs)
    assert error(run(masked, mask), expected) <= 1e-9
    check_gradient(masked, mask.detach() if ablation != "zero" else random_values(sites))


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_masked_gains_of_a_norm_behind_attention_leave_what_replaces(ablation: str) -> None:
    """The gain is part of what a head's edge carries; what replaces it went through the whole gain."""
    masked = masked_of("gemma2", lambda model: weights(model, "blocks.*.ln*_post.w") + edges(model), ablation)
    sites, changed, mask = masked.sites, fresh("gemma2"), random_values(masked.sites)
    parts = sites.group("weights").split(mask[sites.part("weights")])  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(parts) == [f"blocks.{layer}.ln{norm}_post.w" for layer in (0, 1) for norm in (1, 2)]
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            parameter.mul_(parts.get(name, torch.ones(())))
    replaced = masked.ablation.replaced(backend_of_style("gemma2"), CLEAN, CORRUPT)
    outputs = [block.attn.W_O * block.ln1_post.w for block in masked.model.blocks]
    expected = plain_run(changed, masked.graph, CLEAN, mask[sites.part("edges")], replaced, outputs=outputs)
    assert error(run(masked, mask), expected) <= 1e-9
    check_gradient(masked, mask.detach())


@each_ablation
@of_activations
def test_gradients_are_finite_differences(style: str, kind: str, ablation: str) -> None:
    masked = masked_of(style, KINDS[kind], ablation)
    check_gradient(masked, random_values(masked.sites))


@pytest.mark.parametrize("kind", ["weights", "rows", "columns"])
@pytest.mark.parametrize("style", STYLES)
def test_gradients_of_weight_masks_are_finite_differences(style: str, kind: str) -> None:
    masked = masked_of(style, KINDS[kind], "resample")
    check_gradient(masked, random_values(masked.sites))


def check_gradient(masked: Masked, mask: Tensor) -> None:
    mask = mask.requires_grad_()
    probe(run(masked, mask)).backward()
    assert mask.grad is not None
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = torch.randn(len(mask), generator=generator, dtype=torch.float64)
        with torch.no_grad():
            up, down = (probe(run(masked, mask + step * direction)) for step in (1e-6, -1e-6))
        expected = float(up - down) / 2e-6
        assert abs(float(mask.grad @ direction) - expected) <= 1e-7 + 1e-5 * abs(expected)


@of_activations
def test_a_mask_per_example_is_a_run_per_example(style: str, kind: str) -> None:
    masked = masked_of(style, KINDS[kind], "resample")
    values = random_values(masked.sites, len(CLEAN.ids))
    together = run(masked, values)
    for index, mask in enumerate(values):
        row = torch.tensor([index])
        assert error(together[index : index + 1], masked(CLEAN.rows(row), CORRUPT.rows(row), mask=mask)) <= 1e-9


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_spans_mask_their_own_positions(style: str) -> None:
    spanned = masked_of(style, lambda model: edges(model, spans=("subject",)) + heads(model), "resample")
    plain = masked_of(style, lambda model: edges(model) + heads(model), "resample")
    spans = torch.tensor([[-1, 0, 0, -1, -1, -1], [0, -1, -1, -1, -1, 0], [-1] * 6])
    mask, count = random_values(spanned.sites), plain.graph.n_edges
    subject, rest, whole = mask[:count], mask[count : 2 * count], mask[2 * count :]
    by_position = torch.where((spans == 0)[..., None], subject, rest)
    expected = plain(CLEAN, CORRUPT, mask=torch.cat([by_position, whole.expand(*spans.shape, len(whole))], -1))
    assert error(spanned(CLEAN, CORRUPT, mask=mask, spans=spans), expected) <= 1e-9
    with pytest.raises(ValueError, match="differ by span"):
        spanned(CLEAN, CORRUPT, mask=mask)
    with pytest.raises(ValueError, match="know 1 spans but a position has number 1"):
        spanned(CLEAN, CORRUPT, mask=mask, spans=spans + 1)


def test_spans_of_a_batch_are_found_by_name() -> None:
    """In whatever order the sites name them, and some of them alone; the rest of the prompt is what is not named."""
    names = ("subject", "verb", "end")
    spans = torch.tensor([[0, 0, 1, -1, -1, 2], [-1, 0, 1, 1, -1, 2], [0, 1, 1, 1, 1, 2]])
    batch = dataclasses.replace(random_batch(), spans=spans, span_names=names)
    model = model_of("gpt2")
    every = Masked(model, Masks(heads(model, spans=names)))
    mask = random_values(every.sites).view(4, -1)
    expected = every(batch, mask=mask.flatten())
    turned = Masked(model, Masks(heads(model, spans=("end", "subject", "verb"))))
    assert error(turned(batch, mask=mask[[2, 0, 1, 3]].flatten()), expected) <= 1e-12
    few = Masked(model, Masks(heads(model, spans=("verb",))))
    alike = mask[[0, 1, 0, 0]]
    assert error(few(batch, mask=alike[[1, 0]].flatten()), every(batch, mask=alike.flatten())) <= 1e-12
    strange = Masked(model, Masks(heads(model, spans=("object",))))
    with pytest.raises(ValueError, match="differ by the spans object but these prompts have subject, verb, end"):
        strange(batch)
    with pytest.raises(ValueError, match="need the same spans"):
        _ = heads(model, spans=("end",)) + mlps(model, spans=("verb",))


@pytest.mark.parametrize("style", ["gpt2", "llama", "parallel"])
def test_learned_constants_get_the_gradient_of_finite_differences(style: str) -> None:
    for sites in (edges, lambda model: edges(model) + nodes(model), heads):
        masked = masked_of(style, sites, "constant")
        mask, constant = random_values(masked.sites), masked.ablation
        assert isinstance(constant, Constant)
        parameters = [parameter for parameter in constant.parameters() if parameter.dim() > 2]
        probe(run(masked, mask)).backward()
        for parameter in parameters:
            if parameter.grad is None:
                continue
            direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            moved = []
            for step in (1e-6, -2e-6, 1e-6):
                with torch.no_grad():
                    parameter.add_(step * direction)
                    moved.append(float(probe(run(masked, mask))))
            expected = (moved[0] - moved[1]) / 2e-6
            assert abs(float((parameter.grad * direction).sum()) - expected) <= 1e-7 + 1e-5 * abs(expected)


def test_one_shape_is_needed() -> None:
    model, other = model_of("gpt2"), model_of("lnpre")
    for sites in (heads, mlps, neurons, weights, nodes, edges):
        with pytest.raises(ValueError, match=r"same model|one model"):
            Masked(other, Masks(sites(model)))
    with pytest.raises(ValueError, match="matches none of this model's heads"):
        heads(model, "b*")
    with pytest.raises(ValueError, match="also names biases"):
        weights(model, "blocks.0.*", unit="row")
    with pytest.raises(ValueError, match="cannot be masked beside edges"):
        Masked(model, Masks(edges(model) + weights(model, "*.b_O")))
    with pytest.raises(ValueError, match="does not have under this convention"):
        Masked(model, Masks(edges(model) + nodes(model, embeddings="separate")))
    with pytest.raises(ValueError, match="no example axis"):
        Masked(model, Masks(weights(model)))(CLEAN, CORRUPT, mask=torch.ones(3, len(weights(model))))


def test_noise_belongs_to_a_prompt_however_it_is_batched() -> None:
    masked = masked_of("gpt2", neurons, "noise")
    zeros = torch.zeros(len(masked.sites), dtype=torch.float64)
    together = run(masked, zeros)
    alone = torch.cat([masked(Tokens(CLEAN.ids[row : row + 1]), mask=zeros) for row in range(3)])
    assert error(together, alone) <= 1e-9
    assert error(together, masked.model(CLEAN.ids)) > 1e-3
    with pytest.raises(ValueError, match="Choose Resample"):
        Masked(masked.model, Masks(edges(masked.model)), GaussianNoise())(CLEAN, CORRUPT)


def test_noise_has_its_scale() -> None:
    backend = backend_of_style("gpt2")
    prompts = Tokens(torch.randint(29, (200, 6), generator=torch.Generator().manual_seed(0)))
    found = GaussianNoise(0.5, seed=1).replaced(backend, prompts, None, Wanted(streams=False, neurons=(0,)))
    values = found.neurons[0]
    assert values.shape == (200, 1, 48)
    assert abs(float(values.std()) - 0.5) < 4 * 0.5 / (2 * values.numel()) ** 0.5
    assert abs(float(values.mean())) < 4 * 0.5 / values.numel() ** 0.5


def test_noise_is_that_of_the_prompt_and_the_place_alone() -> None:
    """Neither padding nor what else is masked changes it; prompts, places and seeds differ."""
    backend, ids = backend_of_style("gpt2"), CLEAN.ids
    plain = noise_of(backend, CLEAN, (0, 2))
    real = torch.cat([torch.ones_like(ids), torch.zeros_like(ids)], 1)
    padded = noise_of(backend, Tokens(torch.cat([ids, ids], 1), real), (0, 2))
    assert all(torch.equal(one, other) for one, other in zip(plain.tensors, padded.tensors, strict=True))
    assert torch.equal(noise_of(backend, CLEAN, (2,)).neurons[2], plain.neurons[2])
    assert not torch.equal(noise_of(backend, CLEAN, (2,), seed=1).neurons[2], plain.neurons[2])
    assert not torch.equal(plain.neurons[0], plain.neurons[2])
    assert not torch.equal(plain.neurons[0][0], plain.neurons[0][1])


def noise_of(backend: Backend, prompts: Tokens, layers: tuple[int, ...], *, seed: int = 0) -> Activations:
    return GaussianNoise(0.5, seed=seed).replaced(backend, prompts, None, Wanted(streams=False, neurons=layers))


def test_perturbed_neurons_are_a_forward_by_hand_that_adds_the_draw() -> None:
    """One number per prompt and neuron, the same at every position, on the chosen neurons behind the activation."""
    model, backend = model_of("gpt2"), backend_of_style("gpt2")
    sites = neurons(model, "m[12]")
    kept = torch.arange(len(sites)) % 3 > 0
    drawn = noise_of(backend, CLEAN, (1, 2)).neurons
    perturbed = (~kept).view(2, -1)

    def adds(layer: int) -> Any:
        return lambda value, hook: value + perturbed[layer - 1] * drawn[layer].expand(-1, value.shape[1], -1)

    hooks = [(f"blocks.{layer}.mlp.hook_post", adds(layer)) for layer in (1, 2)]
    expected = model.run_with_hooks(CLEAN.ids, fwd_hooks=hooks)
    noisy = Masked(model, Circuit(sites, kept), GaussianNoise(0.5))(CLEAN)
    assert error(noisy, expected) <= 1e-9
    assert error(noisy, model(CLEAN.ids)) > 1e-3
