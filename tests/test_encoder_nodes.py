"""Masks on heads, MLPs, layers, neurons and weights of encoders, with padding and token types, under any head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from encoders import ENCODERS, LENGTH, call, fresh_encoder, kept_encoder, plain_encoder, prompts
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import error, probe
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.activations import Wanted
from tlprune.circuit import Circuit
from tlprune.graph import Architecture
from tlprune.masking.ablation import Ablation, GaussianNoise, Resample, Zero
from tlprune.masking.constants import Constant
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.means import Mean
from tlprune.masking.sites import heads, layers, mlps, neurons, nodes, weights
from tlprune.sites import Sites
from tlprune.task import Tokens

pytestmark = NEEDS_HOOKED_TRANSFORMER
KINDS: dict[str, Callable[[Any], Sites]] = {
    "heads": heads, "mlps": mlps, "layers": layers, "nodes": nodes, "neurons": neurons, "weights": weights,
}  # fmt: skip
each_encoder = pytest.mark.parametrize("name", ENCODERS)
each_kind = pytest.mark.parametrize("kind", KINDS)
of_activations = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "weights"])
ABLATIONS = ("resample", "zero", "mean", "noise", "constant")


def clean(name: str) -> Tokens:
    return prompts(name, 1, padding="right")


def corrupt(name: str) -> Tokens:
    return prompts(name, 2, padding="right")


def others(name: str) -> Tokens:
    return prompts(name, 3, padding="right", examples=5)


def ablation_of(name: str, ablation: str) -> Ablation:
    model = kept_encoder(name)
    return {
        "resample": Resample, "zero": Zero, "mean": lambda: Mean(others(name), batch_size=2),
        "noise": lambda: GaussianNoise(0.3),
        "constant": lambda: Constant(model, Mean(others(name)), neurons=tuple(range(model.cfg.n_layers))),
    }[ablation]()  # fmt: skip


def masked_of(name: str, sites: Callable[[Any], Sites], ablation: str = "resample") -> Masked:
    model = kept_encoder(name)
    return Masked(model, Masks(sites(model)), ablation_of(name, ablation))


def plain(name: str, tokens: Tokens) -> Tensor:
    """The model's own output, one row per prompt where it predicts prompts."""
    found = call(kept_encoder(name), tokens)
    return found if found.dim() == 3 else found[:, None]


def random_values(sites: Sites, *lead: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(sites))
    return 0.1 + 0.8 * torch.rand(*lead, len(sites), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("ablation", ABLATIONS)
@each_kind
@each_encoder
def test_all_ones_is_the_model(name: str, kind: str, ablation: str) -> None:
    masked = masked_of(name, KINDS[kind], ablation)
    ones = torch.ones(len(masked.sites), dtype=torch.float64)
    assert error(masked(clean(name), corrupt(name), mask=ones), plain(name, clean(name))) <= 1e-9


@each_encoder
def test_no_node_kept_under_resample_is_the_counterfactual_run(name: str) -> None:
    masked = masked_of(name, nodes)
    zeros = torch.zeros(len(masked.sites), dtype=torch.float64)
    assert error(masked(clean(name), corrupt(name), mask=zeros), plain(name, corrupt(name))) <= 1e-9


@pytest.mark.parametrize("name", ["plain", "bert classes", "roberta words"])
def test_no_weight_kept_is_the_model_with_its_matrices_zeroed(name: str) -> None:
    masked, zeroed = masked_of(name, weights), plain_encoder() if name == "plain" else fresh_encoder(name)
    with torch.no_grad():
        for parameter, value in zeroed.named_parameters():
            if "blocks" in parameter and ".W_" in parameter:
                value.zero_()
    zeros = torch.zeros(len(masked.sites), dtype=torch.float64)
    found = call(zeroed, clean(name))
    assert error(masked(clean(name), mask=zeros, corrupt=corrupt(name)), found.view(3, -1, found.shape[-1])) <= 1e-12


POINTS = {"heads": "blocks.{}.attn.hook_z", "mlp": "blocks.{}.hook_mlp_out", "neurons": "blocks.{}.mlp.hook_post"}


def point_of(name: str) -> tuple[str, Any]:
    """The hook at which a site acts, and the part of its activation."""
    node, _, part = name.partition(".")
    if node == "input":
        return "hook_full_embed", ...
    layer, place = int(node[1:]), int(part[1:]) if part else None
    if part.startswith("n"):
        return POINTS["neurons"].format(layer), (..., place)
    if node[0] == "m":
        return POINTS["mlp"].format(layer), ...
    return POINTS["heads"].format(layer), ... if place is None else (..., place, slice(None))


def cut(tokens: Tokens, row: int, length: int) -> Tokens:
    """One prompt without its padding."""
    types = None if tokens.token_types is None else tokens.token_types[row : row + 1, :length]
    return Tokens(tokens.ids[row : row + 1, :length], None, types)


def cache_of(model: Any, tokens: Tokens) -> dict[str, Tensor]:
    options = {"token_type_ids": tokens.token_types, "one_zero_attention_mask": tokens.attention_mask}
    return model.run_with_cache(tokens.ids, return_cache_object=False, **options)[1]


def replacements(name: str, ablation: str) -> dict[str, Tensor]:
    """What ablated activations become, by hook, from the model's own cache; means of prompts run one by one."""
    model = kept_encoder(name)
    if ablation != "mean":
        seen = cache_of(model, corrupt(name))
        return {point: 0 * value for point, value in seen.items()} if ablation == "zero" else seen
    runs = []
    for row in range(5):
        tokens = others(name)
        assert tokens.attention_mask is not None
        runs.append(cache_of(model, cut(tokens, row, int(tokens.attention_mask[row].sum()))))
    chosen = [point for point in runs[0] if point.endswith(("hook_z", "hook_mlp_out", "hook_post", "full_embed"))]
    return {point: torch.cat([seen[point] for seen in runs], 1).mean(1, keepdim=True) for point in chosen}


def by_hooks(masked: Masked, mask: Tensor, name: str, ablation: str) -> Tensor:
    """The same run by hooks of TransformerLens, one site after the other."""
    instead, hooks, tokens = replacements(name, ablation), [], clean(name)
    for index in range(len(masked.sites)):
        point, place = point_of(masked.sites.name(index))

        def hook(
            value: Tensor, hook: Any, gate: Tensor = mask[index], place: Any = place, other: Tensor = instead[point]
        ) -> Tensor:
            mixed, result = other + gate * (value - other), value.clone()
            result[place] = mixed[place]
            return result

        hooks.append((point, hook))
    options = {"token_type_ids": tokens.token_types, "one_zero_attention_mask": tokens.attention_mask}
    found = masked.model.run_with_hooks(tokens.ids, fwd_hooks=hooks, **options)
    return found if found.dim() == 3 else found[:, None]


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@of_activations
@each_encoder
def test_random_masks_are_what_hooks_make(name: str, kind: str, ablation: str) -> None:
    masked = masked_of(name, KINDS[kind], ablation)
    mask = random_values(masked.sites)
    found = masked(clean(name), corrupt(name), mask=mask)
    assert error(found, by_hooks(masked, mask, name, ablation)) <= 1e-9


@each_kind
@pytest.mark.parametrize("name", ["plain", "bert classes", "bert", "roberta words"])
def test_gradients_are_finite_differences(name: str, kind: str) -> None:
    masked = masked_of(name, KINDS[kind])
    mask = random_values(masked.sites).requires_grad_()
    probe(masked(clean(name), corrupt(name), mask=mask)).backward()
    assert mask.grad is not None
    for seed in range(3):
        direction = torch.randn(len(mask), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            ends = [probe(masked(clean(name), corrupt(name), mask=mask + s * direction)) for s in (1e-6, -1e-6)]
        expected = float(ends[0] - ends[1]) / 2e-6
        assert abs(float(mask.grad @ direction) - expected) <= 1e-7 + 1e-5 * abs(expected)


@of_activations
@pytest.mark.parametrize("name", ["plain", "bert number", "bert choices"])
def test_a_mask_per_example_is_a_run_per_example(name: str, kind: str) -> None:
    masked = masked_of(name, KINDS[kind])
    values = random_values(masked.sites, 3)
    together = masked(clean(name), corrupt(name), mask=values)
    for index, mask in enumerate(values):
        row = torch.tensor([index])
        alone = masked(clean(name).rows(row), corrupt(name).rows(row), mask=mask)
        assert error(together[index : index + 1], alone) <= 1e-9


@each_encoder
def test_what_stands_in_padding_reaches_nothing(name: str) -> None:
    """Under masks too: other replacements at padded places, and prompts cut to their length, give the same."""
    masked, tokens, twins = masked_of(name, lambda model: heads(model) + mlps(model)), clean(name), corrupt(name)
    mask, real = random_values(masked.sites), tokens.attention_mask
    assert real is not None
    together = masked(tokens, twins, mask=mask)
    for row in range(3):
        short = (cut(prompt, row, int(real[row].sum())) for prompt in (tokens, twins))
        alone = masked(*short, mask=mask)
        assert error(together[row : row + 1, : alone.shape[1]], alone) <= 1e-9


@each_encoder
def test_logits_are_at_answer_positions_or_one_row_per_prompt(name: str) -> None:
    backend, positions = backend_of(kept_encoder(name)), torch.tensor([[0, 5], [2, 3], [1, 1]])
    found = backend.logits(clean(name), positions)
    whole = plain(name, clean(name))
    words = name == "plain" or "words" in name
    assert backend.predicts == ("tokens" if words else "prompts")
    expected = whole[torch.arange(3)[:, None], positions] if words else whole
    assert error(found, expected) <= 1e-12
    assert whole.shape[1] == (LENGTH if words else 1)


@each_encoder
def test_frozen_norms_divide_by_the_clean_scale(name: str) -> None:
    """As if every norm behind the embeddings had its clean scale written in by hooks of TransformerLens."""
    model, positions = kept_encoder(name), torch.tensor([[0, 5], [2, 3], [1, 1]])
    masked = Masked(model, Masks(heads(model) + mlps(model)), norm="frozen")
    mask = random_values(masked.sites)
    found = masked(clean(name), corrupt(name), mask=mask)
    scales = {point: value for point, value in cache_of(model, clean(name)).items() if point.endswith("hook_scale")}
    replaced = Resample().replaced(backend_of(model), corrupt(name), corrupt(name), Wanted(streams=False))
    free = Masked(model, masked.masks)
    free(clean(name), corrupt(name), mask=mask)
    with model.hooks([(point, lambda value, hook: scales[hook.name]) for point in scales]):
        expected = free(clean(name), corrupt(name), mask=mask, replaced=replaced)
    assert error(found, expected) <= 1e-9
    assert error(found, free(clean(name), corrupt(name), mask=mask)) > 1e-4
    if masked.backend.predicts == "tokens":
        chosen = masked(clean(name), corrupt(name), mask=mask, positions=positions)
        assert error(chosen, found[torch.arange(3)[:, None], positions]) <= 1e-12


@pytest.mark.parametrize("name", ["plain", "bert classes", "bert choices"])
def test_an_installed_circuit_is_the_circuit_and_leaves_nothing(name: str) -> None:
    model = plain_encoder() if name == "plain" else fresh_encoder(name)
    sites = heads(model) + neurons(model)
    circuit = Circuit(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) < 0.6)
    for ablation in (Zero(), Mean(others(name))):
        masked = Masked(model, circuit, ablation)
        expected, before = masked(clean(name)), call(model, clean(name))
        with masked.installed():
            inside = call(model, clean(name))
        assert error(inside.view_as(expected), expected) <= 1e-9
        assert torch.equal(call(model, clean(name)), before)
    assert not any(point._forward_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize("unit", ["row", "column"])
def test_rows_and_columns_of_a_head_are_of_its_inputs_and_outputs(unit: Any) -> None:
    """An ablated row of the classifier is a pooled number that is not read; a column is a class without a slope."""
    model = kept_encoder("bert classes")
    masked = Masked(model, Masks(weights(model, "classifier.W", unit=unit)))
    mask = random_values(masked.sites)
    pooled = cache_of(model, clean("bert classes"))["pooler.hook_pooler_out"]
    weight, bias = model.classifier.W, model.classifier.b
    expected = (pooled * mask) @ weight + bias if unit == "row" else (pooled @ weight) * mask + bias
    found = masked(clean("bert classes"), corrupt("bert classes"), mask=mask)
    assert len(mask) == (24 if unit == "row" else 3)
    assert error(found, expected[:, None].detach()) <= 1e-12


def test_a_fingerprint_is_of_the_weights() -> None:
    """A model read twice has one; what a head does not use does not count."""
    first, second = (backend_of(fresh_encoder("bert classes")).fingerprint() for _ in range(2))
    assert first == second
    assert first != backend_of(fresh_encoder("bert labels")).fingerprint()


def test_what_an_encoder_does_not_have_is_refused() -> None:
    model = kept_encoder("bert classes")
    with pytest.raises(ValueError, match="this encoder normalises it"):
        nodes(model, embeddings="separate")
    strange = Sites((type(nodes(model).groups[0])("nodes", ("embed",)),))  # pyright: ignore
    with pytest.raises(ValueError, match="does not have under this convention"):
        Masked(model, Masks(strange))
    other = plain_encoder()
    other.cfg.normalization_type = "RMS"
    with pytest.raises(ValueError, match="normalisation 'RMS'"):
        heads(other)
    with pytest.raises(ValueError, match=r"needs one of .*TransformerBridge but got Linear"):
        heads(torch.nn.Linear(1, 1))


def test_circuits_of_before_say_nothing_of_norms_and_load(tmp_path: Any) -> None:
    assert Architecture(**{"n_layers": 1, "n_heads": 2, "n_kv_heads": 2}) == Architecture(1, 2, 2, post_norm=False)
    circuit = Circuit.from_names(heads(kept_encoder("bert classes")), ["a0.h1"])
    circuit.save(tmp_path / "heads.json")
    assert Circuit.load(tmp_path / "heads.json") == circuit
